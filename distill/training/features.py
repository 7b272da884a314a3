"""Features of every sample, computed once by the front ends and memory-mapped from then on."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.augment import Augmentation, epoch_draws
from distill.datasets.spec import Dataset
from distill.frontends import Frontend
from distill.training.parallel import ALONE, Processes, gather_rows
from mst_edge.core.cache import cache_root, entry_folder, look_up, new_entry
from mst_edge.core.files import sha256_file
from mst_edge.core.rows import npy_rows

_MOST_LOGIT_BYTES = _MOST_FEATURE_BYTES = 64 << 20
_FEATURES = "features.npy"


@dataclass(frozen=True)
class Batch:
    """Some samples: ``ids`` ``(B,)``, features by modality ``(B, *shape)``, ``target`` as the task has it.

    In training it may be one part of the batch that the optimiser sees: the rest is computed by other processes,
    or after it.

    Attributes:
        weight: share of the part in the gradient, times the number of processes it is shared out over.
        rows: samples of each process, where the part is shared out.
        ends_step: whether the optimiser steps after this part.
    """

    ids: Tensor
    inputs: Mapping[str, Tensor]
    target: Tensor
    weight: float = 1.0
    rows: tuple[int, ...] = ()
    ends_step: bool = True

    def gather(self, values: Tensor) -> Tensor:
        """``(B, ...)`` of this process's samples to that of all processes' samples, in the batch's order.

        For losses that compare samples of a batch with one another; a mean over samples needs no gathering.
        Gradients flow back to every process.
        """
        return gather_rows(values, self.rows) if self.rows else values


class FeatureStore:
    """Features, targets and split ids of one dataset under given front ends.

    Training batches of modalities with an augmentation are changed at random; nothing else ever is.
    """

    def __init__(
        self,
        dataset: Dataset,
        splits: Mapping[str, NDArray[np.int64]],
        frontends: Mapping[str, Frontend],
        augmentations: Mapping[str, Augmentation] | None = None,
    ) -> None:
        self.dataset = dataset
        self.splits = splits
        self.frontends = frontends
        self._folders = {name: _features(dataset, splits["train"], name, front) for name, front in frontends.items()}
        self._arrays = {
            name: np.load(folder / _FEATURES, mmap_mode="r", allow_pickle=False)
            for name, folder in self._folders.items()
            if not frontends[name].in_place
        }
        self._augmentations = {
            name: chosen.on(frontends[name].feature_shape)
            for name, chosen in (augmentations or {}).items()
            if chosen.is_on
        }
        # What is read in place is label maps: they stay on disk, and become class numbers batch by batch.
        self._target = dataset.target

    def with_train(self, ids: NDArray[np.int64]) -> FeatureStore:
        """The same features, of which only the samples ``ids`` train."""
        other = copy.copy(self)
        other.splits = {**self.splits, "train": ids}
        return other

    @property
    def _logit_bytes(self) -> int:
        """Of one sample: a number per class and pixel."""
        pixels = math.prod(self.dataset.target.shape[1:]) if self.dataset.classes else 1
        return 4 * pixels * len(self.dataset.truth.names)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Feature shape of every modality."""
        return {name: frontend.feature_shape for name, frontend in self.frontends.items()}

    def identity(self, modality: str) -> str:
        """Hash of everything that a modality's features depend on: data, training ids, front end, code."""
        return self._folders[modality].name

    def augments(self, modalities: Sequence[str]) -> bool:
        """Whether training batches of any of these modalities are changed at random."""
        return any(name in self._augmentations for name in modalities)

    def target(self, split: str) -> Tensor:
        """``(samples, ...)`` targets of a split: all label maps of it, where the task is dense."""
        return self.targets(self.splits[split])

    def targets(self, ids: NDArray[np.int64]) -> Tensor:
        """Targets of the samples ``ids``, classes as int64."""
        values = np.asarray(self._target[ids])
        return torch.from_numpy(values if values.dtype.kind == "f" else values.astype(np.int64))

    def gather(self, ids: NDArray[np.int64], modalities: Sequence[str], device: torch.device) -> Batch:
        """The samples ``ids``, on ``device``."""
        inputs = {name: self._read(name, ids).to(device) for name in modalities}
        return Batch(torch.from_numpy(ids), inputs, self.targets(ids).to(device))

    def steps(self, split: str, batch_size: int) -> int:
        """How many batches one epoch of ``shuffled`` has."""
        return len(_starts(len(self.splits[split]), batch_size))

    @torch.no_grad()
    def _read(self, name: str, ids: NDArray[np.int64]) -> Tensor:
        """Features of the samples ``ids``: as they were kept, or made of the samples here."""
        if name in self._arrays:
            return torch.from_numpy(self._arrays[name][ids])
        return self.frontends[name](torch.from_numpy(self.dataset.read(name, ids)))

    def shuffled(
        self,
        split: str,
        batch_size: int,
        seed: Sequence[int],
        modalities: Sequence[str],
        device: torch.device,
        *,
        processes: Processes = ALONE,
        accumulate: int = 1,
        skip: int = 0,
    ) -> Iterator[Batch]:
        """One epoch for training, augmented, in an order that ``seed`` decides; a last batch of one joins the one
        before.

        The order is the same for any number of processes; each gets its own parts of every batch.

        Args:
            accumulate: parts that follow one another in each batch.
            skip: whole batches to leave out at the beginning.
        """
        order = np.random.default_rng(seed).permutation(self.splits[split])
        starts = _starts(len(order), batch_size)
        draws = {
            name: epoch_draws(self._augmentations[name], seed, name, len(order))
            for name in modalities
            if name in self._augmentations
        }
        for start, end in list(zip(starts, [*starts[1:], len(order)], strict=True))[skip:]:
            for part in processes.parts(start, end, accumulate):
                batch = self.gather(order[part.start : part.end], modalities, device)
                batch = self._augmented(batch, {name: rows[part.start : part.end] for name, rows in draws.items()})
                yield replace(batch, weight=part.weight, rows=part.rows, ends_step=part.ends_step)

    def _augmented(self, batch: Batch, draws: Mapping[str, NDArray[np.float32]]) -> Batch:
        """The batch changed as ``draws`` say, ``(batch, draws)`` numbers per augmented modality."""
        if not draws:
            return batch
        changed = {
            name: self._augmentations[name](batch.inputs[name], torch.from_numpy(rows).to(batch.inputs[name].device))
            for name, rows in draws.items()
        }
        return replace(batch, inputs={**batch.inputs, **changed})

    def in_order(
        self,
        split: str,
        batch_size: int,
        modalities: Sequence[str],
        device: torch.device,
        *,
        processes: Processes = ALONE,
    ) -> Iterator[Batch]:
        """All samples of a split, in the order of its ids; of each batch, every process gets its own rows.

        Fewer at a time than ``batch_size`` where features, or the logits of label maps, would take more than 64 MB.
        """
        ids = self.splits[split]
        feature_bytes = 4 * sum(math.prod(self.shapes[name]) for name in modalities) or 1
        batch_size = min(batch_size, _MOST_LOGIT_BYTES // self._logit_bytes, _MOST_FEATURE_BYTES // feature_bytes) or 1
        for start in range(0, len(ids), batch_size):
            for part in processes.parts(start, min(start + batch_size, len(ids)), 1):
                yield replace(self.gather(ids[part.start : part.end], modalities, device), rows=part.rows)


def _starts(samples: int, batch_size: int) -> list[int]:
    """Where the batches of an epoch begin."""
    starts = list(range(0, samples, batch_size))
    if len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()  # batch norm cannot learn from one sample
    return starts


def _features(dataset: Dataset, train: NDArray[np.int64], name: str, frontend: Frontend) -> Path:
    """Fits the front end on ``train`` and returns the cache's folder of ``(samples, *feature_shape)``, which is empty
    where they are made of samples in place.

    Kept under a key of everything they depend on: data, training ids and the front end with its constants.

    Raises:
        UserError: the disk is full.
    """
    depends_on: dict[str, object] = {
        "data": dataset.fingerprint,
        "modality": name,
        "train": hashlib.sha256(train.tobytes()).hexdigest(),
        "frontend": frontend.key(),
        # Not a version number that someone may forget to raise: the code itself.
        "code": [sha256_file(path) for path in frontend.code],
    }
    folder = entry_folder(cache_root(), "features", depends_on)
    what = f"{name} of {dataset.name}, {len(dataset)} samples"
    if not look_up(folder, what, depends_on):
        with new_entry(folder, what, depends_on) as temporary:
            _compute(dataset, train, name, frontend, temporary)
    frontend.load(folder)
    return folder


@torch.no_grad()
def _compute(dataset: Dataset, train: NDArray[np.int64], name: str, frontend: Frontend, folder: Path) -> None:
    frontend.fit(_raw_blocks(dataset, name, train))
    frontend.save(folder)
    if frontend.in_place:
        return
    shape = (len(dataset), *frontend.feature_shape)
    with npy_rows(folder / _FEATURES, shape, np.dtype(frontend.feature_dtype)) as append:
        for raw in _raw_blocks(dataset, name, np.arange(len(dataset))):
            append(frontend(torch.from_numpy(frontend.host(raw))).numpy())


def _raw_blocks(dataset: Dataset, name: str, ids: NDArray[np.int64]) -> Iterable[NDArray[Any]]:
    rows = dataset.modalities[name].block_rows
    for start in range(0, len(ids), rows):
        yield dataset.read(name, ids[start : start + rows])
