"""What a dataset is: memory-mapped arrays, one per modality, a target and a split. Value types only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Kind(StrEnum):
    """What a modality's array means; decides front end, encoder and how a device reads files."""

    IMAGE = "image"  # (height, width) or (height, width, channels)
    AUDIO = "audio"  # (samples,)
    SEQUENCE = "sequence"  # (time, channels)
    VECTOR = "vector"  # (features,)
    VIDEO = "video"  # (time, height, width, channels)


@dataclass(frozen=True)
class ModalitySpec:
    """One named input of a sample: ``shape`` is that of one sample as stored, without the batch."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    sample_rate_hz: int | None = None

    @property
    def sample_bytes(self) -> int:
        """Bytes that one sample takes on disk."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk. Arrays stay memory-mapped; ``read`` brings only the samples asked for.

    Attributes:
        arrays: modality name to ``(samples, *shape)``.
        target: ``(samples,)`` int64 class numbers.
        groups: name of a grouping to ``(samples,)``; samples of one group never part in a split.
        explicit_split: ``(samples,)`` with 0 train, 1 val, 2 test, where the data came with a split.
        fingerprint: sha256 over the bytes of everything above.
    """

    name: str
    root: Path
    modalities: Mapping[str, ModalitySpec]
    arrays: Mapping[str, NDArray[Any]]
    classes: tuple[str, ...]
    target: NDArray[np.int64]
    fingerprint: str
    task: str = "classification"
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    explicit_split: NDArray[np.int64] | None = None
    licence: str = "not stated"
    source: str = ""

    def __len__(self) -> int:
        return len(self.target)

    def read(self, modality: str, ids: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Samples ``ids`` of one modality, as a device would deliver them.

        Integer audio becomes float32 in [-1, 1]; pictures of bytes stay as stored; the rest becomes float32.
        """
        spec = self.modalities[modality]
        raw = np.asarray(self.arrays[modality][ids])
        if spec.kind in (Kind.IMAGE, Kind.VIDEO) and raw.dtype == np.uint8:
            return raw
        if spec.kind is Kind.AUDIO and np.issubdtype(raw.dtype, np.integer):
            return raw.astype(np.float32) / float(-np.iinfo(raw.dtype).min)
        return raw.astype(np.float32)

    def class_counts(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(classes,)``: how many of ``ids`` belong to each class."""
        return np.bincount(self.target[ids], minlength=len(self.classes)).astype(np.int64)
