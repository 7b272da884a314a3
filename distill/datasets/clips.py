"""Video files as one array of clips: decoded once, row by row, never all in memory."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from apps.runtime.clips import ClipInfo, clip_info, read_clip
from apps.runtime.errors import BundleError
from mst_edge.core.errors import UserError
from mst_edge.core.extras import require_modules
from mst_edge.core.rows import npy_rows

_MOST_FRAMES, _SHORT_SIDE, _NAMED = 16, 96, 3


@dataclass(frozen=True)
class Clips:
    """What every clip becomes; 0 or empty is decided by looking at the files, see ``settle_clips``."""

    frames: int = 0
    size: tuple[int, ...] = ()
    channels: int = 0

    def write(self, array: Path, files: Sequence[Path]) -> Written:
        """Decodes ``files`` into ``array``, ``(files, frames, height, width, channels)`` uint8, and lists them in a CSV
        table beside it.

        Raises:
            UserError: a file holds no frame, is damaged or cut off; names it.
        """
        shape = (self.frames, *self.size, self.channels)
        infos = []
        with npy_rows(array, (len(files), *shape), np.uint8) as append:
            for file in files:
                try:
                    clip, info = read_clip(file, shape)
                except BundleError as error:
                    raise UserError(str(error)) from None
                append(clip[None])
                infos.append(info)
        written = Written(self.frames, tuple(files), tuple(infos), array.with_name(f"{array.stem}_files.csv"))
        written.list_files()
        return written


@dataclass(frozen=True)
class Written:
    """Clips as they were found: ``frames`` taken of each of ``files``."""

    frames: int
    files: tuple[Path, ...]
    infos: tuple[ClipInfo, ...]
    table: Path

    @property
    def rate_hz(self) -> int | None:
        """Frames taken per second of the median file; None below one, which nobody streams."""
        return round(self.frames / float(np.median([info.seconds for info in self.infos]))) or None

    def notes(self, name: str, table: Path) -> list[str]:
        """Where lengths differ, or files have fewer frames than are taken: what was done. ``table`` lists each."""
        counts = [info.frames for info in self.infos]
        notes = []
        if len(set(counts)) > 1:
            notes.append(
                f"{name}: of clips of {min(counts)} to {max(counts)} frames, {self.frames} at equal parts of each "
                f"were taken; {table} lists them"
            )
        short = [(file.name, count) for file, count in zip(self.files, counts, strict=True) if count < self.frames]
        if short:
            first = ", ".join(f"{file} ({count})" for file, count in short[:_NAMED])
            more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
            notes.append(f"{name}: frames come more than once in clips with fewer than {self.frames}: {first}{more}")
        return notes

    def list_files(self) -> None:
        """Writes a row per file: its size, frames and seconds."""
        with self.table.open("w", newline="", encoding="utf-8") as out:
            rows = csv.writer(out)
            rows.writerow(["file", "height", "width", "frames", "seconds"])
            for file, info in zip(self.files, self.infos, strict=True):
                rows.writerow([file, info.height, info.width, info.frames, f"{info.seconds:.3f}"])


def settle_clips(files: Sequence[Path], said: Clips) -> Clips:
    """``said`` with every open value decided by the files: as many frames as the shortest has, at most 16; the
    commonest size, at most 96 pixels on the short side; colour.

    Raises:
        UserError: a file is no video, or PyAV is missing.
    """
    require_modules("av")
    if not (said.frames and said.size):
        try:
            infos = [clip_info(file) for file in files]
        except BundleError as error:
            raise UserError(str(error)) from None
        height, width = Counter((info.height, info.width) for info in infos).most_common(1)[0][0]
        scale = min(1.0, _SHORT_SIDE / min(height, width))
        size = said.size or (max(1, round(height * scale)), max(1, round(width * scale)))
        said = replace(said, frames=said.frames or min(_MOST_FRAMES, *(info.frames for info in infos)), size=size)
    return replace(said, channels=said.channels or 3)
