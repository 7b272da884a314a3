"""What frozen networks say: once per sample where samples always look the same, once per batch where they do not."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.identity import SourceUnknownError, network_identity
from distill.suffix import Tensors, has_one_row_per_sample
from distill.training.features import Batch, FeatureStore
from distill.training.phase import EVAL_BATCH, Session
from mst_edge.core.cache import cache_root, entry_folder, look_up, make_room, new_entry
from mst_edge.core.files import read_json, write_json
from mst_edge.core.rows import Append, npy_rows

KIND = "tables"
SPLITS = ("train", "val")
_ON_GPU_BYTES = 256 << 20
_DTYPES = "dtypes.json"


@dataclass(frozen=True)
class Frozen:
    """A function of features that never changes, because its networks are frozen and in eval mode.

    Attributes:
        what: for people who look into the cache.
        compute: features by modality to tensors ``(batch, ...)``.
        reads: modalities that ``compute`` needs.
        networks: whose weights, settings and code decide what it says.
        facts: what else decides, JSON-able: layers, statistics.
    """

    what: str
    compute: Callable[[Mapping[str, Tensor]], Tensors]
    reads: tuple[str, ...]
    networks: Sequence[nn.Module]
    facts: Mapping[str, Any] = field(default_factory=dict)


def as_logits(z: Tensor) -> Tensor:
    """Logits as they are kept: float32; dense ones ``(batch, C, ...)`` float16, which halves the disk they take."""
    return z.float() if z.ndim == 2 else z.half()


@dataclass(eq=False)
class Answers:
    """What a frozen function says of a batch, without a gradient. Any training or validation batch may be asked about.

    Attributes:
        kept: the tables that it is read from, computed at the first question; None where each batch is computed.
    """

    frozen: Frozen
    session: Session
    kept: Kept | None

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that a batch must hold; none where the answers are kept."""
        return self.frozen.reads if self.kept is None else ()

    def __call__(self, batch: Batch) -> Tensors:
        """Tensors ``(batch, ...)`` on the training device.

        Raises:
            IndexError: a test sample is among them, and answers are kept.
            UserError: the disk is full.
        """
        if self.kept is not None:
            return self.kept.rows(batch.ids)
        with torch.inference_mode(), self.session.autocast():
            said = self.frozen.compute(batch.inputs)
        # Autograd may not keep what was made in inference mode.
        return tuple(tensor.clone() for tensor in said)

    def logits(self, batch: Batch) -> Tensor:
        """``(batch, ...)`` float32 logits, of a function that says nothing else."""
        (z,) = self(batch)
        return z.float()


def reads_of(parts: Iterable[Any]) -> list[str]:
    """Modalities that a batch must hold for all of these, by their ``reads``."""
    return sorted({modality for part in parts for modality in part.reads})


@dataclass
class Keeper:
    """Keeps what frozen functions say of training and validation samples, in memory-mapped files of the cache.

    A file is found by the hash of all that it depends on: weights, settings and code of the networks, data and
    front ends, split, precision and device.

    Attributes:
        limit_bytes: of all kept tables together. The longest unused make room; what is larger is not kept.
    """

    store: FeatureStore
    session: Session
    limit_bytes: int
    _in_use: weakref.WeakSet[Kept] = field(default_factory=weakref.WeakSet)

    def answers(self, frozen: Frozen) -> Answers:
        """What ``frozen`` says: from kept files where its inputs are not augmented and the files not too large."""
        for network in frozen.networks:
            network.to(self.session.device)
        kept = None if self.store.augments(frozen.reads) else self._kept(frozen)
        if kept is not None:
            self._in_use.add(kept)
        return Answers(frozen, self.session, kept)

    def keeps(self, bytes_per_sample: int, reads: Sequence[str]) -> bool:
        """Whether so much per sample, of a function of these modalities, would be kept."""
        return not self.store.augments(reads) and bytes_per_sample * len(self.samples) <= self.limit_bytes

    @property
    def samples(self) -> NDArray[np.int64]:
        """Numbers of the samples that rows are kept of, in the rows' order."""
        return np.concatenate([self.store.splits[name] for name in SPLITS])

    def _kept(self, frozen: Frozen) -> Kept | None:
        probe = self.store.gather(self.samples[:2], frozen.reads, self.session.device)
        with torch.inference_mode(), self.session.autocast():
            said = frozen.compute(probe.inputs)
        if not has_one_row_per_sample(said, len(probe.ids)):
            return None
        needed = sum(tensor[0].nbytes for tensor in said) * len(self.samples)
        if needed + sum(other.bytes for other in self._in_use) > self.limit_bytes:
            return None
        try:
            return Kept(frozen, self, needed, self._identity(frozen))
        except SourceUnknownError:
            return None

    def _identity(self, frozen: Frozen) -> dict[str, Any]:
        splits = {name: hashlib.sha256(self.store.splits[name].tobytes()).hexdigest() for name in SPLITS}
        return {
            "networks": network_identity(frozen.networks),
            "facts": dict(frozen.facts),
            "features": {name: self.store.identity(name) for name in frozen.reads},
            "samples": splits,
            "precision": "bf16" if self.session.bf16 else "fp32",
            "device": self.session.device.type,
        }

    def make_room(self, needed: int) -> None:
        """Removes the longest unused tables until ``needed`` more bytes are within the limit."""
        make_room(cache_root(), KIND, needed, self.limit_bytes, {kept.folder for kept in self._in_use})


class Kept:
    """Tables of what a frozen function says, opened or computed when they are first read.

    Attributes:
        folder: the cache's entry.
        bytes: what the tables take on disk.
    """

    def __init__(self, frozen: Frozen, keeper: Keeper, needed: int, depends_on: Mapping[str, Any]) -> None:
        self._frozen, self._keeper, self._depends_on = frozen, keeper, depends_on
        self.bytes = needed
        self.folder = entry_folder(cache_root(), KIND, depends_on)
        self._tables: list[Tensor] | None = None
        self._row = torch.full((len(keeper.store.dataset),), -1)
        self._row[torch.from_numpy(keeper.samples)] = torch.arange(len(keeper.samples))

    def rows(self, ids: Tensor) -> Tensors:
        """Rows of the samples ``ids`` ``(batch,)`` of every table, on the training device.

        Raises:
            IndexError: a test sample is among them.
        """
        if self._tables is None:
            self._tables = self._open()
        rows, device = self._row[ids], self._keeper.session.device
        if bool((rows < 0).any()):
            raise IndexError("no answers are kept of test samples")
        # Copies whole rows; indexing with a tensor goes element by element.
        return tuple(table.index_select(0, rows.to(table.device)).to(device) for table in self._tables)

    def _open(self) -> list[Tensor]:
        with self._keeper.session.processes.first_alone():
            if not look_up(self.folder, self._frozen.what, self._depends_on):
                self._keeper.make_room(self.bytes)
                self._compute()
        tables = _open(self.folder)
        # A GPU need not wait for what it has room for.
        on_gpu = self._keeper.session.device.type != "cpu" and self.bytes <= _ON_GPU_BYTES
        return [table.to(self._keeper.session.device) for table in tables] if on_gpu else tables

    def _compute(self) -> None:
        samples = len(self._keeper.samples)
        fix = ", or lower distill.keep_gb"
        with new_entry(self.folder, self._frozen.what, self._depends_on, fix=fix) as folder, ExitStack() as files:
            append: list[Append] = []
            for said in self._in_order():
                if not append:
                    for number, tensor in enumerate(said):
                        rows = npy_rows(folder / f"{number}.npy", (samples, *tensor.shape[1:]), _array(tensor).dtype)
                        append.append(files.enter_context(rows))
                    write_json(folder / _DTYPES, [str(tensor.dtype).removeprefix("torch.") for tensor in said])
                for add, tensor in zip(append, said, strict=True):
                    add(_array(tensor))

    def _in_order(self) -> Iterator[Tensors]:
        frozen, session = self._frozen, self._keeper.session
        for split in SPLITS:
            for batch in self._keeper.store.in_order(split, EVAL_BATCH, frozen.reads, session.device):
                with torch.inference_mode(), session.autocast():
                    said = frozen.compute(batch.inputs)
                yield said


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """As numpy; bfloat16, which numpy lacks, by its bits."""
    tensor = tensor.cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _open(folder: Path) -> list[Tensor]:
    """Tensors over the files. Copy-on-write: torch wants them writable, and nobody writes."""
    tables = []
    for number, dtype in enumerate(read_json(folder / _DTYPES)):
        array = np.load(folder / f"{number}.npy", mmap_mode="c", allow_pickle=False)
        table = torch.from_numpy(np.asarray(array))
        tables.append(table.view(torch.bfloat16) if dtype == "bfloat16" else table)
    return tables
