"""The statistics behind verdicts: paired intervals for accuracy, percentiles for latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A point estimate with a confidence interval."""

    estimate: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """The interval of ``factor`` times the quantity; ``factor`` must be positive."""
        return Interval(self.estimate * factor, self.low * factor, self.high * factor)


def proportion_interval(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (Wilson, JASA 22, 1927)."""
    z = _z(confidence)
    p = successes / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(reference: NDArray[np.bool_], other: NDArray[np.bool_], confidence: float = 0.95) -> Interval:
    """How much less often ``other`` is right than ``reference`` on the same samples.

    Positive means that ``other`` is worse. The interval is the adjusted Wald interval for paired
    proportions (Bonett and Price, J. Educ. Behav. Stat. 37, 2012): add one to both discordant
    counts, so that it stays honest where no sample, or only a few, changed.

    Args:
        reference, other: ``(samples,)``, whether each sample was right.
    """
    if reference.shape != other.shape or reference.ndim != 1 or not reference.size:
        raise ValueError(f"need two equal, non-empty vectors; received {reference.shape}, {other.shape}")
    n = reference.size
    lost = int(np.sum(reference & ~other))
    won = int(np.sum(~reference & other))
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    half = _z(confidence) * math.sqrt((p_lost + p_won - (p_lost - p_won) ** 2) / (n + 2))
    centre = p_lost - p_won
    estimate = (lost - won) / n
    return Interval(estimate, max(-1.0, centre - half), min(1.0, centre + half))


def accuracy_over_seeds(right: Sequence[NDArray[np.bool_]], overlap: float, confidence: float = 0.95) -> Interval:
    """Mean accuracy over seeds, with the wider of two intervals.

    One is a t interval over the seeds' accuracies; the other, Wilson's over the samples of all seeds, keeps it
    honest where a few seeds agree by luck. With one seed only the latter is left.

    Args:
        right: one vector ``(samples,)`` per seed, whether each test sample was right.
        overlap: as in ``gain_over_seeds``.
    """
    pooled = np.concatenate(right)
    samples = proportion_interval(int(pooled.sum()), pooled.size, confidence)
    return _wider(_t_interval([float(r.mean()) for r in right], overlap, confidence), samples, 0.0)


def gain_over_seeds(
    reference: Sequence[NDArray[np.bool_]], other: Sequence[NDArray[np.bool_]], overlap: float, confidence: float = 0.95
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
        overlap: test samples per training sample.
    """
    drop = paired_difference(np.concatenate(reference), np.concatenate(other), confidence)
    gains = [float(b.mean() - a.mean()) for a, b in zip(reference, other, strict=True)]
    samples = Interval(-drop.estimate, -drop.high, -drop.low)
    return _wider(_t_interval(gains, overlap, confidence), samples, -1.0)


def _t_interval(values: Sequence[float], overlap: float, confidence: float) -> Interval:
    """mean +- t s sqrt(1/J + overlap) over J values; of no width for one value."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, mean, mean)
    spread = float(np.std(values, ddof=1)) * math.sqrt(1 / len(values) + overlap)
    half = t_quantile(confidence, len(values) - 1) * spread
    return Interval(mean, mean - half, mean + half)


def _wider(seeds: Interval, samples: Interval, least: float) -> Interval:
    """The estimate over seeds, within the hull of both intervals and ``least .. 1``."""
    low, high = min(seeds.low, samples.low), max(seeds.high, samples.high)
    return Interval(seeds.estimate, max(least, low), min(1.0, high))


def t_quantile(confidence: float, freedom: int) -> float:
    """The t for which Student's distribution with ``freedom`` degrees has ``confidence`` between -t and t."""
    low, high = 0.0, math.pi / 2
    while high - low > 1e-13:
        angle = (low + high) / 2
        low, high = (angle, high) if _t_within(angle, freedom) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _t_within(angle: float, freedom: int) -> float:
    """P(-t < T < t) for t = sqrt(freedom) tan(angle) (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    within = math.sin(angle) * total
    return 2 / math.pi * (angle + within) if odd else within


def percentiles(values: Sequence[float] | NDArray[np.floating], ranks: Sequence[float]) -> list[float]:
    """Percentiles by the nearest-rank rule: each is a value that was really measured."""
    array = np.sort(np.asarray(values, dtype=np.float64))
    if not array.size:
        raise ValueError("no values")
    return [float(array[max(0, math.ceil(rank / 100 * array.size) - 1)]) for rank in ranks]


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
