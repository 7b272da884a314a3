"""From probabilities of overlapping windows to events: smoothing, thresholds, debouncing, rejection."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from apps.runtime import BundleError

UNKNOWN = "?"


@dataclass(frozen=True)
class Rule:
    """When a class counts as there.

    Attributes:
        smooth_s: probabilities are averaged over windows that end within so long; before sound began they are zero.
        threshold: from which the average of a class makes an event.
        thresholds: of single classes, by label, instead.
        hold: windows in a row that must agree (debouncing).
        release: share of its threshold below which a class that was told may be told again.
        rest_s: shortest time between two events.
        unknown_s: shortest sound that makes an event ``?`` where it ended and no class was there.
    """

    smooth_s: float = 0.3
    threshold: float = 0.8
    thresholds: Mapping[str, float] = field(default_factory=dict)
    hold: int = 1
    release: float = 0.5
    rest_s: float = 0.3
    unknown_s: float = 0.15

    def by_label(self, labels: Sequence[str]) -> NDArray[np.float64]:
        """``(labels,)`` thresholds.

        Raises:
            BundleError: a threshold of a class that is not there, or one that is no probability.
        """
        for label, threshold in {**self.thresholds, "every class": self.threshold}.items():
            if label in self.thresholds and label not in labels:
                raise BundleError(
                    f"no class {label!r}", where="--threshold", fix=f"the classes are {', '.join(labels)}"
                )
            if not 0 < threshold <= 1:
                raise BundleError(
                    f"must be above 0 and at most 1, received {threshold:g} for {label}", where="--threshold"
                )
        return np.array([self.thresholds.get(label, self.threshold) for label in labels])


@dataclass(frozen=True)
class Event:
    """A class that was there.

    Attributes:
        label: the class, or ``?``.
        start_s, end_s: since the stream began; ``end_s`` as far as was known when it was told.
        confidence: smoothed probability of the class; of ``?`` that of ``guess``.
        guess: the likeliest class, whether it is believed or not.
        latency_ms: from ``end_s`` to when the event was told: stream that was waited for, and computing.
    """

    label: str
    start_s: float
    end_s: float
    confidence: float
    guess: str
    latency_ms: float

    def record(self) -> dict[str, str | float]:
        """For a machine."""
        return {
            "label": self.label,
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "confidence": round(self.confidence, 6),
            "guess": self.guess,
            "latency_ms": round(self.latency_ms, 3),
        }


class Decider:
    """Hears probabilities window by window and says which class is there.

    Attributes:
        smoothed: ``(labels,)`` average of the latest windows.
        best: number and smoothed probability of the class that was likeliest since ``reset``.
        told: whether an event was told since ``reset``.
    """

    def __init__(self, labels: Sequence[str], rule: Rule, hop_s: float) -> None:
        self.rule = rule
        self._thresholds = rule.by_label(labels)
        self._latest: deque[NDArray[np.float64]] = deque(maxlen=max(1, round(rule.smooth_s / hop_s)))
        self._rest = round(rule.rest_s / hop_s)
        self._since = self._rest  # windows since the last event
        self._held = 0
        self._candidate: int | None = None
        self._current: int | None = None  # the class that was told last and is still there
        self.smoothed = np.zeros(len(self._thresholds))
        self.best = (0, 0.0)
        self.told = False

    def hear(self, probabilities: NDArray[np.float64]) -> int | None:
        """The class that is there from this window on, by its number; None where there is none, or it was told."""
        self._latest.append(probabilities)
        self.smoothed = np.sum(self._latest, axis=0) / self._latest.maxlen
        self._since += 1
        likeliest = int(self.smoothed.argmax())
        if self.smoothed[likeliest] > self.best[1]:
            self.best = likeliest, float(self.smoothed[likeliest])
        there = self.smoothed[likeliest] >= self._thresholds[likeliest]
        same = there and self._candidate == likeliest
        self._held = self._held + 1 if same else int(there)
        self._candidate = likeliest if there else None
        fired = self._held >= self.rule.hold and self._since >= self._rest and likeliest != self._current
        if fired:
            self._current, self._since, self.told = likeliest, 0, True
        elif self._current is not None:
            low = self.rule.release * self._thresholds[self._current]
            self._current = None if self.smoothed[self._current] < low else self._current
        return likeliest if fired else None

    def reset(self) -> None:
        """Forgets what was heard: a sound is over."""
        self._latest.clear()
        self._held, self._candidate, self._current = 0, None, None
        self.smoothed = np.zeros(len(self._thresholds))
        self.best = (0, 0.0)
        self.told = False
