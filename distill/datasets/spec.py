"""What a dataset is: memory-mapped arrays, one per modality, a target and a split. Value types only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.target import CLASSIFICATION, REGRESSION, Target

_BLOCK_ROWS, _BLOCK_BYTES = 256, 32 << 20


class Kind(StrEnum):
    """What a modality's array means; decides front end, encoder and how a device reads files."""

    IMAGE = "image"  # (height, width) or (height, width, channels)
    AUDIO = "audio"  # (samples,)
    SEQUENCE = "sequence"  # (time, channels)
    VECTOR = "vector"  # (features,)
    VIDEO = "video"  # (time, height, width, channels)
    TEXT = "text"  # (): one string


@dataclass(frozen=True)
class ModalitySpec:
    """One named input of a sample: ``shape`` is that of one sample as stored, without the batch."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    sample_rate_hz: int | None = None

    @property
    def layout(self) -> str:
        """Shape and type of one sample, for people."""
        if self.kind is Kind.TEXT:
            return f"up to {np.dtype(self.dtype).itemsize // np.dtype('U1').itemsize} characters"
        rate = f", {self.sample_rate_hz} Hz" if self.sample_rate_hz else ""
        return f"{self.shape} {self.dtype}{rate}"

    @property
    def sample_bytes(self) -> int:
        """Bytes that one sample takes on disk."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def block_rows(self) -> int:
        """How many samples are brought to memory together: 256, fewer where they would take more than 32 MB."""
        return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(1, self.sample_bytes)))


SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk. Arrays stay memory-mapped; ``read`` brings only the samples asked for.

    Attributes:
        arrays: modality name to ``(samples, *shape)``.
        truth: what is to be predicted: task, names, and the values that ``target`` gives.
        groups: name of a grouping to ``(samples,)``; samples of one group never part in a split.
        explicit_split: ``(samples,)`` with 0 train, 1 val, 2 test, where the data came with a split.
        fingerprint: sha256 over the bytes of everything above.
        notes: what had to be done to files, for people.
    """

    name: str
    root: Path
    modalities: Mapping[str, ModalitySpec]
    arrays: Mapping[str, NDArray[Any]]
    truth: Target
    fingerprint: str
    groups: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    explicit_split: NDArray[np.int64] | None = None
    licence: str = "not stated"
    source: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.truth.values)

    @property
    def task(self) -> str:
        """``classification``, ``segmentation`` or ``regression``."""
        return self.truth.task

    @property
    def target(self) -> NDArray[Any]:
        """Classes ``(samples,)``, label maps ``(samples, H, W)`` or numbers ``(samples, names)``."""
        return self.truth.values

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where numbers are predicted."""
        return () if self.task == REGRESSION else self.truth.names

    @property
    def strata(self) -> NDArray[np.int64]:
        """``(samples,)`` what a split keeps in proportion: the class of each sample, or the same for all."""
        if self.task == CLASSIFICATION:
            return np.asarray(self.target)
        return np.zeros(len(self), dtype=np.int64)

    def target_statistics(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each number to be regressed, over the samples ``ids``."""
        values = self.target[ids].astype(np.float64)
        return values.mean(axis=0), values.std(axis=0)

    def read(self, modality: str, ids: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Samples ``ids`` of one modality, as a device would deliver them.

        Integer audio becomes float32 in [-1, 1]; pictures of bytes and texts stay as stored; the rest becomes
        float32.
        """
        spec = self.modalities[modality]
        raw = np.asarray(self.arrays[modality][ids])
        if spec.kind is Kind.TEXT or (spec.kind in (Kind.IMAGE, Kind.VIDEO) and raw.dtype == np.uint8):
            return raw
        if spec.kind is Kind.AUDIO and np.issubdtype(raw.dtype, np.integer):
            return raw.astype(np.float32) / float(-np.iinfo(raw.dtype).min)
        return raw.astype(np.float32)

    def class_counts(self, ids: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """``(classes,)``: how many of ``ids``, or of their labelled pixels, belong to each class."""
        if self.truth.class_pixels is not None:
            return self.truth.class_pixels[ids].sum(axis=0)
        return np.bincount(self.target[ids], minlength=len(self.classes)).astype(np.int64)
