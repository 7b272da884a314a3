"""Video files made on the spot."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx"}


def write_video(path: Path, frames: NDArray[np.uint8], rate: int = 10) -> Path:
    """A video file of ``(time, height, width, 3)`` RGB frames, ``rate`` per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        container.start_encoding()  # also where nothing follows
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def grey_steps(count: int, height: int = 32, width: int = 48, step: int = 10) -> NDArray[np.uint8]:
    """Frames that can be told apart: frame ``n`` is grey ``step * n``, with a white block in its upper left corner."""
    frames = np.zeros((count, height, width, 3), np.uint8) + (step * np.arange(count))[:, None, None, None]
    frames[:, :8, :16] = 250
    return frames.astype(np.uint8)


def numbers(clip: NDArray[np.uint8], step: int = 10) -> list[int]:
    """Which frames of ``grey_steps`` a clip ``(time, height, width, channels)`` shows."""
    return [round(float(picture[-4:, -4:].mean()) / step) for picture in clip]
