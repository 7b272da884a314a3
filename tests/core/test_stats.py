from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from mst_edge.core.stats import paired_difference, paired_ratio, percentiles, proportion_interval, unpaired_difference

right = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


@given(right)
def test_paired_difference_contains_its_estimate(pairs):
    before, after = (np.array(column, dtype=bool) for column in zip(*pairs, strict=True))
    found = paired_difference(before, after)
    assert found.estimate == pytest.approx(before.mean() - after.mean())
    assert found.low <= found.estimate <= found.high


def test_paired_difference_is_not_certain_when_nothing_changed():
    same = np.ones(100, dtype=bool)
    found = paired_difference(same, same)
    assert found.estimate == 0
    assert 0.01 < found.high < 0.05


def test_paired_difference_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        draw = rng.choice(4, p=[0.7, 0.08, 0.03, 0.19], size=300)
        found = paired_difference(np.isin(draw, (0, 1)), np.isin(draw, (0, 2)))
        hits += found.low <= 0.05 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_paired_difference_refuses_unequal_vectors():
    with pytest.raises(ValueError, match="received"):
        paired_difference(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


def test_proportion_interval_is_wilsons():
    # Worked example of Newcombe (Stat. Med. 17, 1998), method 3: 81 of 263.
    found = proportion_interval(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=300))
def test_percentiles_are_values_that_were_measured(values):
    p50, p90, p99 = percentiles(values, (50, 90, 99))
    assert {p50, p90, p99} <= set(values)
    assert p50 <= p90 <= p99
    assert np.mean(np.array(values) <= p90) >= 0.9


def test_percentiles_refuses_nothing():
    with pytest.raises(ValueError, match="no values"):
        percentiles([], (50,))


@pytest.mark.parametrize("rounds", [6, 10, 15])
def test_the_interval_of_a_ratio_is_what_wilcoxons_test_does_not_reject(rounds):
    rng = np.random.default_rng(rounds)
    ours, theirs = rng.lognormal(0.0, 0.1, rounds), rng.lognormal(0.1, 0.2, rounds)
    found = paired_ratio(theirs, ours)
    logs = np.log(theirs / ours)
    for ratio, inside in (
        (found.low - 1e-9, False),
        (found.low + 1e-9, True),
        (found.high - 1e-9, True),
        (found.high + 1e-9, False),
    ):
        kept = wilcoxon(logs - np.log(ratio), method="exact").pvalue > 0.05
        assert bool(kept) is inside
    averages = [(a + b) / 2 for i, a in enumerate(logs) for b in logs[i:]]
    assert found.estimate == pytest.approx(np.exp(np.median(averages)))
    assert found.low <= found.estimate <= found.high


def test_two_equals_differ_beyond_noise_no_more_often_than_one_time_in_twenty():
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(2000):
        drift = np.cumsum(rng.normal(0, 0.2, 10))  # a machine that wanders by half its speed
        ours, theirs = (np.exp(drift + 0.02 * rng.standard_t(2, 10)) for _ in range(2))  # and that stumbles
        found = paired_ratio(theirs, ours)
        told += not found.low <= 1 <= found.high
    assert 0.03 < told / 2000 < 0.065


def test_a_small_gain_is_seen_through_drift_and_one_stray_round():
    rng = np.random.default_rng(1)
    drift = np.exp(np.linspace(0, 1, 12))
    ours, theirs = drift * rng.normal(1.0, 0.005, 12), 1.05 * drift * rng.normal(1.0, 0.005, 12)
    theirs[4] *= 3
    found = paired_ratio(theirs, ours)
    assert found.above_one
    assert found.low < 1.05 < found.high
    assert found.high < 1.1


def test_few_rounds_know_nothing():
    found = paired_ratio([2.0] * 5, [1.0] * 5)
    assert (found.estimate, found.low, found.high) == (pytest.approx(2.0), 0.0, np.inf)
    with pytest.raises(ValueError, match="two equal, non-empty vectors"):
        paired_ratio([1.0], [])


@pytest.mark.parametrize(
    ("first", "second", "low", "high"), [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)]
)
def test_two_proportions_of_other_samples_are_compared_as_newcombe_does(first, second, low, high):
    """Newcombe, Stat. Med. 17, 1998, table II, method 10."""
    found = unpaired_difference(proportion_interval(*first), proportion_interval(*second))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
