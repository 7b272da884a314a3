"""Train, validation and test ids: explicit, deterministic, never parting a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.spec import SPLITS, Dataset
from mst_edge.core.errors import UserError, unknown_name

RANDOM = "random"


@dataclass(frozen=True)
class SplitRule:
    """How to part a dataset.

    Attributes:
        seed: decides who goes where; independent of the seed of initialisation.
        fractions: shares of train, validation and test; they sum to 1.
        by: name of the grouping to keep together, ``random`` for none, empty for the dataset's default.
    """

    seed: int = 0
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    by: str = ""

    def __post_init__(self) -> None:
        if any(share <= 0 for share in self.fractions) or abs(sum(self.fractions) - 1) > 1e-6:
            raise UserError(
                f"fractions must be positive and sum to 1; received {list(self.fractions)}",
                where="dataset.split.fractions",
            )


def split_dataset(dataset: Dataset, rule: SplitRule) -> dict[str, NDArray[np.int64]]:
    """Sorted sample ids per split. A split that came with the data wins over ``rule``.

    Raises:
        UserError: an unknown grouping, a class that train lacks, or an empty split.
    """
    if dataset.explicit_split is not None:
        if rule.by:
            raise UserError(
                f"{dataset.name} comes with its own split and cannot be split by {rule.by!r}",
                where="dataset.split.by",
                fix="remove the key, or remove split.npy from the dataset's folder",
            )
        codes = dataset.explicit_split
    else:
        codes = assign(dataset.target, _groups(dataset, rule.by), rule)
    ids = {name: np.flatnonzero(codes == code) for code, name in enumerate(SPLITS)}
    _require_usable(dataset, ids)
    return ids


def _groups(dataset: Dataset, by: str) -> NDArray[Any] | None:
    if by == RANDOM or (not by and not dataset.groups):
        return None
    if not by:
        return next(iter(dataset.groups.values()))
    if by not in dataset.groups:
        raise unknown_name("grouping", by, [*dataset.groups, RANDOM], where="dataset.split.by")
    return dataset.groups[by]


def assign(target: NDArray[np.int64], groups: NDArray[Any] | None, rule: SplitRule) -> NDArray[np.int64]:
    """Codes 0 train, 1 val, 2 test for each sample.

    Without groups the split is stratified by class. With groups, whole groups are dealt out in random
    order, largest first, each to the split whose class counts it brings closest to their share.

    Args:
        target: ``(samples,)`` class numbers.
        groups: ``(samples,)`` of any comparable type, or None.
    """
    rng = np.random.default_rng(rule.seed)
    if groups is None:
        return _stratified(target, rule.fractions, rng)
    return _grouped(target, groups, rule.fractions, rng)


def _stratified(target: NDArray[np.int64], fractions: tuple[float, ...], rng: np.random.Generator) -> NDArray[np.int64]:
    codes = np.empty(len(target), dtype=np.int64)
    for label in np.unique(target):
        members = rng.permutation(np.flatnonzero(target == label))
        # Rounding the running share, not each share, keeps every class's total exact.
        edges = np.round(np.cumsum(fractions) * len(members)).astype(int)
        for code, part in enumerate(np.split(members, edges[:-1])):
            codes[part] = code
    return codes


def _grouped(
    target: NDArray[np.int64],
    groups: NDArray[Any],
    fractions: tuple[float, ...],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    names, member_of = np.unique(groups, return_inverse=True)
    if len(names) < len(fractions):
        raise UserError(
            f"{len(names)} groups cannot fill train, validation and test",
            where="dataset.split.by",
            fix=f"use by: {RANDOM}, or a grouping with at least {len(fractions)} groups",
        )
    _, label_index = np.unique(target, return_inverse=True)
    counts = np.zeros((len(names), label_index.max() + 1))
    np.add.at(counts, (member_of, label_index), 1)
    wanted = np.outer(fractions, counts.sum(axis=0))
    filled = np.zeros_like(wanted)
    order = rng.permutation(len(names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    codes = np.empty(len(names), dtype=np.int64)
    for position, group in enumerate(order):
        # The first groups seed the splits, so that none stays empty when groups are few.
        empty = np.flatnonzero(filled.sum(axis=1) == 0)
        options = empty if len(order) - position <= len(empty) else np.arange(len(fractions))
        room = (wanted - filled)[options]
        score = (np.minimum(room, counts[group]) - np.maximum(counts[group] - room, 0)).sum(axis=1)
        share = room.sum(axis=1) / wanted[options].sum(axis=1)
        best = options[np.lexsort((-share, -score))[0]]
        codes[group] = best
        filled[best] += counts[group]
    return codes[member_of]


def _require_usable(dataset: Dataset, ids: Mapping[str, NDArray[np.int64]]) -> None:
    for name, members in ids.items():
        if not len(members):
            raise UserError(
                f"the {name} split is empty ({len(dataset)} samples in all)",
                where=f"dataset {dataset.name}",
                fix="give more samples or other dataset.split.fractions",
            )
    missing = np.flatnonzero(dataset.class_counts(ids["train"]) == 0)
    if len(missing):
        names = ", ".join(dataset.classes[label] for label in missing)
        raise UserError(
            f"no training sample of class {names}",
            where=f"dataset {dataset.name}",
            fix="another dataset.split.seed or grouping, or leave the class out",
        )
