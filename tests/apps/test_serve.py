"""The page's server, spoken to over real sockets: what it answers, and what it refuses."""

from __future__ import annotations

import base64
import io
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from apps.serve.models import Models
from apps.serve.views import spectrogram_db, token_texts
from apps.serve.web import Access, Limits, PageServer
from tests.apps.paper_bundles import drawn_digit, ear, eye, reader
from tests.apps.sockets import ask, say
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {"image": eye(folder / "eye"), "audio": ear(folder / "ear"), "text": reader(folder / "reader")}


@pytest.fixture(scope="module")
def models(bundles):
    with Models.open(list(bundles.values()), ["all"]) as models:
        yield models


@contextmanager
def _serving(models, access=None, limits=None, told=None):
    tell = (lambda record: None) if told is None else told.append
    with PageServer(("127.0.0.1", 0), models, access or Access(), limits, tell) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def port(models):
    with _serving(models, limits=Limits(body_bytes=1 << 20, request_s=5)) as port:
        yield port


def _wav(samples, rate=8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, "PCM_16", format="WAV")
    return buffer.getvalue()


def _png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def _page_with(label: str) -> bytes:
    """A photo of a sheet in uneven light with a digit on it."""
    sheet = np.full((240, 320), 210.0) * np.linspace(0.6, 1, 320)
    sheet[60:180, 100:220] *= 1 - 0.75 * drawn_digit(label, 120)
    return _png(sheet.astype(np.uint8))


TONE = np.sin(2 * np.pi * 300 * np.arange(8000) / 8000) * 0.5


def test_bundles_are_described_in_order(port):
    status, headers, said = ask(port, "GET", "/api/bundles")
    assert status == 200
    assert [(model["kind"], model["build"]) for model in said["models"]] == [
        (kind, build) for kind in ("image", "audio", "text") for build in ("a-fp32", "b-int8")
    ]
    first = said["models"][0]
    assert first["path"].endswith("eye")
    assert (first["precision"], first["gate"], first["score"], first["p90_ms"]) == ("fp32", "passed", 0.9, 0.1)
    assert first["size_bytes"] > 1000
    assert first["finds_digits"]
    assert said["limits"]["body_bytes"] == 1 << 20
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Python" not in headers["Server"]


def test_a_page_for_sounds_needs_neither_pillow_nor_torch(bundles, tmp_path):
    (tmp_path / "x.wav").write_bytes(_wav(TONE))
    code = (
        "import sys; from pathlib import Path; sys.modules['PIL'] = sys.modules['soundfile'] = None\n"
        "from apps.serve.models import Models\n"
        f"with Models.open([Path({str(bundles['audio'])!r})]) as models:\n"
        f"    said = models.answer('audio', Path({str(tmp_path / 'x.wav')!r}).read_bytes())\n"
        "assert said['answers'][0]['label'] == 'low'\n"
        "assert not {'torch', 'onnx', 'pydantic', 'scipy', 'av'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_a_sound_is_answered_by_every_build_that_listens(port):
    status, _, said = ask(port, "POST", "/api/predict?kind=audio", _wav(TONE))
    assert status == 200
    assert [(answer["model"], answer["label"], answer["view"]) for answer in said["answers"]] == [
        (2, "low", 0),
        (3, "low", 0),
    ]
    assert all(0 < answer["inference_ms"] <= said["total_ms"] for answer in said["answers"])
    (view,) = said["views"]
    assert (view["kind"], view["seconds"], view["top_hz"], view["notes"]) == ("spectrogram", 1.0, 4000.0, [])
    bands = np.frombuffer(base64.b64decode(view["data"]), np.uint8).reshape(view["rows"], view["columns"])
    loudest = bands[:, 10:-10].mean(axis=1).argmax() / (view["rows"] - 1) * view["top_hz"]
    assert loudest == pytest.approx(300, abs=20)


def test_the_spectrogram_is_numpys_own_fft():
    samples = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    found = spectrogram_db(samples, 8000)
    frame = samples[80 * 5 - 128 : 80 * 5 + 128] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 255))
    column = 20 * np.log10(np.abs([np.sum(frame * np.exp(-2j * np.pi * k * np.arange(256) / 256)) for k in range(129)]))
    assert found.max() == 0
    assert (found[:, 5] - found[40, 5]) == pytest.approx(column - column[40], abs=1e-3)
    assert (spectrogram_db(np.zeros(100, np.float32), 8000) == -70).all()


def test_a_digit_is_found_in_a_picture_or_taken_as_it_is(port):
    for label in ("0", "1", "4", "7"):
        status, _, said = ask(port, "POST", "/api/predict?kind=image&frame=1", _page_with(label))
        assert (status, said["answers"][0]["label"], said["views"][0]["notes"]) == (200, label, [])
    whole = ask(port, "POST", "/api/predict?kind=image", _page_with("7"))[2]["views"][0]
    assert (whole["rows"], whole["columns"]) == (28, 28)
    empty = _png(np.full((60, 60), 200, np.uint8))
    _, _, said = ask(port, "POST", "/api/predict?kind=image&frame=1", empty)
    assert said["views"][0]["notes"] == ["no digit was found: this is the whole picture"]


def test_a_text_is_answered_with_the_tokens_that_were_read(port):
    status, _, said = ask(port, "POST", "/api/predict?kind=text", b"we need water")
    assert (status, said["answers"][0]["label"]) == (200, "needs_help")
    assert "".join(said["views"][0]["tokens"]) == " we need water"


def test_tokens_are_spelled_by_their_merges():
    from apps.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer(((3 + ord("a"), 3 + ord("b")), (259, 3 + ord("c"))), 8, True)
    ids, _ = tokenizer.encode("abc @bob https://x.y é")
    assert token_texts(ids, tokenizer) == [" ", "abc", "USER", "URL", " ", "\ufffd", "\ufffd"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not a RIFF wave file"),
        (b"hello", "not a RIFF wave file"),
        (_wav(np.zeros(0)), "holds no sound"),
        (_wav(np.zeros(70_000), 1000), "lasts 70 s, 60 s at most"),
        (b"\x93NUMPY\x01\x00" + b"\xff" * 20, "not a readable .npy"),
    ],
)
def test_bad_sounds_are_told_in_one_line(port, body, says):
    status, _, said = ask(port, "POST", "/api/predict?kind=audio", body)
    assert status == 422
    assert says in said["error"]
    assert "\n" not in said["error"]


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a picture that its few bytes do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("frame", [0, 1])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"GIF89a", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (_bomb(60_000, 60_000), "more pixels than any camera"),
        (_bomb(2**31 - 1, 2**31 - 1), "more pixels than any camera"),
        (_bomb(3000, 3000), "damaged picture"),
        (_page_with("7")[:500], "damaged picture"),
    ],
)
def test_hostile_pictures_are_refused(port, body, frame, says):
    status, _, said = ask(port, "POST", f"/api/predict?kind=image&frame={frame}", body)
    assert (status, says in said["error"]) == (422, True), said


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page.css/../../x",
        "/page.js%00",
        "/x",
        "/.",
        "/models.py",
    ],
)
def test_no_path_leads_to_a_file(port, path):
    status, _, said = ask(port, "GET", path)
    assert (status, said) == (404, {"error": "there is nothing of this name"})


def test_the_page_and_its_parts_are_served_and_name_nothing_outside(port):
    _, _, page = ask(port, "GET", "/")
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(parts) >= 3
    for part in {*parts, "/draw.js", "/sound.js", "/recorder.js"}:
        assert part.startswith("/")
        status, _, content = ask(port, "GET", part)
        assert status == 200
        for word in ("https:", "//cdn", "eval(", "innerHTML"):
            assert word not in content
        assert "http:" not in content.replace("http://www.w3.org/2000/svg", "")
    assert " on" not in re.sub(r">[^<]*<", "><", page)
    assert "style=" not in page


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "x", "[::1"]
)
def test_other_names_of_this_machine_are_refused(port, host):
    assert ask(port, "GET", "/api/bundles", Host=host)[0] == 421
    assert ask(port, "GET", "/", Host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8765", "192.168.1.5:80"])
def test_addresses_and_localhost_are_known(port, host):
    assert ask(port, "GET", "/api/bundles", Host=host)[0] == 200


def test_pages_of_others_are_refused(port):
    body = _wav(TONE)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", ""):
        expected = 403 if origin else 200
        assert ask(port, "POST", "/api/predict?kind=audio", body, Origin=origin)[0] == expected
    assert ask(port, "POST", "/api/predict?kind=audio", body, Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert ask(port, "GET", "/api/bundles", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(port, "GET", "/api/bundles", Sec_Fetch_Site="same-origin")[0] == 200


def test_a_token_is_asked_of_every_call_of_the_api(models):
    token = "correct-horse-battery"
    with _serving(models, Access(token=token)) as port:
        assert ask(port, "GET", "/")[0] == 200
        for given in ("", "Bearer ", "Bearer correct-horse-batterz", f"Bearer {token}x", "Bearer \xe9"):
            status, headers, said = ask(port, "GET", "/api/bundles", Authorization=given)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "token is missing or wrong" in said["error"]
            assert ask(port, "POST", "/api/predict?kind=text", b"x", Authorization=given)[0] == 401
        assert ask(port, "GET", "/api/bundles", Authorization=f"Bearer {token}")[0] == 200


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("kind=audio", "", 411),
        ("kind=audio", "Transfer-Encoding: chunked\r\n", 411),
        ("kind=audio", "Content-Length: -1\r\n", 400),
        ("kind=audio", "Content-Length: 1\r\nContent-Length: 2\r\n", 400),
        ("kind=audio", "Content-Length: 99999999999999999999\r\n", 413),
        ("kind=audio", "Content-Length: 1048577\r\n", 413),
        ("kind=smell", "Content-Length: 1\r\n", 400),
        ("kind=image&frame=2", "Content-Length: 1\r\n", 400),
    ],
)
def test_uploads_that_cannot_be_taken_are_refused_before_they_are_read(port, query, headers, status):
    head = f"POST /api/predict?{query} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
    assert say(port, head.encode()).split()[1] == str(status).encode()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /api/bundles HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /api/predict HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_requests_that_are_none_are_refused(port, head, status):
    said = say(port, head)
    assert said.split()[1] == str(status).encode(), said[:200]
    assert b"Content-Security-Policy" in said


def test_an_upload_that_is_refused_is_still_told_why(port):
    """Though much of it is on its way then."""
    status, _, said = ask(port, "POST", "/api/predict?kind=audio", bytes(3 << 20))
    assert (status, said["error"]) == (413, "larger than 1 MB")


def test_slow_clients_are_let_go_and_too_many_are_turned_away(models):
    with _serving(models, limits=Limits(request_s=1.0, connections=2)) as port:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
        begin = time.monotonic()
        for connection in slow:
            connection.sendall(b"GET / HT")
        time.sleep(0.2)
        assert b" 503 " in say(port, b"")  # turned away before it speaks
        while time.monotonic() < begin + 0.8:  # a byte now and then does not buy more time
            slow[0].sendall(b"T")
            time.sleep(0.1)
        for connection in slow:
            assert connection.recv(100) in (b"", b"HTTP")[:1]
            connection.close()
        assert time.monotonic() - begin < 10
        assert ask(port, "GET", "/api/bundles")[0] == 200
        head = b"POST /api/predict?kind=text HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
        assert b" 408 " in say(port, head)
        endless = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(
            b"X-%d: %s\r\n" % (k, b"y" * 1000) for k in range(90)
        )
        assert b"200 OK" not in say(port, endless)


def test_requests_are_told(models):
    told = []
    with _serving(models, told=told) as port:
        ask(port, "POST", "/api/predict?kind=text&secret=1", b"hello")
        ask(port, "GET", "/none")
    assert [(r["method"], r["path"], r["status"]) for r in told] == [
        ("POST", "/api/predict", 200),
        ("GET", "/none", 404),
    ]
    assert all(r["ms"] > 0 and r["client"] == "127.0.0.1" for r in told)


def test_a_bug_is_told_as_one_and_the_server_goes_on(models, monkeypatch, capfd):
    with _serving(models) as port:
        monkeypatch.setattr(models, "about", lambda: 1 / 0)
        status, _, said = ask(port, "GET", "/api/bundles")
        assert (status, "bug of ours" in said["error"]) == (500, True)
        assert ask(port, "POST", "/api/predict?kind=text", b"hello")[0] == 200
    assert "ZeroDivisionError" in capfd.readouterr().err


_HOSTS = st.sampled_from(["localhost", "127.0.0.1", "evil.example", ""])
_KINDS = st.sampled_from(["audio", "image", "text", "smell"])
_HEADS = st.sampled_from(
    [
        b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"\x93NUMPY\x01\x00",
        b"BM",
        b"",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_KINDS, st.integers(0, 1), _HEADS, st.binary(max_size=400))
def test_no_upload_makes_the_server_fail(port, kind, frame, head, tail):
    status, _, said = ask(port, "POST", f"/api/predict?kind={kind}&frame={frame}", head + tail)
    assert status in (200, 400, 422)
    assert ("answers" in said) == (status == 200)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"\x00", b"OPTIONS"]),
    st.binary(max_size=60),
    st.lists(
        st.tuples(
            st.sampled_from([b"Host", b"Content-Length", b"Origin", b"Authorization", b"Expect"]),
            st.binary(max_size=20),
        ),
        max_size=4,
    ),
    st.binary(max_size=60),
)
def test_no_request_makes_the_server_fail(port, method, path, headers, body):
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    raw = method + b" /" + path + b" HTTP/1.1\r\n" + lines + b"\r\n" + body
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        said = b""
        while block := connection.recv(1 << 16):
            said += block
    assert b" 500 " not in said[:20]
    assert not said or said.startswith((b"HTTP/1.1 ", b"{"))
