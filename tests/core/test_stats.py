from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mst_edge.core.stats import (
    accuracy_over_seeds,
    gain_over_seeds,
    paired_difference,
    percentiles,
    proportion_interval,
    t_quantile,
)

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


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_t_quantile_is_students(freedom, confidence):
    expected = scipy.stats.t.ppf(0.5 + confidence / 2, freedom)
    assert t_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-9)


def _seeds(rng, gains, samples=400):
    """Per seed two vectors whose accuracies differ by exactly ``gain``, on shuffled samples."""
    pairs = []
    for gain in gains:
        before = np.arange(samples) < samples // 2
        after = np.arange(samples) < samples // 2 + round(gain * samples)
        order = rng.permutation(samples)
        pairs.append((before[order], after[order]))
    return tuple(zip(*pairs, strict=True))


def test_a_gain_over_seeds_is_the_corrected_t_interval_where_seeds_differ():
    gains = [0.3, 0.1, -0.1]
    found = gain_over_seeds(*_seeds(np.random.default_rng(0), gains), 1 / 3)
    half = scipy.stats.t.ppf(0.975, 2) * np.std(gains, ddof=1) * np.sqrt(1 / 3 + 1 / 3)
    assert found.estimate == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half))


def test_seeds_that_agree_by_luck_do_not_make_a_gain_certain():
    before, after = _seeds(np.random.default_rng(0), [0.02, 0.02])
    found = gain_over_seeds(before, after, 1 / 3)
    pooled = paired_difference(np.concatenate(before), np.concatenate(after))
    assert found.high - found.low == pytest.approx(pooled.high - pooled.low)
    assert found.low == pytest.approx(-pooled.high)
    accuracy = accuracy_over_seeds(before, 1 / 3)
    wilson = proportion_interval(400, 800)
    assert (accuracy.estimate, accuracy.low, accuracy.high) == pytest.approx((0.5, wilson.low, wilson.high))


def test_one_seed_is_judged_by_its_samples():
    (before,), (after,) = _seeds(np.random.default_rng(0), [0.1])
    found, drop = gain_over_seeds([before], [after], 1 / 3), paired_difference(before, after)
    assert (found.estimate, found.low, found.high) == pytest.approx((-drop.estimate, -drop.high, -drop.low))


def test_the_correction_covers_the_truth_although_splits_share_samples():
    """Two classifiers that are equally good on all data; every seed tests them on a fifth of one finite pool."""
    rng = np.random.default_rng(0)
    hits = {0.0: 0, 1 / 3: 0}
    for _ in range(300):
        pool = rng.choice([-1, 0, 1], p=[0.15, 0.7, 0.15], size=500)
        splits = [pool[rng.permutation(500)[:100]] for _ in range(10)]
        for overlap in hits:
            found = gain_over_seeds([d >= 0 for d in splits], [d <= 0 for d in splits], overlap)
            hits[overlap] += found.low <= 0 <= found.high
    assert hits[1 / 3] / 300 >= 0.93 > hits[0.0] / 300
