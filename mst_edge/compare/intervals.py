"""Confidence intervals of what was measured on several seeds, each with its own split of the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from mst_edge.core.scoring import Scoring
from mst_edge.core.stats import Interval


def score_over_seeds(
    statistics: Sequence[NDArray[np.float64]], scoring: Scoring, overlap: float | None, confidence: float = 0.95
) -> Interval:
    """Mean of the headline metric over seeds, with the wider of two intervals.

    One is a t interval over the seeds' values; the other, over the samples of all seeds (Wilson's for accuracy,
    else a bootstrap), keeps it honest where a few seeds agree by luck. With one seed only the latter is left.

    Args:
        statistics: per seed, what ``scoring`` keeps of each test sample.
        overlap: as in ``gain_over_seeds``.
    """
    samples = _mean([scoring.interval(pool, confidence) for pool in _pools(statistics, overlap)])
    return _wider(_t_interval([scoring.value(one) for one in statistics], overlap, confidence), samples, scoring.bounds)


def gain_over_seeds(
    reference: Sequence[NDArray[np.float64]],
    other: Sequence[NDArray[np.float64]],
    scoring: Scoring,
    overlap: float | None,
    confidence: float = 0.95,
) -> Interval:
    """How much better ``other`` is than ``reference``, mean over seeds, with the wider of two intervals.

    Paired over samples and over seeds: the difference of each seed is taken on that seed's test samples, and one
    interval is a t interval over these differences. Splits drawn anew from the same data share samples, so their
    differences vary less than those of independent data would; the variance is corrected by ``overlap`` (Nadeau
    and Bengio, Machine Learning 52, 2003: the corrected resampled t test). The other interval is paired over the
    samples of all seeds: a few seeds that agree by luck do not shrink it. With one seed only the latter is left.
    Positive means that ``other`` is better.

    Args:
        reference, other: per seed, what ``scoring`` keeps of each test sample.
        overlap: test samples per training sample; None where all seeds share one split. Then t needs no correction,
            and the samples count once: their interval is the mean of the seeds' own.
    """
    pools = zip(_pools(reference, overlap), _pools(other, overlap), strict=True)
    drop = _mean([scoring.drop(a, b, confidence) for a, b in pools])
    gains = [scoring.gain(a, b) for a, b in zip(reference, other, strict=True)]
    samples = Interval(-drop.estimate, -drop.high, -drop.low)
    least, most = scoring.bounds
    return _wider(_t_interval(gains, overlap, confidence), samples, (least - most, most - least))


def _pools(statistics: Sequence[NDArray[np.float64]], overlap: float | None) -> Sequence[NDArray[np.float64]]:
    """Statistics of different samples: of all seeds together where each has its own split."""
    return statistics if overlap is None else [np.concatenate(statistics)]


def _mean(intervals: Sequence[Interval]) -> Interval:
    """That of a mean of quantities that go up and down together."""
    return Interval(*(float(np.mean([getattr(i, end) for i in intervals])) for end in ("estimate", "low", "high")))


def _t_interval(values: Sequence[float], overlap: float | None, confidence: float) -> Interval:
    """mean +- t s sqrt(1/J + overlap) over J values; of no width for one value."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, mean, mean)
    spread = float(np.std(values, ddof=1)) * math.sqrt(1 / len(values) + (overlap or 0.0))
    half = float(student_t.ppf((1 + confidence) / 2, len(values) - 1)) * spread
    return Interval(mean, mean - half, mean + half)


def _wider(seeds: Interval, samples: Interval, bounds: tuple[float, float]) -> Interval:
    """The estimate over seeds, within the hull of both intervals and ``bounds``."""
    low, high = min(seeds.low, samples.low), max(seeds.high, samples.high)
    return Interval(seeds.estimate, max(bounds[0], low), min(bounds[1], high))
