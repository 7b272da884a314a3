"""What was found, drawn into the picture, and written as pictures or a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.digits_camera.ink import Box
from apps.runtime import BundleError

_SURE, _UNSURE, _PLATE, _WORDS = (38, 166, 91), (217, 115, 13), (20, 22, 25), (255, 255, 255)


def marked_picture(pixels: NDArray[np.uint8], found: Sequence[tuple[Box, str, float]], line: str) -> NDArray[np.uint8]:
    """``pixels`` ``(H, W, 3)`` with a box around each digit, what it was taken for and how surely, and a line below.

    Args:
        found: box, label and confidence (0 to 1) of each.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    size = max(11, round(min(picture.size) / 26))
    font = ImageFont.load_default(size)

    def plate(left: float, top: float, words: str, colour: tuple[int, int, int]) -> None:
        edges = draw.textbbox((left, top), words, font=font)
        draw.rectangle((edges[0] - 3, edges[1] - 3, edges[2] + 3, edges[3] + 3), fill=colour)
        draw.text((left, top), words, fill=_WORDS, font=font)

    for box, label, confidence in found:
        colour = _SURE if confidence >= 0.5 else _UNSURE
        edges = (box.left - 2, box.top - 2, box.right + 1, box.bottom + 1)
        draw.rectangle(edges, outline=colour, width=max(2, size // 8))
        plate(max(3, box.left), max(3, box.top - size - 8), f"{label} {confidence:.0%}", colour)
    plate(6, picture.height - size - 8, line, _PLATE)
    return np.asarray(picture, dtype=np.uint8)


class Output(AbstractContextManager["Output"]):
    """A folder that marked pictures are written to: single ones as PNG, those of one source in a row as MP4."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BundleError(f"cannot be made ({error.strerror})", where=folder) from None
        self._folder, self._used = folder, set[str]()

    def picture(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """Writes one picture."""
        from PIL import Image

        with _whole(self._free(name, ".png")) as path:
            Image.fromarray(pixels).save(path, format="PNG")

    def film(self, name: str, rate: float) -> Film:
        """A video to be, of ``rate`` pictures per second."""
        return Film(self._free(name, ".mp4"), rate)

    def _free(self, name: str, suffix: str) -> Path:
        """A file of this run's own: two sources may have one name."""
        number, chosen = 1, f"{name}{suffix}"
        while chosen in self._used:
            number += 1
            chosen = f"{name}-{number}{suffix}"
        self._used.add(chosen)
        return self._folder / chosen

    def __exit__(self, *_: object) -> None:
        self._used.clear()


class Film(AbstractContextManager["Film"]):
    """A video that is there, whole, once the block ends, however it ends."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, max(1, round(rate))
        self._stack = ExitStack()
        self._container: Any = None
        self._stream: Any = None

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """The next picture ``(H, W, 3)``; later ones are of the first one's size."""
        import av

        if self._container is None:
            path = self._stack.enter_context(_whole(self._path))
            self._container = self._stack.enter_context(av.open(str(path), "w", format="mp4"))
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=self._rate)
            self._stream.width, self._stream.height = pixels.shape[1] // 2 * 2, pixels.shape[0] // 2 * 2
            self._stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
        self._write(frame)

    def _write(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __exit__(self, *_: object) -> None:
        if self._container is not None:
            self._write(None)
        self._stack.close()


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path``; what was written there takes its place, or goes where an exception came."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
