"""Fetching raw files, from a real HTTP server on loopback that is sometimes broken on purpose."""

from __future__ import annotations

import gzip
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from distill.datasets import sources
from distill.datasets.raw import mnist
from distill.datasets.readers import read_idx
from distill.datasets.sources import Home, Source, fetch
from mst_edge.core.errors import UserError
from tests.conftest import mst_edge


class Server:
    """Serves files of a folder; ``faults`` maps a path to what goes wrong there, once each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.requests = folder, {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler):
        path = handler.path.lstrip("/")
        asked = re.match(r"bytes=(\d+)-", handler.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        self.requests.append((path, start))
        fault = self.faults.get(path, [])
        what = fault.pop(0) if fault else ""
        if what == "missing" or not (self.folder / path).is_file():
            return handler.send_error(404)
        if what == "busy":
            return handler.send_error(503)
        content = (self.folder / path).read_bytes()
        if what == "corrupt":
            content = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        if what == "no ranges":
            start = 0
        if start > len(content):
            return handler.send_error(416)
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        body = content[start:]
        handler.wfile.write(body[: len(body) // 2] if what == "cut" else body)
        return None

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[Server, Source]]:
    """A server with one small idx file, and the source that describes it."""
    folder = tmp_path / "served"
    (folder / "mnist").mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)
    content = gzip.compress(b"\0\0\x08\x01" + (5000).to_bytes(4, "big") + values.tobytes())
    (folder / "mnist" / "x.gz").write_bytes(content)
    server = Server(folder)
    source = Source(
        name="x",
        files=("mnist/x.gz",),
        homes=(Home(f"{server.url}/gone/x.gz", "mnist/x.gz"), Home(f"{server.url}/mnist/x.gz", "mnist/x.gz")),
        check=lambda path: read_idx(path) is None,
        sha256={"mnist/x.gz": hashlib.sha256(content).hexdigest()},
    )
    yield server, source
    server.close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(sources.time, "sleep", lambda _: None)


def test_the_next_home_is_tried_when_one_is_gone(served, tmp_path):
    server, source = served
    path = fetch(source, tmp_path / "root")
    assert path.read_bytes() == (server.folder / "mnist" / "x.gz").read_bytes()
    assert [request[0] for request in server.requests] == ["gone/x.gz", "mnist/x.gz"]


def test_a_file_that_is_there_is_verified_and_not_fetched(served, tmp_path):
    server, source = served
    fetch(source, tmp_path / "root")
    server.requests.clear()
    fetch(source, tmp_path / "root")
    assert server.requests == []


def test_a_cut_transfer_is_resumed_where_it_broke_off(served, tmp_path):
    server, source = served
    server.faults["mnist/x.gz"] = ["cut", "busy", "cut"]
    path = fetch(source, tmp_path / "root", mirror=server.url)
    assert path.read_bytes() == (server.folder / "mnist" / "x.gz").read_bytes()
    starts = [start for _, start in server.requests]
    assert starts[0] == 0
    assert starts[-1] > starts[1] > 0


def test_a_partial_file_of_an_earlier_call_is_resumed(served, tmp_path):
    server, source = served
    server.faults["mnist/x.gz"] = ["cut"] + ["busy"] * 9
    with pytest.raises(UserError, match="HTTP 503.*a partial download is resumed"):
        fetch(source, tmp_path / "root", mirror=server.url)
    assert (tmp_path / "root" / "mnist" / "x.gz.part").stat().st_size > 1000
    assert not (tmp_path / "root" / "mnist" / "x.gz").exists()
    server.faults.clear()
    server.requests.clear()
    assert fetch(source, tmp_path / "root", mirror=server.url).is_file()
    assert server.requests[0][1] > 1000


def test_a_server_without_ranges_is_read_from_the_start(served, tmp_path):
    server, source = served
    server.faults["mnist/x.gz"] = ["cut", "no ranges"]
    path = fetch(source, tmp_path / "root", mirror=server.url)
    assert path.read_bytes() == (server.folder / "mnist" / "x.gz").read_bytes()


def test_a_partial_file_that_is_too_long_is_started_over(served, tmp_path):
    server, source = served
    part = tmp_path / "root" / "mnist" / "x.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 100_000)
    assert fetch(source, tmp_path / "root", mirror=server.url).is_file()
    assert not part.exists()


def test_a_corrupted_file_is_refused_and_leaves_nothing(served, tmp_path):
    server, source = served
    server.faults["mnist/x.gz"] = ["corrupt"] * 3
    with pytest.raises(UserError, match="sha256 is .*, expected"):
        fetch(source, tmp_path / "root", mirror=server.url)
    assert list((tmp_path / "root" / "mnist").iterdir()) == []


def test_nothing_answering_is_told_with_its_address(tmp_path, served):
    _, source = served
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/mnist/x\.gz: .*refused"):
        fetch(source, tmp_path / "root", mirror="http://127.0.0.1:9")


def test_a_changed_local_file_is_told(served, tmp_path):
    server, source = served
    path = fetch(source, tmp_path / "root", mirror=server.url)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="sha256 is"):
        fetch(source, tmp_path / "root", mirror=server.url)


def test_the_command_line_fetches_and_verifies_avmnist_from_a_mirror(real_data, tmp_path):
    server = Server(real_data)
    try:
        root = tmp_path / "root"
        done = mst_edge("data", "fetch", "avmnist", "--data-root", root, "--from", server.url)
        assert done.code == 0, done.err
        assert done.out.count("ok  ") == 6
        assert mst_edge("data", "verify", "avmnist", "--data-root", root).code == 0
        broken = root / "fsdd" / "recordings_flac.zip"
        content = bytearray(broken.read_bytes())
        content[len(content) // 2] ^= 0xFF
        broken.write_bytes(content)
        (root / mnist.SOURCES[0].files[0]).unlink()
        done = mst_edge("data", "verify", "avmnist", "--data-root", root)
        assert done.code == 2
        assert done.out.count("BAD") == 2
        assert "MNIST train-images-idx3-ubyte.gz is missing" in done.out
        assert re.search(r"recordings_flac\.zip.*(cannot be decoded|differs from the published recording)", done.out)
        assert "2 of 6 files are missing or malformed" in done.err
    finally:
        server.close()
