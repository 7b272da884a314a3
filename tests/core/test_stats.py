from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mst_edge.core.stats import paired_difference, percentiles, proportion_interval

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
