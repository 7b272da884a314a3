"""What MLPerf Inference's rules make of timings: SingleStream with early stopping, and Offline.

Source: mlcommons/inference_policies, ``inference_rules.adoc`` (scenarios, early stopping); mlcommons/inference,
``loadgen/early_stopping.cc`` and ``loadgen/results.cc``; query counts from ``loadgen/mlperf.conf``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERCENTILE, CONFIDENCE = 0.90, 0.99
MIN_SECONDS, MIN_QUERIES, MIN_SAMPLES = 600.0, 1024, 24_576


@dataclass(frozen=True)
class SingleStream:
    """One query after the other, of one sample each.

    Attributes:
        p90_ms: the early-stopping estimate: with 99 % confidence no lower than the p90; None with too few queries.
        discarded: how many of the slowest queries the estimate leaves out.
        problem: why the run is invalid; empty if it is valid.
    """

    p90_ms: float | None
    queries: int
    discarded: int
    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class Offline:
    """All samples at once, in batches of the size that was found to be the fastest.

    Attributes:
        samples_per_s: throughput.
        larger: why no larger batch was tried; empty if all were.
        problem: why the run is invalid; empty if it is valid.
    """

    samples_per_s: float
    batch: int
    samples: int
    seconds: float
    larger: str = ""
    problem: str = ""


def overlatency_allowed(queries: int, percentile: float = PERCENTILE, confidence: float = CONFIDENCE) -> int | None:
    """Of how many of ``queries`` latencies it may be said that they lie above the percentile.

    The largest t with P(X <= t) < 1 - confidence, X binomial of ``queries`` trials of probability 1 - percentile: were
    the true share above a bound 1 - percentile or more, so few would be above it by chance alone less often than that
    (early stopping with a tolerance of 0). None where even t = 1, the least that the rules estimate from, is too many.
    """
    over = 1 - percentile
    most = math.ceil(queries * over)  # P(X <= most) is near one half, beyond any confidence asked for
    k = np.arange(most)
    # ln of P(X = k + 1) / P(X = k)
    steps = np.log(queries - k) - np.log(k + 1) + math.log(over) - math.log(percentile)
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + queries * math.log(percentile)
    allowed = int(np.searchsorted(np.cumsum(np.exp(logs)), 1 - confidence, side="left")) - 1
    return allowed if allowed >= 1 else None


def single_stream(latencies_ms: NDArray[np.float64], seconds: float, *, min_seconds: float) -> SingleStream:
    """The scenario's result: the t-th slowest latency, t as ``overlatency_allowed``.

    Args:
        latencies_ms: ``(queries,)`` of all queries.
        seconds: how long they took together.
        min_seconds: what the run had to last.
    """
    queries = len(latencies_ms)
    allowed = overlatency_allowed(queries)
    problem = f"{seconds:.1f} s, at least {min_seconds:g} s" if seconds < min_seconds else ""
    if allowed is None:
        return SingleStream(None, queries, 0, seconds, f"{queries} queries, too few for early stopping")
    estimate = float(np.partition(latencies_ms, queries - allowed)[queries - allowed])
    return SingleStream(estimate, queries, allowed - 1, seconds, problem)


def offline(batch: int, larger: str, samples: int, seconds: float, *, min_seconds: float, min_samples: int) -> Offline:
    """The scenario's result."""
    problems = []
    if seconds < min_seconds:
        problems.append(f"{seconds:.1f} s, at least {min_seconds:g} s")
    if samples < min_samples:
        problems.append(f"{samples} samples, at least {min_samples}")
    return Offline(samples / seconds, batch, samples, seconds, larger, "; ".join(problems))
