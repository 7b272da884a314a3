"""Confidence intervals of what was measured on several seeds, each with its own split of the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from mst_edge.core.stats import Interval, paired_difference, proportion_interval


def accuracy_over_seeds(
    right: Sequence[NDArray[np.bool_]], overlap: float | None, confidence: float = 0.95
) -> Interval:
    """Mean accuracy over seeds, with the wider of two intervals.

    One is a t interval over the seeds' accuracies; the other, Wilson's over the samples of all seeds, keeps it
    honest where a few seeds agree by luck. With one seed only the latter is left.

    Args:
        right: one vector ``(samples,)`` per seed, whether each test sample was right.
        overlap: as in ``gain_over_seeds``.
    """
    samples = _mean([proportion_interval(int(p.sum()), p.size, confidence) for p in _pools(right, overlap)])
    return _wider(_t_interval([float(r.mean()) for r in right], overlap, confidence), samples, 0.0)


def gain_over_seeds(
    reference: Sequence[NDArray[np.bool_]],
    other: Sequence[NDArray[np.bool_]],
    overlap: float | None,
    confidence: float = 0.95,
) -> Interval:
    """How much more often ``other`` is right than ``reference``, mean over seeds, with the wider of two intervals.

    Paired over samples and over seeds: the difference of each seed is taken on that seed's test samples, and one
    interval is a t interval over these differences. Splits drawn anew from the same data share samples, so their
    differences vary less than those of independent data would; the variance is corrected by ``overlap`` (Nadeau
    and Bengio, Machine Learning 52, 2003: the corrected resampled t test). The other interval is that of
    ``paired_difference`` over the samples of all seeds: a few seeds that agree by luck do not shrink it. With
    one seed only the latter is left. Positive means that ``other`` is better.

    Args:
        reference, other: one vector ``(samples,)`` per seed, whether each test sample was right.
        overlap: test samples per training sample; None where all seeds share one split. Then t needs no correction,
            and the samples count once: their interval is the mean of the seeds' own.
    """
    pools = zip(_pools(reference, overlap), _pools(other, overlap), strict=True)
    drop = _mean([paired_difference(a, b, confidence) for a, b in pools])
    gains = [float(b.mean() - a.mean()) for a, b in zip(reference, other, strict=True)]
    samples = Interval(-drop.estimate, -drop.high, -drop.low)
    return _wider(_t_interval(gains, overlap, confidence), samples, -1.0)


def _pools(right: Sequence[NDArray[np.bool_]], overlap: float | None) -> Sequence[NDArray[np.bool_]]:
    """Vectors of different samples: of all seeds together where each has its own split."""
    return right if overlap is None else [np.concatenate(right)]


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


def _wider(seeds: Interval, samples: Interval, least: float) -> Interval:
    """The estimate over seeds, within the hull of both intervals and ``least .. 1``."""
    low, high = min(seeds.low, samples.low), max(seeds.high, samples.high)
    return Interval(seeds.estimate, max(least, low), min(1.0, high))
