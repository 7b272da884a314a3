"""CMU-MOSI and CMU-MOSEI as the CMU Multimodal SDK keeps them: computational sequences (``.csd``, HDF5 inside).

A file holds one kind of feature: below its one root, ``data/<video>/features`` ``(rows, channels)`` and
``data/<video>/intervals`` ``(rows, 2)`` in seconds. What belongs to an utterance is cut out here, by its label's
interval.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.raw.cmu_sentiment import Utterances, require_range
from distill.datasets.raw.hdf5 import Hdf5File
from distill.datasets.sources import Source
from mst_edge.core.errors import UserError

FOLDS = "*_std_folds.py"
_FILES = {
    "labels": ("labels",),
    "words": ("timestampedwords",),
    "vision": ("visual",),
    "audio": ("covarep", "opensmile"),
}
_FOLDS = ("standard_train_fold", "standard_valid_fold", "standard_test_fold")
_SILENCE = "sp"


@dataclass(frozen=True)
class Segments:
    """What is left of the files: utterances, where each lies, and how many labelled ones are not among them.

    Attributes:
        spans: video, start and end in seconds of each utterance.
        left_out: labelled utterances without a word, without a row of a sequence, or of a video in no fold.
    """

    utterances: Utterances
    spans: Sequence[tuple[str, float, float]]
    left_out: int


def read_segments(folder: Path, frames: int, *, official: bool) -> Segments:
    """Reads words and labels, and looks which utterances have rows of every sequence.

    Args:
        frames: rows that ``read_cut`` gives of each utterance.
        official: videos are parted as the SDK's file of folds says; else all are in part 0.

    Raises:
        UserError: a file is missing or holds something else, or a label is out of range; names the utterance.
    """
    spans, texts, labels, splits = [], [], [], []
    labelled = 0
    parts = _folds(folder) if official else {}
    with ExitStack() as stack:
        marks, words, vision, audio = (stack.enter_context(_open(folder, kind)) for kind in _FILES)
        shapes: dict[str, tuple[int, ...]] = {
            "vision": (frames, vision.channels()),
            "audio": (frames, audio.channels()),
        }
        for video in marks.videos:
            own, ends = marks.features(video)[:, 0], marks.intervals(video)
            require_range(own, f"video {video}", marks.file.path)
            labelled += len(own)
            if (official and video not in parts) or not all(video in file.videos for file in (words, vision, audio)):
                continue
            times, spoken = words.intervals(video), [_text(word) for word in words.features(video)]
            rows = [file.intervals(video) for file in (vision, audio)]
            for label, (start, end) in zip(own, ends, strict=True):
                said = [spoken[k] for k in _within(times, start, end) if spoken[k] not in ("", _SILENCE)]
                if not said or not all(len(_within(known, start, end)) for known in rows):
                    continue
                spans.append((video, float(start), float(end)))
                texts.append(" ".join(said))
                labels.append(label)
                splits.append(parts.get(video, 0))
    if not spans:
        raise UserError("no utterance has words, rows of every sequence and a part", where=folder)
    numbers = np.array(labels, np.float32)
    held = Utterances(texts, numbers, [video for video, _, _ in spans], np.array(splits, np.int64), shapes)
    return Segments(held, spans, labelled - len(spans))


def folder_source(name: str) -> Source:
    """The folder of ``cmu_mosi`` or ``cmu_mosei``."""

    def check(folder: Path) -> None:
        read_segments(folder, 1, official=False)

    return Source(f"{name} as .csd files", (f"{name}/csd",), (), check)


def read_cut(folder: Path, name: str, segments: Segments) -> Iterator[NDArray[np.float32]]:
    """``(frames, channels)`` of each utterance: its rows, with zeros behind; where there are more, the means of equally
    long stretches. What is no finite number is 0: COVAREP has the logarithm of silence."""
    frames, _ = segments.utterances.shapes[name]
    current, features, times = "", np.zeros((0, 0)), np.zeros((0, 2))
    with _open(folder, name) as file:
        for video, start, end in segments.spans:
            if video != current:
                current, features, times = video, file.features(video), file.intervals(video)
            found = np.nan_to_num(features[_within(times, start, end)].astype(np.float64), posinf=0, neginf=0)
            yield brought_to(found, frames).astype(np.float32)


def brought_to(rows: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    """``(n, channels)`` to ``(frames, channels)``."""
    if len(rows) > frames:
        ends = np.linspace(0, len(rows), frames + 1).round().astype(int)
        return np.add.reduceat(rows, ends[:-1]) / np.diff(ends)[:, None]
    return np.pad(rows, ((0, frames - len(rows)), (0, 0)))


class _Sequences:
    """One ``.csd`` file."""

    def __init__(self, file: Hdf5File) -> None:
        self.file = file
        roots = file.names()
        if len(roots) != 1 or "data" not in file.names(roots[0]):
            raise UserError("is no computational sequence: expected one root with data in it", where=file.path)
        self._data = f"{roots[0]}/data"
        self.videos = dict.fromkeys(sorted(file.names(self._data)))

    def features(self, video: str) -> NDArray[Any]:
        """``(rows, channels)``."""
        found = self.file.whole(f"{self._data}/{video}/features")
        return found.reshape(len(found), -1)

    def intervals(self, video: str) -> NDArray[np.float64]:
        """``(rows, 2)`` in seconds."""
        found = self.file.whole(f"{self._data}/{video}/intervals")
        rows = self.file.shape(f"{self._data}/{video}/features")[0]
        if found.shape != (rows, 2):
            raise UserError(
                f"intervals of {video} have shape {found.shape}, expected ({rows}, 2), one per row of its features",
                where=self.file.path,
            )
        return found

    def channels(self) -> int:
        """Of the first video, which all must share."""
        widths = {video: self.file.shape(f"{self._data}/{video}/features")[-1] for video in self.videos}
        odd = [video for video, width in widths.items() if width != next(iter(widths.values()))]
        if odd or not widths:
            problem = f"{odd[0]} has {widths[odd[0]]} channels, others another number" if odd else "holds no video"
            raise UserError(problem, where=self.file.path)
        return next(iter(widths.values()))

    def __enter__(self) -> _Sequences:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.__exit__()


def _open(folder: Path, kind: str) -> _Sequences:
    """The one file of a kind, told by its name as it is published."""
    named = [file for file in sorted(folder.glob("*.csd")) if any(part in file.name.lower() for part in _FILES[kind])]
    if len(named) != 1:
        found = ", ".join(file.name for file in named) or "none"
        raise UserError(
            f"expected one .csd file of {kind}, with {' or '.join(_FILES[kind])} in its name, found {found}",
            where=folder,
            fix="keep the one that is to be read there",
        )
    return _Sequences(Hdf5File(named[0]))


def _folds(folder: Path) -> dict[str, int]:
    """Video to part, from the SDK's file of folds: a Python file of three lists, of which no line is run."""
    (path, *_) = (*sorted(folder.glob(FOLDS)), None)
    if path is None:
        raise UserError(
            f"has no {FOLDS}, which says how videos are parted",
            where=folder,
            fix="put the SDK's file there, or set dataset.split.by: video",
        )
    lists: dict[str, Any] = {}
    try:
        for line in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                lists[line.targets[0].id] = ast.literal_eval(line.value)
        found = [(str(video), part) for part, name in enumerate(_FOLDS) for video in lists[name]]
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise UserError(f"does not hold the lists {', '.join(_FOLDS)} ({error})", where=path) from None
    parts = dict(found)
    twice = [video for video, part in found if parts[video] != part]
    if twice:
        raise UserError(f"video {twice[0]} is in two folds", where=path)
    return parts


def _within(intervals: NDArray[np.float64], start: float, end: float) -> NDArray[np.int64]:
    """Numbers of the rows whose middle lies in ``[start, end)``."""
    middle = intervals.mean(axis=1)
    return np.flatnonzero((middle >= start) & (middle < end))


def _text(row: NDArray[Any]) -> str:
    word = row.reshape(-1)[0]
    return (word.decode("utf-8", errors="replace") if isinstance(word, bytes) else str(word)).strip()
