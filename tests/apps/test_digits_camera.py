"""Digits on paper as cameras see it: found, framed and read, from files, videos and a camera that goes away."""

from __future__ import annotations

import gzip
import io
import json
import socket
import threading

import av
import numpy as np
import pytest
from PIL import Image

from apps import frames
from apps.digits_camera import DigitReader, main
from apps.digits_camera.find import Framing, find_digits
from apps.frames import Frame
from apps.runtime import Bundle
from tests.apps.paper_bundles import STROKES, drawn_digit, eye, write_bundle
from tests.conftest import mst_edge

PLAIN = Framing((28, 28))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return eye(tmp_path_factory.mktemp("eye") / "bundle")


@pytest.fixture(scope="module")
def reader(bundle):
    with Bundle.open(bundle) as opened:
        yield DigitReader(opened)


def _light(kind: str, height: int, width: int) -> np.ndarray:
    """What falls on the sheet, 1 at most."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    return {
        "even": np.ones((height, width)),
        "gradient": 1 - 0.7 * columns,
        "shadow": np.where(columns + 0.4 * rows > 0.6, 0.45, 1.0),
        "spot": np.exp(-2.5 * ((rows - 0.3) ** 2 + (columns - 0.4) ** 2)),
    }[kind]


def _sheet(ink: np.ndarray, light: str = "even", *, contrast: float = 0.7, noise: float = 3.0, paper: float = 225.0):
    """A grey photo of ``ink`` (0 to 1) on a sheet."""
    rng = np.random.default_rng(0)
    values = paper * _light(light, *ink.shape) * (1 - contrast * ink) + rng.normal(0, noise, ink.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def _place(page: np.ndarray, ink: np.ndarray, top: int, left: int) -> np.ndarray:
    area = page[top : top + len(ink), left : left + ink.shape[1]]
    np.maximum(area, ink, out=area)
    return page


def _read(reader, grey) -> list[str]:
    return [one.label for one in reader.read(Frame(np.repeat(grey[..., None], 3, axis=2)))[0]]


@pytest.mark.parametrize("label", STROKES)
@pytest.mark.parametrize("light", ["even", "gradient", "shadow", "spot"])
@pytest.mark.parametrize("light_ink", [False, True])
def test_a_digit_is_read_in_any_light(reader, label, light, light_ink):
    grey = _sheet(_place(np.zeros((240, 320)), drawn_digit(label, 110), 60, 120), light)
    if light_ink:  # chalk on a board
        board = _place(np.zeros((240, 320)), drawn_digit(label, 110), 60, 120)
        grey = np.clip(_light(light, 240, 320) * (60 + 150 * board), 0, 255).astype(np.uint8)
    assert _read(reader, grey) == [label]


@pytest.mark.parametrize("degrees", [-10, 10])
@pytest.mark.parametrize("side", [24, 60, 400])
def test_a_digit_is_read_a_little_turned_and_in_any_size(reader, degrees, side):
    ink = Image.fromarray(np.round(255 * drawn_digit("4", side)).astype(np.uint8)).rotate(degrees, Image.BICUBIC)
    page = _place(np.zeros((500, 600)), np.asarray(ink) / 255, 50, 100)
    assert _read(reader, _sheet(page, "gradient")) == ["4"]


def test_faint_ink_in_much_noise_is_read(reader):
    page = _place(np.zeros((240, 320)), drawn_digit("7", 120), 60, 100)
    assert _read(reader, _sheet(page, contrast=0.45, noise=8.0)) == ["7"]


def test_several_digits_are_read_line_by_line_from_the_left(reader):
    page = np.zeros((400, 640))
    for k, label in enumerate("1407"):
        _place(page, drawn_digit(label, 90), 40 + 15 * (k % 2), 30 + 150 * k)
    for k, label in enumerate("741"):
        _place(page, drawn_digit(label, 90), 240, 60 + 180 * k)
    assert "".join(_read(reader, _sheet(page, "shadow"))) == "1407741"


def test_parts_of_one_digit_are_one(reader):
    """A 7 whose stroke breaks off for a moment."""
    ink = drawn_digit("7", 120)
    ink[60:64] = 0
    assert _read(reader, _sheet(_place(np.zeros((240, 320)), ink, 50, 90))) == ["7"]


@pytest.mark.parametrize(
    "grey",
    [
        np.full((200, 300), 180, np.uint8),
        np.zeros((200, 300), np.uint8),
        np.full((3, 3), 9, np.uint8),
        np.zeros((1, 500), np.uint8),
        _sheet(np.zeros((200, 300)), "gradient", noise=6.0),
        _sheet(np.zeros((200, 300)), "shadow"),
    ],
    ids=["white", "black", "tiny", "thin", "noise", "shadow"],
)
def test_where_nothing_is_written_nothing_is_read(grey):
    assert find_digits(grey, PLAIN) == []


def test_texture_all_over_ends_soon():
    grey = np.random.default_rng(0).integers(0, 256, (700, 700), dtype=np.uint8)
    assert len(find_digits(grey, PLAIN)) < 50
    board = (np.indices((640, 640)).sum(axis=0) // 4 % 2 * 255).astype(np.uint8)
    assert isinstance(find_digits(board, PLAIN), list)


def test_digits_are_framed_as_the_bundles_own_examples():
    """MNIST's way: the longer side fills 20 of 28 pixels, the weight is in the middle (LeCun and others, 1998)."""
    page = _sheet(_place(np.zeros((300, 300)), drawn_digit("4", 150), 30, 110))
    (found,) = find_digits(page, PLAIN)
    ink = found.sample.astype(float)
    rows = np.flatnonzero((ink > 60).any(axis=1))
    assert 19 <= rows[-1] - rows[0] + 1 <= 20
    assert (ink.sum(axis=1) @ np.arange(28)) / ink.sum() == pytest.approx(13.5, abs=0.7)
    assert (ink.sum(axis=0) @ np.arange(28)) / ink.sum() == pytest.approx(13.5, abs=0.7)
    assert ink.max() >= 250
    top, left, bottom, right = found.box.top, found.box.left, found.box.bottom, found.box.right
    assert (top, left) == pytest.approx((30 + 0.05 * 150 - 6, 110 + 0.2 * 150 - 6), abs=6)
    assert (bottom, right) == pytest.approx((30 + 0.95 * 150 + 6, 110 + 0.85 * 150 + 6), abs=6)
    dark = Framing.of(255 - np.stack([found.sample] * 3))
    assert (dark.light_ink, dark.extent) == (False, pytest.approx(20 / 28, abs=0.04))
    (other,) = find_digits(page, dark)
    assert np.abs(255.0 - other.sample - found.sample).mean() < 2


def test_mnists_digits_on_uneven_paper_are_read_as_well_as_framed_ones(real_data, tmp_path):
    def values(name: str, skip: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((real_data / "mnist" / name).read_bytes())[skip:], np.uint8)

    pictures = values("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = values("train-labels-idx1-ubyte.gz", 8)
    examples = np.concatenate([pictures[labels == digit][:600] for digit in range(10)])
    tests = values("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    truth = values("t10k-labels-idx1-ubyte.gz", 8)
    folder = write_bundle(tmp_path / "b", "image", examples, list("0123456789"), per_class=600)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(tests))[:200].reshape(40, 5)
    framed = found = right = 0
    with Bundle.open(folder) as bundle:
        reader = DigitReader(bundle)
        framed = np.mean([bundle.predict(tests[k]).label == str(truth[k]) for k in chosen.reshape(-1)])
        for numbers in chosen:
            page = np.zeros((300, 600))
            for place, k in enumerate(numbers):
                side = int(rng.integers(80, 110))
                large = Image.fromarray(tests[k]).resize((side, side), Image.BICUBIC).rotate(rng.uniform(-8, 8))
                _place(page, np.asarray(large) / 255, int(rng.integers(80, 110)), 20 + 115 * place)
            light = str(rng.choice(["even", "gradient", "shadow", "spot"]))
            said = _read(reader, _sheet(page, light, contrast=rng.uniform(0.5, 0.85), noise=rng.uniform(1, 5)))
            found += len(said) == 5
            if len(said) == 5:
                right += sum(label == str(truth[k]) for label, k in zip(said, numbers, strict=True))
    assert found >= 38
    assert framed > 0.9
    assert right / (5 * found) > framed - 0.05


def _photo(text: str, light: str = "gradient") -> np.ndarray:
    page = np.zeros((240, 120 * len(text) + 40))
    for k, label in enumerate(text):
        _place(page, drawn_digit(label, 100), 70, 30 + 120 * k)
    return np.repeat(_sheet(page, light)[..., None], 3, axis=2)


def _film(path, pictures, rate=10):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = pictures[0].shape[1], pictures[0].shape[0], "yuv420p"
        for pixels in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))


def _pictures_in(path) -> list[np.ndarray]:
    with av.open(str(path)) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


def test_a_folder_of_pictures_and_videos_is_read_and_marked(bundle, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(_photo("17")).save(folder / "a.jpg", quality=92)
    _film(folder / "b.mp4", [_photo("40"), _photo("40"), _photo("71")])
    (folder / "c.png").write_bytes(b"no picture")
    (folder / "d.avi").write_bytes(b"no video")
    assert main([str(bundle), str(folder), "--json", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [(record["frame"], record["label"]) for record in records] == [(None, "17"), (0, "40"), (1, "40"), (2, "71")]
    assert all(record["all_ms"] >= record["latency_ms"] > 0 and record["fps"] > 0 for record in records)
    box = records[0]["digits"][1]["box"]
    assert 60 <= box["top"] <= 90
    assert 150 <= box["bottom"] <= 180
    assert said.err.count("error: ") == 2
    assert "c.png: not a picture" in said.err
    assert "d.avi: not a video" in said.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.mp4"]
    marked = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
    edge = marked[box["top"] - 2, (box["left"] + box["right"]) // 2]
    assert edge[1] > edge[0] + 50  # the box is green
    assert len(_pictures_in(tmp_path / "out" / "b.mp4")) == 3


def test_a_phones_photo_is_turned_upright(bundle, tmp_path, capsys):
    lying = Image.fromarray(_photo("7")).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    lying.save(tmp_path / "x.jpg", exif=exif)
    assert main([str(bundle), "--json", str(tmp_path / "x.jpg")]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "7"


def test_unsure_digits_are_marked(bundle, tmp_path, capsys):
    Image.fromarray(_photo("7")).save(tmp_path / "x.png")
    assert main([str(bundle), str(tmp_path / "x.png"), "--min-confidence", "1.1"]) == 0
    assert "     ?  " in capsys.readouterr().out


class _WebCamera:
    """A camera on the network, as cheap ones are: JPEG after JPEG over HTTP, until it is unplugged."""

    def __init__(self, pictures: int) -> None:
        buffer = io.BytesIO()
        Image.fromarray(_photo("14")).save(buffer, "jpeg", quality=90)
        self._jpeg, self._pictures = buffer.getvalue(), pictures
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/stream.mjpeg"
        self._thread = threading.Thread(target=self._serve)
        self._silent = threading.Event()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
            for _ in range(self._pictures):
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(self._jpeg)}\r\n\r\n"
                connection.sendall(head.encode() + self._jpeg + b"\r\n")
            if not self._pictures:
                self._silent.wait(30)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._silent.set()
        self._thread.join()
        self._socket.close()


def test_a_camera_that_is_unplugged_is_told_and_what_it_saw_is_kept(bundle, tmp_path):
    with _WebCamera(pictures=6) as camera:
        done = mst_edge("app", "digits-camera", bundle, "--camera", camera.url, "--json", "--out", tmp_path)
    assert done.code == 2
    labels = [json.loads(line)["label"] for line in done.out.splitlines()]
    assert labels == ["14"] * len(labels)
    assert len(labels) in (5, 6)  # of the last picture, the end may be missing
    assert done.err == (f"error: camera {camera.url}: is gone after {len(labels)} pictures; is it still plugged in?\n")
    (film,) = tmp_path.glob("*.mp4")
    assert len(_pictures_in(film)) == len(labels)


def test_enough_pictures_of_a_camera_are_enough(bundle):
    with _WebCamera(pictures=6) as camera:
        done = mst_edge("app", "digits-camera", bundle, "--camera", camera.url, "--frames", 2)
    assert (done.code, done.err, len(done.out.splitlines())) == (0, "", 2)


def test_a_camera_that_says_nothing_is_not_waited_for(bundle, capsys, monkeypatch):
    monkeypatch.setattr(frames, "_PATIENCE_S", 0.5)
    with _WebCamera(pictures=0) as camera:
        assert main([str(bundle), "--camera", camera.url]) == 2
    assert capsys.readouterr().err.startswith(f"error: camera {camera.url}: not a video that can be opened")


def test_a_camera_that_is_not_there_is_told(bundle):
    done = mst_edge("app", "digits-camera", bundle, "--camera", "97")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: camera 97: there is no /dev/video97; plug it in, or name another\n"
