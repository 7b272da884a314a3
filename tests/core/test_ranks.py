"""Rank correlations against scipy's, and what their intervals promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from mst_edge.core.ranks import kendall_tau, rank_interval, ranks, spearman_rho

columns = st.integers(2, 15).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 6).map(float), min_size=n, max_size=n)] * 2)
)


@given(columns)
def test_correlations_are_those_of_scipy_also_with_ties(pair):
    one, other = map(np.array, pair)
    assert ranks(one) == pytest.approx(stats.rankdata(one) - 1)
    assume(len(set(pair[0])) > 1 and len(set(pair[1])) > 1)
    assert kendall_tau(one, other) == pytest.approx(stats.kendalltau(one, other).statistic)
    assert spearman_rho(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)


def test_what_is_constant_orders_nothing():
    flat, rising = np.zeros(5), np.arange(5.0)
    assert kendall_tau(flat, rising) == spearman_rho(rising, flat) == 0


def test_an_interval_narrows_with_more_things_and_holds_the_estimate():
    rng = np.random.default_rng(0)
    widths = []
    for count in (12, 60):
        one = rng.normal(size=count)
        found = rank_interval(one, one + rng.normal(size=count), kendall_tau)
        assert -1 <= found.low < found.estimate < found.high <= 1
        widths.append(found.high - found.low)
    assert widths[1] < widths[0]


def test_without_a_relation_the_interval_holds_zero():
    rng = np.random.default_rng(1)
    found = rank_interval(rng.normal(size=14), rng.normal(size=14), spearman_rho)
    assert found.low < 0 < found.high


@pytest.mark.parametrize(("one", "other"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_too_little_to_order_is_refused(one, other):
    with pytest.raises(ValueError, match="two equal lengths of two or more"):
        rank_interval(one, other, kendall_tau)
