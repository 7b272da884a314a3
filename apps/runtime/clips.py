"""Video files to clips of one length and size: one way for training and for the device. Needs PyAV and Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .images import MAX_PIXELS

VIDEOS = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mjpeg"}
_MODES = {1: "L", 3: "RGB"}
_MISSING = 0.1  # share of what the container claims that may be missing: its clocks are rounded


@dataclass(frozen=True)
class ClipInfo:
    """What a video file holds: ``times_s`` at which its frames are first shown, from 0 on, and how long it lasts."""

    height: int
    width: int
    times_s: NDArray[np.float64]
    seconds: float

    @property
    def frames(self) -> int:
        """How many there are."""
        return len(self.times_s)


def part_middles(parts: int, whole: float) -> NDArray[np.float64]:
    """``(parts,)`` middles of equal parts of ``whole``."""
    return (np.arange(parts) + 0.5) * whole / parts


def shown_at(times_s: NDArray[np.float64], wanted_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which frame is on screen at each of ``wanted_s``: the last one whose time has come, to the millisecond that
    containers round to."""
    return np.maximum(np.searchsorted(times_s, wanted_s + 1e-3, side="right") - 1, 0)


def clip_info(path: Path) -> ClipInfo:
    """What a video file holds, by its packets: nothing is decoded.

    Raises:
        BundleError: not a video, no frame in it, cut off, or of more than 64 million pixels.
    """
    with _opened(path) as container:
        return _info(container, path)


def read_clip(path: Path, shape: Sequence[int]) -> tuple[NDArray[np.uint8], ClipInfo]:
    """A video file as a clip: the frames shown at the middles of ``time`` equal parts of it, resized.

    Of a file with fewer frames some come more than once. Only the frames taken are kept in memory.

    Args:
        shape: ``(time, height, width, channels)``, 1 channel for grey, 3 for RGB.

    Raises:
        BundleError: as ``clip_info``, or frames are damaged.
    """
    info = clip_info(path)
    wanted = shown_at(info.times_s, part_middles(shape[0], info.seconds))
    taken: list[NDArray[np.uint8]] = []
    count = 0
    with _opened(path) as container:
        for picture in _decoded(container, path):
            taken += [fit_frame(picture.to_ndarray(format="rgb24"), shape[1:])] * int((wanted == count).sum())
            count += 1
    if len(taken) < len(wanted):
        raise BundleError(f"is damaged: {count} of {info.frames} frames can be decoded", where=path)
    return np.stack(taken), info


def fit_frame(pixels: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """RGB ``(H, W, 3)`` resized to ``shape``: ``(height, width, 1)`` grey, or ``(height, width, 3)``.

    Raises:
        BundleError: Pillow is missing, or frames have other channels.
    """
    height, width, channels = shape
    if channels not in _MODES:
        raise BundleError(f"frames have {channels} channels, those of a video 1 or 3", where="input")
    try:
        from PIL import Image
    except ImportError:
        raise BundleError("resizing frames needs Pillow", fix="pip install 'mst-edge[apps]'") from None
    picture: Any = Image.fromarray(pixels).convert(_MODES[channels])
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8).reshape(height, width, channels)


def _opened(path: Path) -> Any:
    try:
        import av
    except ImportError:
        raise BundleError("reading videos needs PyAV", where=path, fix="pip install 'mst-edge[video]'") from None
    if not path.is_file():
        raise BundleError("no such file", where=path)
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BundleError(f"not a whole video ({_said(error)})", where=path) from None
    if not container.streams.video:
        container.close()
        raise BundleError("holds no video", where=path)
    return container


def _info(container: Any, path: Path) -> ClipInfo:
    import av

    stream = container.streams.video[0]
    if (stream.width or 0) * (stream.height or 0) > MAX_PIXELS:
        raise BundleError("has more pixels than any camera: refused", where=path)
    stamps: list[int] = []
    last_s, untimed = 0.0, 0
    try:
        for packet in container.demux():
            if packet.size and packet.pts is not None and packet.time_base is not None:
                last_s = max(last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == stream.index and packet.size and not packet.is_discard:
                untimed += packet.pts is None
                stamps.append(packet.pts or 0)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BundleError(f"cannot be read to its end ({_said(error)})", where=path) from None
    if not stamps:
        raise BundleError("holds no video frame", where=path)
    claimed_s = (container.duration or 0) / 1e6
    if len(stamps) < (1 - _MISSING) * stream.frames or last_s < (1 - _MISSING) * claimed_s - _MISSING:
        raise BundleError(f"is cut off after {len(stamps)} frames", where=path, fix="copy or encode it again")
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    if untimed:  # a raw stream of frames: all of one length
        times = np.arange(len(stamps)) / rate
    else:
        times = (np.sort(np.array(stamps, dtype=np.float64)) - min(stamps)) * float(stream.time_base)
    lasts = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
    return ClipInfo(stream.height, stream.width, times, float(times[-1]) + lasts)


def _decoded(container: Any, path: Path) -> Iterator[Any]:
    import av

    try:
        for number, picture in enumerate(container.decode(video=0)):
            if picture.is_corrupt:
                raise BundleError(f"is damaged: frame {number} cannot be decoded", where=path)
            yield picture
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BundleError(f"is damaged ({_said(error)})", where=path) from None


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
