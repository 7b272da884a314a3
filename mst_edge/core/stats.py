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


def percentiles(values: Sequence[float] | NDArray[np.floating], ranks: Sequence[float]) -> list[float]:
    """Percentiles by the nearest-rank rule: each is a value that was really measured."""
    array = np.sort(np.asarray(values, dtype=np.float64))
    if not array.size:
        raise ValueError("no values")
    return [float(array[max(0, math.ceil(rank / 100 * array.size) - 1)]) for rank in ranks]


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)
