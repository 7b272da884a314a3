"""RAVDESS video: the audio-video clips 01-*.mp4 of each actor, and boxes around the faces in them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.datasets.raw.ravdess import ACTORS, Clip, clips_of, require_all
from distill.datasets.readers import RawFiles
from distill.datasets.sources import Home, Source
from distill.datasets.video import Box, frame_times, read_frames
from mst_edge.core.errors import UserError

_MAX_SECONDS_APART = 0.5  # of one performance's video and sound


@dataclass(frozen=True)
class Span:
    """The stretch of a clip that its sound was cut to, and how long the whole sound was."""

    start_s: float
    seconds: float
    clip_seconds: float


def read_faces(
    root: Path, fetch: str, clips: Sequence[Clip], spans: Sequence[Span], frames: int, size: int, boxes: bool
) -> Iterator[NDArray[np.uint8]]:
    """``(frames, size, size, 3)`` RGB of each clip, evenly over the stretch of its sound; one in memory at a time.

    Raises:
        UserError: a clip is missing, damaged, without frames, or not as long as its sound; names it.
    """
    box_of = read_boxes(BOXES.locate(root, fetch), clips) if boxes else {}
    with ExitStack() as stack:
        files_of = {
            actor: stack.enter_context(RawFiles(VIDEOS[actor].locate(root, fetch), (".mp4",)))
            for actor in sorted({clip.actor for clip in clips})
        }
        for actor, files in files_of.items():
            require_all(files, [clip.video for clip in clips if clip.actor == actor], "clips", files.path)
        for clip, span in zip(clips, spans, strict=True):
            files = files_of[clip.actor]
            where = files.where(clip.video)
            times = frame_times(span.start_s, span.seconds, frames)
            pictures, seconds = read_frames(files.content(clip.video), times, size, box_of.get(clip.video), where)
            if abs(seconds - span.clip_seconds) > _MAX_SECONDS_APART:
                raise UserError(
                    f"lasts {seconds:.2f} s, its sound {span.clip_seconds:.2f} s: cut off, or another performance",
                    where=where,
                )
            yield pictures


def read_boxes(path: Path, clips: Sequence[Clip]) -> Mapping[str, Box]:
    """The box of each clip from a CSV with columns clip, left, top, right, bottom (pixels).

    Raises:
        UserError: a column or a clip is missing, or a row does not hold a box; names it.
    """
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=path) from None
    sides = ("left", "top", "right", "bottom")
    absent = [name for name in ("clip", *sides) if name not in (rows.fieldnames or [])]
    if absent:
        raise UserError(f"has no column {absent[0]}", where=path)
    boxes = {}
    for number, row in enumerate(rows, start=2):
        try:
            box = Box(*(float(row[side]) for side in sides))
        except (ValueError, TypeError):
            raise UserError(f"not a box: {list(row.values())}", where=f"{path}:{number}") from None
        if not (box.left < box.right and box.top < box.bottom and math.isfinite(box.right + box.bottom)):
            raise UserError(f"an empty box: {box}", where=f"{path}:{number}")
        boxes[row["clip"]] = box
    require_all(boxes, [clip.video for clip in clips], "clips", path)
    return boxes


def _source(actor: int) -> Source:
    name = f"Video_Speech_Actor_{actor:02}"

    def check(path: Path) -> None:
        with RawFiles(path, (".mp4",)) as files:
            clips = clips_of([actor])
            require_all(files, [clip.video for clip in clips], "clips", path)
            for clip in clips:
                read_frames(files.content(clip.video), np.zeros(1), 8, None, files.where(clip.video))

    return Source(
        name=f"RAVDESS video of actor {actor}",
        files=(f"ravdess/{name}.zip", f"ravdess/{name}"),
        homes=(Home(f"https://zenodo.org/records/1188976/files/{name}.zip", f"ravdess/{name}.zip"),),
        check=check,
    )


def _check_boxes(path: Path) -> None:
    read_boxes(path, clips_of(ACTORS))


VIDEOS = {actor: _source(actor) for actor in ACTORS}
BOXES = Source(
    name="RAVDESS face boxes",
    files=("ravdess/face_boxes.csv",),
    homes=(),
    check=_check_boxes,
)
