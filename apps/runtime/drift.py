"""How far this device's answers are from the fp32 model's on the reference inputs: no labels are needed to tell.

The formulas are those of ``mst_edge.core.drift``, which a bundle cannot carry along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import softmax


@dataclass(frozen=True)
class Drift:
    """``agreement``: share of labels (of label maps, pixels) that are the same; ``js_mean`` and ``js_max``:
    Jensen-Shannon distance of probabilities, 0 to 1. Of numbers instead ``correlation``, Pearson's by name."""

    agreement: float | None
    js_mean: float | None
    js_max: float | None
    correlation: dict[str, float | None]
    samples: int

    def text(self) -> str:
        """For a person."""
        if self.agreement is None:
            said = (f"{name} {'-' if r is None else f'{r:.4f}'}" for name, r in self.correlation.items())
            return f"correlation with the fp32 model: {', '.join(said)}; {self.samples} samples"
        return (
            f"labels as the fp32 model: {self.agreement:.1%}; Jensen-Shannon distance mean {self.js_mean:.3g}, "
            f"max {self.js_max:.3g}; {self.samples} samples"
        )


def drift(said: NDArray[Any], reference: NDArray[Any], names: tuple[str, ...], *, numbers: bool) -> Drift:
    """Two models' outputs ``(samples, names, ...)`` for the same inputs."""
    if numbers:
        return Drift(None, None, None, dict(zip(names, _correlations(said, reference), strict=True)), len(said))
    p, q = (softmax(np.moveaxis(outputs, 1, -1)) for outputs in (said, reference))
    m = (p + q) / 2
    distances = np.sqrt(np.maximum(0, (_divergence(p, m) + _divergence(q, m)) / 2))
    same = float((said.argmax(axis=1) == reference.argmax(axis=1)).mean())
    return Drift(same, float(distances.mean()), float(distances.max()), {}, len(said))


def further(here: Drift, packed: Drift) -> str:
    """In words, where ``here`` is clearly further from the fp32 model than ``packed``; empty where it is not.

    One answer of few may flip on another device, or 5 % of many; probabilities may move by a Jensen-Shannon distance of
    0.1 on average (90 % become 80 %), a correlation fall by 0.01.
    """
    if here.agreement is not None and packed.agreement is not None:
        if here.agreement < packed.agreement - max(0.05, 1.001 / here.samples):
            return f"{here.agreement:.1%} of labels as the fp32 model, {packed.agreement:.1%} where it was packed"
        if here.js_mean is not None and packed.js_mean is not None and not here.js_mean <= packed.js_mean + 0.1:
            return f"Jensen-Shannon distance {here.js_mean:.3g}, {packed.js_mean:.3g} where it was packed"
        return ""
    for name, before in packed.correlation.items():
        now = here.correlation[name]
        if before is not None and (now is None or not now >= before - 0.01):
            return f"{name} correlates with {now}, {before:.4f} where it was packed"
    return ""


def _correlations(one: NDArray[Any], other: NDArray[Any]) -> list[float | None]:
    a, b = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (one, other))
    norms = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    return [float(p / n) if n > 0 else None for p, n in zip((a * b).sum(axis=0), norms, strict=True)]


def _divergence(p: NDArray[np.float64], m: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(p || m) in bits over the last axis."""
    return np.where(p > 0, p * np.log2(np.where(p > 0, p, 1) / np.where(p > 0, m, 1)), 0).sum(axis=-1)
