"""How far a model's answers are from another's on the same samples: no labels are needed to tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 22  # values that are turned into probabilities at once


@dataclass(frozen=True)
class Drift:
    """A build against the fp32 model.

    Attributes:
        agreement: share of answers that are the same.
        js_mean, js_max: Jensen-Shannon distance of the probabilities, 0 where they are the same and 1 where they share
            nothing, over samples (of label maps, over pixels); None for numbers.
        correlation: Pearson's, per number; None for one that does not vary; empty for classes.
        samples: how many were compared.
    """

    agreement: float
    js_mean: float | None
    js_max: float | None
    correlation: tuple[float | None, ...]
    samples: int

    @property
    def least_correlation(self) -> float | None:
        """Of the number that drifts most; None where none varies, or there are no numbers."""
        return min((value for value in self.correlation if value is not None), default=None)


def js_distances(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Jensen-Shannon distances of two models' probabilities, from logits ``(samples, classes, ...)`` to
    ``(samples, ...)``.

    sqrt((KL(p || m) + KL(q || m)) / 2) with m = (p + q) / 2 and logarithms to base 2 (Endres and Schindelin, IEEE
    Trans. Inf. Theory 49, 2003).
    """
    step = max(1, _AT_ONCE // max(1, one[0].size))
    found = []
    for start in range(0, len(one), step):
        p, q = (_probabilities(logits[start : start + step]) for logits in (one, other))
        m = (p + q) / 2
        found.append(np.sqrt(np.maximum(0, (_divergence(p, m) + _divergence(q, m)) / 2)))
    return np.concatenate(found)


def correlations(one: NDArray[Any], other: NDArray[Any]) -> tuple[float | None, ...]:
    """Pearson's correlation of each number, ``(samples, names)`` both; None where one of them does not vary."""
    a, b = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (one, other))
    norms = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    return tuple(
        float(np.clip(product / norm, -1, 1)) if norm > 0 else None
        for product, norm in zip((a * b).sum(axis=0), norms, strict=True)
    )


def _probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _divergence(p: NDArray[np.float64], m: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(p || m) in bits over axis 1; where p is 0, so is the term."""
    return np.where(p > 0, p * np.log2(np.where(p > 0, p, 1) / np.where(p > 0, m, 1)), 0).sum(axis=1)
