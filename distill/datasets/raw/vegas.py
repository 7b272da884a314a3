"""VEGAS (Zhou and others, CVPR 2018) as features of clips: the file that Zeng and others give out (TOMM 16(3), 2020).

``vegas_feature.h5`` holds ``visual_train`` (N, 1024) by Inception-V3, ``audio_train`` (N, 128) by VGGish, ``lab_train``
(N,) 0..9, and the same of a test part. Which number is which class it does not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.datasets.raw import hdf5
from distill.datasets.raw.hdf5 import Hdf5File
from distill.datasets.sources import Source
from mst_edge.core.errors import UserError

WIDTHS: Mapping[str, int] = {"visual": 1024, "audio": 128}
CLASSES = 10
_PARTS = ("train", "test")


@dataclass(frozen=True)
class Clips:
    """``(clips,)`` class numbers, and which part of the file each clip is of: 0 train, 1 test."""

    labels: NDArray[np.int64]
    part: NDArray[np.int64]


def read_clips(path: Path) -> Clips:
    """Reads the labels and checks the shapes of all else.

    Raises:
        UserError: an array is missing or of another shape, parts have unequal lengths, or a label is out of range.
    """
    labels, parts = [], []
    with Hdf5File(path) as file:
        for number, part in enumerate(_PARTS):
            own = file.whole(f"lab_{part}").reshape(-1)
            for name, width in WIDTHS.items():
                shape = file.shape(f"{name}_{part}")
                if shape != (len(own), width) or not len(own):
                    raise UserError(
                        f"{name}_{part} has shape {shape}, expected ({len(own)}, {width}), a row per label", where=path
                    )
            bad = np.flatnonzero(~np.isin(own, range(CLASSES)))
            if len(bad):
                raise UserError(
                    f"label {own[bad[0]]:g} of row {bad[0]} of lab_{part} is none of 0..{CLASSES - 1}", where=path
                )
            labels.append(own.astype(np.int64))
            parts.append(np.full(len(own), number))
    return Clips(np.concatenate(labels), np.concatenate(parts))


def read_features(path: Path, modality: str) -> Iterator[NDArray[np.float32]]:
    """Features of each clip of train and test, one after another.

    Raises:
        UserError: one holds NaN or infinity.
    """
    return hdf5.read_features(path, [f"{modality}_{part}" for part in _PARTS])


def _check(path: Path) -> None:
    read_clips(path)
    for modality in WIDTHS:
        for _ in read_features(path, modality):
            pass


FEATURES = Source("VEGAS features", ("vegas/vegas_feature.h5",), (), _check)
