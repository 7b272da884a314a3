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
REFERENCE = "reference"
OFFICIAL = "official"
_FRACTIONS = (0.6, 0.2, 0.2)
_REFERENCE_SEED = 19980427
_REFERENCE_DRAWS = 20


@dataclass(frozen=True)
class SplitRule:
    """How to part a dataset.

    Attributes:
        seed: decides who goes where; independent of the seed of initialisation.
        fractions: shares of train, validation and test; they sum to 1.
        by: name of the grouping to keep together, ``random`` for none, ``reference`` for the published
            benchmark's own permutations, ``official`` for the split that the data was published with, empty
            for the dataset's default.
        folds: 0, or k for cross-validation: seeds 0..k-1 test each of k folds once, validate on the next
            one and train on the rest; seeds k..2k-1 deal the folds anew.
    """

    seed: int = 0
    fractions: tuple[float, float, float] = _FRACTIONS
    by: str = ""
    folds: int = 0

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of train, validation and test, whichever way they were said."""
        return (1 - 2 / self.folds, 1 / self.folds, 1 / self.folds) if self.folds else self.fractions

    def __post_init__(self) -> None:
        if self.folds and self.folds < len(SPLITS):
            raise UserError(f"needs at least {len(SPLITS)}, received {self.folds}", where="dataset.split.folds")
        said = {
            "folds": bool(self.folds),
            "fractions": self.fractions != _FRACTIONS and self.by != REFERENCE,
            f"by: {self.by}": self.by in (REFERENCE, OFFICIAL),
        }
        if sum(said.values()) > 1:
            names = " and ".join(name for name, given in said.items() if given)
            raise UserError(f"{names} exclude each other", where="dataset.split")
        if self.by == REFERENCE and self.seed >= _REFERENCE_DRAWS:
            raise UserError(
                f"the reference has permutations 0..{_REFERENCE_DRAWS - 1}, received {self.seed}",
                where="dataset.split.seed",
            )
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
        by = rule.by or next(iter(dataset.groups), RANDOM)
        codes = split_codes(dataset.strata, dataset.groups, SplitRule(rule.seed, rule.fractions, by, rule.folds))
    ids = {name: np.flatnonzero(codes == code) for code, name in enumerate(SPLITS)}
    _require_usable(dataset, ids)
    return ids


def hold_back(
    dataset: Dataset, ids: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Parts the samples ``ids`` of one split in two, for what wants samples of its own inside of training.

    Groups of the dataset's first grouping stay together, as between splits; without groups, classes are kept in
    proportion.

    Returns:
        Sorted ids of those that stay, and of those held back, about ``share`` of all.

    Raises:
        UserError: too few groups, nothing is held back, or a class of ``ids`` would be held back altogether.
    """
    strata = dataset.strata[ids]
    groups = next((members[ids] for members in dataset.groups.values()), None)
    codes = _deal(strata, groups, (1 - share, share), np.random.default_rng(seed))
    stay, held = ids[codes == 0], ids[codes == 1]
    if not len(held) or len(np.unique(strata[codes == 0])) < len(np.unique(strata)):
        raise UserError(
            f"{len(held)} of {len(ids)} training samples are held back, "
            + ("all of some class" if len(held) else "which is none"),
            where=f"dataset {dataset.name}",
            fix="hold back another share, or give more samples",
        )
    return stay, held


def split_codes(target: NDArray[np.int64], groups: Mapping[str, NDArray[Any]], rule: SplitRule) -> NDArray[np.int64]:
    """Codes 0 train, 1 val, 2 test for each sample, by the grouping that ``rule.by`` names.

    Args:
        target: ``(samples,)`` class numbers.
        groups: name of a grouping to ``(samples,)``.

    Raises:
        UserError: an unknown grouping, or fewer groups than parts.
    """
    if rule.by == REFERENCE:
        return _reference(len(target), rule)
    if rule.by == RANDOM:
        return assign(target, None, rule)
    if rule.by not in groups:
        raise unknown_name("grouping", rule.by, [*groups, RANDOM, REFERENCE], where="dataset.split.by")
    return assign(target, groups[rule.by], rule)


def assign(target: NDArray[np.int64], groups: NDArray[Any] | None, rule: SplitRule) -> NDArray[np.int64]:
    """Codes 0 train, 1 val, 2 test for each sample.

    Without groups the split is stratified by ``target``. With groups, whole groups are dealt out in random
    order, largest first, each to the split whose class counts it brings closest to their share.

    Args:
        target: ``(samples,)`` class numbers; all the same where there are no classes to keep in proportion.
        groups: ``(samples,)`` of any comparable type, or None.
    """
    if not rule.folds:
        return _deal(target, groups, rule.fractions, np.random.default_rng(rule.seed))
    deal, tested = divmod(rule.seed, rule.folds)
    fold = _deal(target, groups, (1 / rule.folds,) * rule.folds, np.random.default_rng(deal))
    # Fold ``tested`` is tested (2), the next one validates (1), the others train (0).
    return np.select([fold == tested, fold == (tested + 1) % rule.folds], [2, 1], 0).astype(np.int64)


def _deal(
    target: NDArray[np.int64], groups: NDArray[Any] | None, shares: tuple[float, ...], rng: np.random.Generator
) -> NDArray[np.int64]:
    return _stratified(target, shares, rng) if groups is None else _grouped(target, groups, shares, rng)


def _reference(samples: int, rule: SplitRule) -> NDArray[np.int64]:
    """The published benchmark's protocol: draw ``seed`` of 20 permutations, cut at whole samples.

    It ignores classes and groups: one speaker, actor or scene lies in all three splits.
    """
    generator = np.random.RandomState(_REFERENCE_SEED)
    order = [generator.permutation(samples) for _ in range(rule.seed + 1)][-1]
    codes = np.empty(samples, dtype=np.int64)
    # 0.6 + 0.2 is a little less than 0.8 in floating point: without rounding, a whole edge loses one.
    edges = np.floor(np.round(np.cumsum(rule.fractions)[:-1] * samples, 6)).astype(int)
    for code, part in enumerate(np.split(order, edges)):
        codes[part] = code
    return codes


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
            f"{len(names)} groups cannot fill {len(fractions)} parts",
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
    if dataset.classes:
        _require_every_class(dataset, ids["train"])
    else:
        _require_variation(dataset, ids["train"])


def _require_every_class(dataset: Dataset, train: NDArray[np.int64]) -> None:
    ignored = dataset.truth.ignore_label
    missing = [label for label in np.flatnonzero(dataset.class_counts(train) == 0) if label != ignored]
    if missing:
        names = ", ".join(dataset.classes[label] for label in missing)
        raise UserError(
            f"no training sample of class {names}",
            where=f"dataset {dataset.name}",
            fix="another dataset.split.seed or grouping, or leave the class out",
        )


def _require_variation(dataset: Dataset, train: NDArray[np.int64]) -> None:
    mean, deviation = dataset.target_statistics(train)
    for name, centre, spread in zip(dataset.truth.names, mean, deviation, strict=True):
        # Relative to the mean: float32 rounding makes a constant vary a little.
        if spread <= 1e-6 * abs(centre) or spread == 0:
            raise UserError(
                f"{name} is {centre:.6g} in every training sample: there is nothing to learn",
                where=f"dataset {dataset.name}",
                fix="another dataset.split.seed or grouping, or leave it out of target.npy",
            )
