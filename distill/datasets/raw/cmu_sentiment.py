"""CMU-MOSI and CMU-MOSEI (Zadeh and others, 2016 and 2018) as features per utterance, in the layout of MMSA.

What is passed round are pickles; what is read here are the same arrays in HDF5: groups ``train``, ``valid`` and
``test`` of ``raw_text``, ``vision``, ``audio``, ``regression_labels``, ``id`` and, where sequences were not aligned,
``vision_lengths`` and ``audio_lengths``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.raw import hdf5
from distill.datasets.raw.hdf5 import Hdf5File
from distill.datasets.sources import Source
from mst_edge.core.errors import UserError

SEQUENCES = ("vision", "audio")
RANGE = 3  # of the label, to both sides
_PARTS = ("train", "valid", "test")
_BETWEEN = "$_$"  # of video and segment in an id


@dataclass(frozen=True)
class Utterances:
    """Everything but the sequences: texts, labels ``(N,)``, videos and splits (0, 1, 2) of all utterances.

    Attributes:
        shapes: modality to ``(time, channels)`` of one utterance.
    """

    texts: list[str]
    labels: NDArray[np.float32]
    videos: list[str]
    splits: NDArray[np.int64]
    shapes: dict[str, tuple[int, ...]]


def read_utterances(path: Path) -> Utterances:
    """Reads and checks all but the sequences' values.

    Raises:
        UserError: an array is missing, arrays have unequal lengths, a sequence has no frames, or a label is out of
            range; names the part and the first bad utterance.
    """
    texts: list[str] = []
    videos: list[str] = []
    labels, splits, shapes = [], [], []
    with Hdf5File(path) as file:
        for number, part in enumerate(_PARTS):
            own = _labels(file, part)
            _require_equal_lengths(file, part, len(own))
            shapes.append({name: _frames(file, part, name, len(own)) for name in SEQUENCES})
            if shapes[-1] != shapes[0]:
                raise UserError(f"frames of {part} are {shapes[-1]}, of train {shapes[0]}", where=path)
            texts += file.texts(f"{part}/raw_text")
            videos += [name.partition(_BETWEEN)[0] for name in file.texts(f"{part}/id")]
            labels.append(own)
            splits.append(np.full(len(own), number))
    return Utterances(texts, np.concatenate(labels).astype(np.float32), videos, np.concatenate(splits), shapes[0])


def read_sequences(path: Path, modality: str) -> Iterator[NDArray[np.float32]]:
    """``(time, channels)`` of each utterance of train, validation and test, one after another.

    Raises:
        UserError: one holds NaN or infinity.
    """
    return hdf5.read_features(path, [f"{part}/{modality}" for part in _PARTS])


def feature_source(name: str) -> Source:
    """The feature file of ``cmu_mosi`` or ``cmu_mosei``, or the pickle that it has to be made from."""

    def check(path: Path) -> None:
        read_utterances(path)
        for modality in SEQUENCES:
            for _ in read_sequences(path, modality):
                pass

    files = (f"{name}/{name}.h5", f"{name}/aligned_50.pkl", f"{name}/unaligned_50.pkl")
    return Source(f"{name} features", files, (), check)


def _labels(file: Hdf5File, part: str) -> NDArray[Any]:
    labels = file.whole(f"{part}/regression_labels").reshape(-1)
    require_range(labels, part, file.path)
    if not len(labels):
        raise UserError(f"{part} holds no utterances", where=file.path)
    return labels


def require_range(labels: NDArray[Any], part: str, path: Path) -> None:
    """Labels ``(n,)`` of a part of the data are on the scale.

    Raises:
        UserError: names the first that is not.
    """
    bad = np.flatnonzero(~(np.abs(labels) <= RANGE))  # NaN is not in range either
    if len(bad):
        raise UserError(
            f"label {labels[bad[0]]:g} of utterance {bad[0]} of {part} is out of the ordinal range -{RANGE}..{RANGE}",
            where=path,
            fix="drop that utterance",
        )


def _require_equal_lengths(file: Hdf5File, part: str, count: int) -> None:
    for name in ("raw_text", "id", *SEQUENCES):
        held = file.shape(f"{part}/{name}")
        if held[:1] != (count,):
            raise UserError(f"{part}/{name} holds {held[0]} utterances, regression_labels {count}", where=file.path)


def _frames(file: Hdf5File, part: str, name: str, count: int) -> tuple[int, ...]:
    _, *frames = file.shape(f"{part}/{name}")
    if len(frames) != 2 or 0 in frames:
        raise UserError(
            f"{part}/{name} has frames of shape {tuple(frames)}, expected (time, channels)", where=file.path
        )
    if f"{part}/{name}_lengths" in file:
        lengths = file.whole(f"{part}/{name}_lengths").reshape(-1)
        if len(lengths) != count:
            raise UserError(f"{part}/{name}_lengths holds {len(lengths)} utterances, not {count}", where=file.path)
        bad = np.flatnonzero((lengths < 1) | (lengths > frames[0]))
        if len(bad):
            raise UserError(
                f"{name} of utterance {bad[0]} of {part} has {lengths[bad[0]]} frames, expected 1..{frames[0]}",
                where=file.path,
                fix="leave that utterance out",
            )
    return tuple(frames)
