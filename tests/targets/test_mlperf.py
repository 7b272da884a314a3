"""MLPerf's scenarios: early stopping as LoadGen computes it, and what makes a run valid."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import betainc

from targets import mlperf


def loadgen(queries: int, percentile: float) -> int | None:
    """LoadGen's search: the fewest queries h under the latency that t over it need, by the incomplete beta function."""

    def passing(over: int) -> int:
        under = 1
        while betainc(under, 1 + over, percentile) >= 1 - 0.99:
            under += 1
        return under

    allowed = None
    for over in range(1, queries + 1):
        if queries < passing(over) + over:
            break
        allowed = over
    return allowed


@pytest.mark.parametrize(("percentile", "least"), [(0.90, 64), (0.99, 662)])
def test_the_least_number_of_queries_is_the_published_one(percentile, least):
    """Of SingleStream and MultiStream: inference_rules.adoc."""
    assert mlperf.overlatency_allowed(least - 1, percentile) is None
    assert mlperf.overlatency_allowed(least, percentile) == 1


@pytest.mark.parametrize("queries", [64, 81, 82, 100, 127, 300])
def test_as_many_slow_queries_are_left_out_as_loadgen_leaves_out(queries):
    assert mlperf.overlatency_allowed(queries) == loadgen(queries, 0.90)


def test_millions_of_queries_come_near_the_plain_percentile():
    latencies = np.random.default_rng(0).lognormal(0, 1, 2_000_000)
    found = mlperf.single_stream(latencies, 700.0, min_seconds=600.0)
    assert found.p90_ms == pytest.approx(np.percentile(latencies, 90), rel=0.005)
    assert found.p90_ms > np.percentile(latencies, 90)


def test_the_estimate_is_a_latency_that_was_measured_and_no_lower_than_p90():
    latencies = np.arange(1.0, 101.0)
    found = mlperf.single_stream(np.random.default_rng(0).permutation(latencies), 601.0, min_seconds=600.0)
    assert (found.p90_ms, found.discarded, found.queries, found.problem) == (98.0, 2, 100, "")


def test_the_estimate_is_too_low_one_time_in_a_hundred_at_most():
    rng = np.random.default_rng(0)
    low = sum((mlperf.single_stream(rng.random(200), 1.0, min_seconds=0.0).p90_ms or 1.0) < 0.9 for _ in range(4000))
    assert low / 4000 < 0.013


def test_a_short_run_and_too_few_queries_are_invalid():
    short = mlperf.single_stream(np.ones(2000), 599.0, min_seconds=600.0)
    assert (short.p90_ms, short.problem) == (1.0, "599.0 s, at least 600 s")
    few = mlperf.single_stream(np.ones(63), 1200.0, min_seconds=600.0)
    assert (few.p90_ms, few.problem) == (None, "63 queries, too few for early stopping")


def test_offline_is_samples_over_time():
    found = mlperf.offline(32, "", 30_000, 600.0, min_seconds=600.0, min_samples=24_576)
    assert (found.samples_per_s, found.problem) == (50.0, "")
    bad = mlperf.offline(32, "", 20_000, 500.0, min_seconds=600.0, min_samples=24_576)
    assert bad.problem == "500.0 s, at least 600 s; 20000 samples, at least 24576"
