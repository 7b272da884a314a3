"""The statistics behind verdicts: paired intervals for accuracy and for ratios of latencies, percentiles."""

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

    @property
    def above_one(self) -> bool:
        """Of a ratio: larger than 1 beyond noise."""
        return self.low > 1

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


def unpaired_difference(first: Interval, second: Interval) -> Interval:
    """``first`` less ``second``, each with an interval of its own samples, at the same confidence as theirs.

    The method of variance estimates recovery (Zou and Donner, Stat. Med. 27, 2008), which of two proportions with
    Wilson's intervals is Newcombe's (Stat. Med. 17, 1998, method 10).
    """
    estimate = first.estimate - second.estimate
    down = math.hypot(first.estimate - first.low, second.high - second.estimate)
    up = math.hypot(first.high - first.estimate, second.estimate - second.low)
    return Interval(estimate, estimate - down, estimate + up)


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], confidence: float = 0.95) -> Interval:
    """How many times as large ``numerator`` is as ``denominator``, from rounds in which both were measured.

    The Hodges-Lehmann estimate of the rounds' logarithmic ratios with the interval that inverts Wilcoxon's
    signed-rank test (Hodges and Lehmann, Ann. Math. Stat. 34, 1963; Hollander and Wolfe, Nonparametric Statistical
    Methods, 3.3). What both share in a round (a slow minute) cancels. Of two equals, the ratio's logarithm is as
    often positive as negative, so that the interval leaves 1 out no more often than it says, whatever the noise is
    like; a bootstrap over as few as ten rounds is too narrow, and one stray round moves a mean.

    Args:
        numerator, denominator: ``(rounds,)``, positive. With fewer than 6 rounds no interval of 95 % exists: it is
            then all positive numbers.
    """
    if len(numerator) != len(denominator) or not len(numerator):
        raise ValueError(f"need two equal, non-empty vectors; received {len(numerator)}, {len(denominator)} rounds")
    logs = np.log(np.asarray(numerator, np.float64)) - np.log(np.asarray(denominator, np.float64))
    first, second = np.triu_indices(len(logs))
    averages = np.sort((logs[first] + logs[second]) / 2)
    depth = _signed_rank_depth(len(logs), confidence)
    low, high = (averages[depth - 1], averages[-depth]) if depth else (-math.inf, math.inf)
    return Interval(*(float(value) for value in np.exp([np.median(averages), low, high])))


def percentiles(values: Sequence[float] | NDArray[np.floating], ranks: Sequence[float]) -> list[float]:
    """Percentiles by the nearest-rank rule: each is a value that was really measured."""
    array = np.sort(np.asarray(values, dtype=np.float64))
    if not array.size:
        raise ValueError("no values")
    return [float(array[max(0, math.ceil(rank / 100 * array.size) - 1)]) for rank in ranks]


def _signed_rank_depth(rounds: int, confidence: float) -> int:
    """How many Walsh averages lie outside the interval on either side, plus one; 0 where there are too few rounds.

    The largest c with P(T <= c - 1) <= (1 - confidence) / 2, T the sum of the ranks 1 .. rounds, each of which counts
    with probability 1/2.
    """
    chances = np.ones(1)
    for rank in range(1, rounds + 1):
        one_more = np.zeros(len(chances) + rank)
        one_more[: len(chances)] += chances / 2
        one_more[rank:] += chances / 2
        chances = one_more
    return int(np.searchsorted(np.cumsum(chances), (1 - confidence) / 2, side="right"))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
