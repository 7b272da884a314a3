"""Whether two quantities put the same things in the same order: rank correlations with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.stats import Interval

_RESAMPLES = 2000
Correlation = Callable[[NDArray[np.float64], NDArray[np.float64]], float]


def kendall_tau(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """tau-b = (C - D) / sqrt((n0 - t1)(n0 - t2)) over the n0 pairs, of which t1 and t2 are ties (Kendall, Biometrika
    33, 1945). 0 where either is constant: it orders nothing.

    Args:
        one, other: ``(n,)``.
    """
    first, second = np.triu_indices(len(one), 1)
    signs = [np.sign(values[first] - values[second]) for values in (one, other)]
    untied = float(np.prod([np.count_nonzero(sign) for sign in signs], dtype=np.float64))
    return float(signs[0] @ signs[1]) / untied**0.5 if untied else 0.0


def spearman_rho(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Pearson's correlation of the ranks, equal values sharing the mean of theirs (Spearman, Am. J. Psychol. 15, 1904).

    0 where either is constant.

    Args:
        one, other: ``(n,)``.
    """
    centred = [ranks(values) - (len(values) - 1) / 2 for values in (one, other)]
    scale = float(np.sqrt(np.prod([part @ part for part in centred])))
    return float(centred[0] @ centred[1]) / scale if scale else 0.0


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n,)`` places from 0, the smallest first; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def rank_interval(
    one: Sequence[float], other: Sequence[float], correlation: Correlation, *, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """A rank correlation with the percentile interval of a bootstrap over the things that are ranked (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

    A draw in which either is constant orders nothing and counts as 0. Things drawn twice tie in both, which draws
    the interval toward 0 where there are few.

    Raises:
        ValueError: not two equal lengths of two or more.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(f"need two equal lengths of two or more; received {len(one)}, {len(other)}")
    x, y = np.asarray(one, np.float64), np.asarray(other, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(x), (_RESAMPLES, len(x)))
    found = [correlation(x[draw], y[draw]) for draw in draws]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(correlation(x, y), float(low), float(high))
