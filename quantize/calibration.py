"""Calibration samples: real, from the training split, every class represented, chosen by a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.spec import Dataset
from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path

CALIBRATION = "calibration.npz"


def choose(dataset: Dataset, train: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Sorted ids of ``count`` training samples, dealt round robin over the classes where samples have one."""
    rng = np.random.default_rng([seed, 3])
    strata = dataset.strata[train]
    by_class = [list(rng.permutation(train[strata == label])) for label in range(int(strata.max()) + 1)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(train)):
        for members in by_class:
            if members and len(chosen) < count:
                chosen.append(int(members.pop()))
    return np.sort(np.array(chosen, dtype=np.int64))


def save(path: Path, ids: NDArray[np.int64], samples: NDArray[Any]) -> None:
    """Keeps the samples, as the graph takes them, with the variants: any device can repeat the calibration."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, ids=ids, samples=samples)


def load(path: Path) -> NDArray[Any]:
    """``(count, *shape)`` calibration samples.

    Raises:
        UserError: the file is missing or not what ``save`` writes.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["samples"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"not a calibration file ({error})", where=path) from None
