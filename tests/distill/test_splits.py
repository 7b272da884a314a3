from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, assign, split_codes, split_dataset
from mst_edge.core.errors import UserError
from tests.conftest import write_arrays

targets = st.lists(st.integers(0, 4), min_size=30, max_size=300).map(np.array)


@given(targets, st.integers(0, 2**32 - 1))
def test_without_groups_every_class_is_parted_by_the_fractions(target, seed):
    codes = assign(target, None, SplitRule(seed))
    for label in np.unique(target):
        counts = np.bincount(codes[target == label], minlength=3)
        assert counts.sum() == np.sum(target == label)
        assert np.all(np.abs(counts - np.array([0.6, 0.2, 0.2]) * counts.sum()) <= 1)


@settings(max_examples=60)
@given(targets, st.integers(3, 25), st.integers(0, 1000))
def test_no_group_is_ever_parted_and_no_split_is_empty(target, groups, seed):
    rng = np.random.default_rng(seed)
    group = np.concatenate([np.arange(groups), rng.integers(groups, size=len(target))])[: len(target)]
    codes = assign(target, group, SplitRule(seed))
    for name in np.unique(group):
        assert len(set(codes[group == name].tolist())) == 1
    assert set(codes.tolist()) == {0, 1, 2}


def test_groups_are_dealt_close_to_the_fractions_and_the_classes():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(50), 12)
    target = rng.integers(0, 4, 600)
    codes = assign(target, group, SplitRule(3))
    assert np.bincount(codes) / 600 == pytest.approx([0.6, 0.2, 0.2], abs=0.03)
    for label in range(4):
        assert np.mean(codes[target == label] == 0) == pytest.approx(0.6, abs=0.12)


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    target = np.arange(300) % 5
    first, again, other = (assign(target, None, SplitRule(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_too_few_groups_are_refused():
    with pytest.raises(UserError, match="2 groups cannot fill"):
        assign(np.zeros(10, int), np.arange(10) % 2, SplitRule())


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.9, 0.2, -0.1)])
def test_fractions_must_sum_to_one(fractions):
    with pytest.raises(UserError, match="sum to 1"):
        SplitRule(0, fractions)


def test_groups_of_the_data_are_kept_together_unless_random_is_asked_for(tmp_path):
    folder = write_arrays(tmp_path / "d", groups=np.repeat(np.arange(24), 10))
    dataset = open_arrays(folder)
    by_group = split_dataset(dataset, SplitRule())
    owners = [set(dataset.groups["groups"][ids].tolist()) for ids in by_group.values()]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    by_chance = split_dataset(dataset, SplitRule(by="random"))
    assert set(dataset.groups["groups"][by_chance["train"]].tolist()) & set(
        dataset.groups["groups"][by_chance["test"]].tolist()
    )


def test_a_split_that_came_with_the_data_wins(tmp_path):
    codes = np.arange(240) // 3 % 3
    dataset = open_arrays(write_arrays(tmp_path / "d", split=codes))
    ids = split_dataset(dataset, SplitRule(seed=5))
    assert np.array_equal(ids["val"], np.flatnonzero(codes == 1))
    with pytest.raises(UserError, match="comes with its own split"):
        split_dataset(dataset, SplitRule(by="random"))


def test_an_unknown_grouping_lists_the_known(tmp_path):
    dataset = open_arrays(write_arrays(tmp_path / "d", groups=np.arange(240) // 10))
    with pytest.raises(UserError, match="unknown grouping 'actor'.*groups, random"):
        split_dataset(dataset, SplitRule(by="actor"))


def test_a_class_absent_from_train_is_named(tmp_path):
    folder = write_arrays(tmp_path / "d", split=np.where(np.arange(240) % 3 == 2, 2, np.arange(240) // 3 % 2))
    with pytest.raises(UserError, match="no training sample of class 2"):
        split_dataset(open_arrays(folder), SplitRule())


@pytest.mark.parametrize("grouped", [True, False])
def test_folds_test_everything_once_and_are_dealt_anew_after_k_seeds(grouped):
    target = np.arange(240) % 4
    group = np.arange(240) // 10 if grouped else None
    rounds = []
    for first in (0, 5):
        codes = np.stack([assign(target, group, SplitRule(first + fold, folds=5)) for fold in range(5)])
        assert ((codes == 2).sum(axis=0) == 1).all()
        assert ((codes == 1).sum(axis=0) == 1).all()
        assert np.bincount(codes[0]) / 240 == pytest.approx([0.6, 0.2, 0.2], abs=0.05)
        if grouped:
            assert all(len(set(codes[0][group == name].tolist())) == 1 for name in range(24))
        rounds.append(codes)
    assert not np.array_equal(*rounds)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"folds": 2}, "needs at least 3"),
        ({"folds": 5, "fractions": (0.5, 0.25, 0.25)}, "folds and fractions exclude each other"),
        ({"folds": 5, "by": "reference"}, "folds and by: reference exclude"),
        ({"seed": 20, "by": "reference"}, "permutations 0..19, received 20"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(rule, says):
    with pytest.raises(UserError, match=says):
        SplitRule(**rule)


def test_the_references_split_is_its_published_permutation():
    """NumPy's legacy generator, seeded 19980427, 20 permutations in a row; cut at floor(0.6 N) and floor(0.8 N)."""
    samples = 1449
    np.random.seed(19980427)
    drawn = [np.random.permutation(samples) for _ in range(20)]
    for seed in (0, 7, 19):
        codes = split_codes(np.zeros(samples, int), {}, SplitRule(seed, by="reference"))
        assert set(drawn[seed][:869]) == set(np.flatnonzero(codes == 0))
        assert set(drawn[seed][869:1159]) == set(np.flatnonzero(codes == 1))


def test_a_folder_of_arrays_takes_folds_and_the_reference(tmp_path):
    dataset = open_arrays(write_arrays(tmp_path / "d", groups=np.repeat(np.arange(24), 10)))
    ids = split_dataset(dataset, SplitRule(1, folds=4))
    assert len(ids["test"]) == 60
    assert len(set(dataset.groups["groups"][ids["test"]].tolist())) == 6
    leaking = split_dataset(dataset, SplitRule(by="reference"))
    assert len(set(dataset.groups["groups"][leaking["test"]].tolist())) > 6
