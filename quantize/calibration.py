"""Calibration samples: real, from the training split, every class represented, chosen by a seed, read in portions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.spec import Dataset
from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path, read_json, write_json
from mst_edge.core.rows import npy_rows

FOLDER = "calibration"
INPUTS, _TARGET, ABOUT = "inputs.npy", "target.npy", "calibration.json"
_AT_ONCE = 256


@dataclass(frozen=True)
class Calibration:
    """Samples on disk, as the graph takes them: any device can repeat a calibration with them.

    Attributes:
        folder: holds ``inputs.npy`` ``(count, *shape)``, ``calibration.json``, and ``target.npy`` where it is known.
        real: whether they were recorded. With random ones, ranges are wrong and so is every accuracy.
    """

    folder: Path
    real: bool = True

    @property
    def inputs(self) -> NDArray[Any]:
        """``(count, *shape)``, memory-mapped."""
        return np.load(self.folder / INPUTS, mmap_mode="r", allow_pickle=False)

    @property
    def target(self) -> NDArray[Any] | None:
        """``(count, ...)``: what is right; None where nobody said."""
        file = self.folder / _TARGET
        return np.load(file, mmap_mode="r", allow_pickle=False) if file.is_file() else None

    @property
    def file(self) -> Path:
        """The samples as a file."""
        return self.folder / INPUTS

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, size: int) -> Iterator[NDArray[Any]]:
        """The samples in portions of ``size``, in their order; the last one may be smaller."""
        inputs = self.inputs
        for start in range(0, len(inputs), size):
            yield np.ascontiguousarray(inputs[start : start + size])


def choose(dataset: Dataset, ids: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Sorted ids of ``count`` of the samples ``ids``, dealt round robin over the classes where samples have one."""
    return np.sort(ids[deal(dataset.strata[ids], count, seed)])


def deal(strata: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Sorted numbers of ``count`` samples, drawn round robin from the classes that ``strata`` ``(samples,)`` names."""
    rng = np.random.default_rng([seed, 3])
    by_class = [list(rng.permutation(np.flatnonzero(strata == label))) for label in range(int(strata.max()) + 1)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(strata)):
        for members in by_class:
            if members and len(chosen) < count:
                chosen.append(int(members.pop()))
    return np.sort(np.array(chosen, dtype=np.int64))


def save_calibration(
    folder: Path,
    count: int,
    read: Callable[[slice], NDArray[Any]],
    *,
    real: bool = True,
    target: NDArray[Any] | None = None,
    about: dict[str, Any] | None = None,
) -> Calibration:
    """Writes samples to ``folder`` in portions, so that memory does not grow with their number.

    Args:
        read: gives samples of a slice as the graph takes them.
        target: ``(count, ...)``, where it is known.
        about: where they come from, kept beside them.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        first = read(slice(0, 1))
        shape = (count, *first.shape[1:])
        with npy_rows(temporary / INPUTS, shape, first.dtype) as append:
            for start in range(0, count, _AT_ONCE):
                append(read(slice(start, min(count, start + _AT_ONCE))))
        if target is not None:
            np.save(temporary / _TARGET, target, allow_pickle=False)
        write_json(temporary / ABOUT, {"real": real, "samples": count, **(about or {})})
    return Calibration(folder, real)


def load_calibration(folder: Path) -> Calibration:
    """Opens what ``save_calibration`` wrote.

    Raises:
        UserError: a file is missing or is something else.
    """
    try:
        calibration = Calibration(folder, bool(read_json(folder / ABOUT)["real"]))
        len(calibration)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"holds no calibration samples ({error})", where=folder) from None
    return calibration
