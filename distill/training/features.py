"""Features of every sample, computed once by the front ends and memory-mapped from then on."""

from __future__ import annotations

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

from distill.datasets.builder import cache_root
from distill.datasets.spec import Dataset
from distill.frontends import Frontend
from distill.training.parallel import ALONE, Processes, gather_rows
from mst_edge.core.files import atomic_path, sha256_file, sha256_json

_BLOCK = 256
_MOST_LOGIT_BYTES = 64 << 20


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
    """Features, targets and split ids of one dataset under given front ends."""

    def __init__(
        self, dataset: Dataset, splits: Mapping[str, NDArray[np.int64]], frontends: Mapping[str, Frontend]
    ) -> None:
        self.dataset = dataset
        self.splits = splits
        self.frontends = frontends
        self._arrays = {
            name: _features(dataset, splits["train"], name, frontend) for name, frontend in frontends.items()
        }
        # What is read in place is label maps: they stay on disk, and become class numbers batch by batch.
        self._target = dataset.target

    @property
    def _logit_bytes(self) -> int:
        """Of one sample: a number per class and pixel."""
        pixels = math.prod(self.dataset.target.shape[1:]) if self.dataset.classes else 1
        return 4 * pixels * len(self.dataset.truth.names)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Feature shape of every modality."""
        return {name: frontend.feature_shape for name, frontend in self.frontends.items()}

    def target(self, split: str) -> Tensor:
        """``(samples, ...)`` targets of a split: all label maps of it, where the task is dense."""
        return self.targets(self.splits[split])

    def targets(self, ids: NDArray[np.int64]) -> Tensor:
        """Targets of the samples ``ids``, classes as int64."""
        values = np.asarray(self._target[ids])
        return torch.from_numpy(values if values.dtype.kind == "f" else values.astype(np.int64))

    def gather(self, ids: NDArray[np.int64], modalities: Sequence[str], device: torch.device) -> Batch:
        """The samples ``ids``, on ``device``."""
        inputs = {name: torch.from_numpy(self._arrays[name][ids]).to(device) for name in modalities}
        return Batch(torch.from_numpy(ids), inputs, self.targets(ids).to(device))

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
        """One epoch in an order that ``seed`` decides; a last batch of one sample joins the one before.

        The order is the same for any number of processes; each gets its own parts of every batch.

        Args:
            accumulate: parts that follow one another in each batch.
            skip: whole batches to leave out at the beginning.
        """
        order = np.random.default_rng(seed).permutation(self.splits[split])
        starts = list(range(0, len(order), batch_size))
        if len(starts) > 1 and len(order) - starts[-1] == 1:
            starts.pop()  # batch norm cannot learn from one sample
        for start, end in list(zip(starts, [*starts[1:], len(order)], strict=True))[skip:]:
            for part in processes.parts(start, end, accumulate):
                batch = self.gather(order[part.start : part.end], modalities, device)
                yield replace(batch, weight=part.weight, rows=part.rows, ends_step=part.ends_step)

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

        Fewer at a time than ``batch_size`` where the logits of label maps would take more than 64 MB.
        """
        ids = self.splits[split]
        batch_size = min(batch_size, max(1, _MOST_LOGIT_BYTES // self._logit_bytes))
        for start in range(0, len(ids), batch_size):
            for part in processes.parts(start, min(start + batch_size, len(ids)), 1):
                yield replace(self.gather(ids[part.start : part.end], modalities, device), rows=part.rows)


def _features(dataset: Dataset, train: NDArray[np.int64], name: str, frontend: Frontend) -> NDArray[Any]:
    """Fits the front end on ``train`` and returns ``(samples, *feature_shape)``, memory-mapped.

    Kept under a key of everything they depend on: data, training ids and the front end with its constants.
    """
    depends_on: dict[str, object] = {
        "data": dataset.fingerprint,
        "modality": name,
        "train": hashlib.sha256(train.tobytes()).hexdigest(),
        "frontend": frontend.key(),
        # Not a version number that someone may forget to raise: the code itself.
        "code": [sha256_file(path) for path in frontend.code],
    }
    folder = cache_root() / "features" / sha256_json(depends_on)[:16]
    if not folder.is_dir():
        _compute(dataset, train, name, frontend, folder)
    frontend.load(folder)
    return np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)


@torch.no_grad()
def _compute(dataset: Dataset, train: NDArray[np.int64], name: str, frontend: Frontend, folder: Path) -> None:
    frontend.fit(_raw_blocks(dataset, name, train))
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        shape = (len(dataset), *frontend.feature_shape)
        out = np.lib.format.open_memmap(
            temporary / "features.npy", mode="w+", dtype=frontend.feature_dtype, shape=shape
        )
        start = 0
        for raw in _raw_blocks(dataset, name, np.arange(len(dataset))):
            out[start : start + len(raw)] = frontend(torch.from_numpy(frontend.host(raw))).numpy()
            start += len(raw)
        out.flush()
        frontend.save(temporary)


def _raw_blocks(dataset: Dataset, name: str, ids: NDArray[np.int64]) -> Iterable[NDArray[Any]]:
    for start in range(0, len(ids), _BLOCK):
        yield dataset.read(name, ids[start : start + _BLOCK])
