"""Where pictures come from: files, videos, cameras. Pillow; PyAV for what moves."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime import BundleError
from apps.runtime.clips import VIDEOS
from apps.runtime.images import MAX_PIXELS, open_picture, picture_bytes

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp", ".gif", ".tif", ".tiff"}
_PATIENCE_S = 5.0  # without a picture, a camera on the network is taken for gone
_DRIVERS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}


@dataclass(frozen=True)
class Frame:
    """One picture: ``pixels`` ``(H, W, 3)`` RGB.

    Attributes:
        number: counts the pictures of one video; None in a picture file.
        time_s: when it is first shown; None where nobody says.
    """

    pixels: NDArray[np.uint8]
    number: int | None = None
    time_s: float | None = None

    @property
    def grey(self) -> NDArray[np.uint8]:
        """``(H, W)`` luma (ITU-R BT.601, as in pictures that training reads)."""
        luma = self.pixels @ np.array([0.299, 0.587, 0.114], np.float32)
        return np.round(luma).astype(np.uint8)


def expanded(paths: Iterable[Path]) -> Iterator[Path]:
    """Files, and those in folders, sorted.

    Raises:
        BundleError: a folder without any picture or video.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES | VIDEOS)
        if not found:
            raise BundleError("holds no picture and no video", where=path)
        yield from found


def picture(path: Path) -> Iterator[Frame]:
    """The one picture of a file, upright.

    Raises:
        BundleError: no such file, not a picture, or damaged.
    """
    yield Frame(np.asarray(open_picture(picture_bytes(path), "RGB", path, upright=True), dtype=np.uint8))


def video(path: Path) -> Iterator[Frame]:
    """The pictures of a video file; damaged stretches are passed over.

    Raises:
        BundleError: no such file, or not a video.
    """
    if not path.is_file():
        raise BundleError("no such file", where=path)
    yield from _frames(str(path), path, None)


def camera(address: str) -> Iterator[Frame]:
    """Pictures of a camera as they come, until it is gone.

    Args:
        address: number or device of a camera at this machine, or a URL (``rtsp://``, ``http://``) of one elsewhere.

    Raises:
        BundleError: there is none, or it went away: unplugged, or silent for 5 s.
    """
    device = f"/dev/video{address}" if address.isdigit() and sys.platform == "linux" else address
    driver = None if "://" in device else _DRIVERS.get(sys.platform)
    if driver == "v4l2" and not Path(device).exists():
        raise BundleError(f"there is no {device}", where=f"camera {address}", fix="plug it in, or name another")
    count = 0
    for frame in _frames(device, f"camera {address}", driver):
        yield frame
        count += 1
    raise BundleError(f"is gone after {count} pictures", where=f"camera {address}", fix="is it still plugged in?")


def _frames(source: str, where: object, driver: str | None) -> Iterator[Frame]:
    av = _pyav(where)
    patience = (_PATIENCE_S, _PATIENCE_S) if driver or "://" in source else None
    try:
        container = av.open(source, format=driver, timeout=patience)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BundleError(f"not a video that can be opened ({_said(error)})", where=where) from None
    with container:
        if not container.streams.video:
            raise BundleError("holds no pictures", where=where)
        stream = container.streams.video[0]
        if (stream.width or 0) * (stream.height or 0) > MAX_PIXELS:
            raise BundleError("has more pixels than any camera: refused", where=where)
        begin: float | None = None
        for number, (pixels, time_s) in enumerate(_decoded(av, container, stream)):
            begin = time_s if begin is None else begin
            yield Frame(pixels, number, None if time_s is None or begin is None else time_s - begin)


def _decoded(av: Any, container: Any, stream: Any) -> Iterator[tuple[NDArray[np.uint8], float | None]]:
    """What can be decoded and its time in seconds, until the end or until there is no more to be had."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            pictures = packet.decode()
        except (StopIteration, EOFError):
            return
        except av.error.InvalidDataError:
            continue  # a damaged stretch: the next whole picture goes on
        except (av.FFmpegError, OSError):
            return  # unplugged, or silent for too long
        for one in pictures:
            yield one.to_ndarray(format="rgb24"), one.time


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _pyav(where: object) -> Any:
    try:
        import av
    except ImportError:
        raise BundleError("reading videos needs PyAV", where=where, fix="pip install 'mst-edge[video]'") from None
    av.logging.set_level(av.logging.PANIC)
    return av
