"""Pictures out of video files, at given times. Needs PyAV (the extra ``video``)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from mst_edge.core.extras import require_modules


@dataclass(frozen=True)
class Box:
    """A part of a picture in pixels; ``right`` and ``bottom`` are the first column and row outside."""

    left: float
    top: float
    right: float
    bottom: float

    def inside(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Whole pixels (left, top, right, bottom) of what lies inside the picture.

        Raises:
            ValueError: nothing does.
        """
        left, right = (min(max(round(value), 0), width) for value in (self.left, self.right))
        top, bottom = (min(max(round(value), 0), height) for value in (self.top, self.bottom))
        if left >= right or top >= bottom:
            raise ValueError(f"{self} lies outside a picture of {width} x {height} pixels")
        return left, top, right, bottom


def frame_times(start_s: float, seconds: float, frames: int) -> NDArray[np.float64]:
    """``(frames,)`` middles of equal parts of a stretch of time, in seconds."""
    return start_s + (np.arange(frames) + 0.5) * seconds / frames


def read_frames(
    content: bytes, times_s: NDArray[np.float64], size: int, box: Box | None, where: object
) -> tuple[NDArray[np.uint8], float]:
    """RGB pictures nearest to ``times_s``, cut and resized, and the video's duration in seconds.

    A time before the first or after the last frame gets that one.

    Args:
        content: a whole video file.
        times_s: ascending, from the video's first frame on.
        box: what is cut out, clamped to the picture; None for the central square.

    Returns:
        ``(times, size, size, 3)`` uint8.

    Raises:
        UserError: the file is damaged or holds no frame, or the box lies outside; or PyAV is missing.
    """
    require_modules("av")
    import av

    chosen: list[NDArray[np.uint8]] = []
    last: tuple[float, Any] | None = None
    duration = 0.0
    try:
        with av.open(io.BytesIO(content)) as video:
            for time, frame in _frames(video):
                while len(chosen) < len(times_s) and time >= times_s[len(chosen)]:
                    wanted = times_s[len(chosen)]
                    nearest = frame if last is None or time - wanted <= wanted - last[0] else last[1]
                    chosen.append(_cut(nearest, size, box))
                duration = time + (time - last[0] if last else 0.0)
                last = time, frame
    except (av.error.FFmpegError, IndexError) as error:
        raise UserError(f"cannot be decoded ({error})", where=where, fix="fetch it again") from None
    except ValueError as error:
        raise UserError(str(error), where=where) from None
    if last is None:
        raise UserError("holds no video frame", where=where)
    missing = len(times_s) - len(chosen)
    return np.stack([*chosen, *[_cut(last[1], size, box)] * missing]), duration


def _frames(video: Any) -> Iterator[tuple[float, Any]]:
    """Seconds since the first frame, and the frame."""
    first = None
    stream = video.streams.video[0]
    for number, frame in enumerate(video.decode(stream)):
        time = number / float(stream.average_rate) if frame.time is None else float(frame.time)
        first = time if first is None else first
        yield time - first, frame


def _cut(frame: Any, size: int, box: Box | None) -> NDArray[np.uint8]:
    from PIL import Image

    pixels = frame.to_ndarray(format="rgb24")
    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    part = (box or Box(left, top, left + side, top + side)).inside(height, width)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=part))
