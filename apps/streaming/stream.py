"""A student that follows a stream: windows, gate, inference, decisions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime import Bundle, BundleError
from apps.runtime.answers import softmax
from apps.runtime.audio import Resampler

from .decide import UNKNOWN, Decider, Event, Rule
from .gate import Gate, GateRule
from .source import Block
from .windows import Windows, pieces

_CLIPPED = 0.999


@dataclass
class Counters:
    """What happened since a stream began; ``inference_s`` and ``busy_s`` (all of it) in seconds of CPU time."""

    seconds: float = 0.0
    windows: int = 0
    inferred: int = 0
    events: int = 0
    unknown: int = 0
    dropped: int = 0
    not_numbers: int = 0
    clipped: int = 0
    inference_s: float = 0.0
    busy_s: float = 0.0

    @property
    def gated(self) -> int:
        """Windows that the network was spared."""
        return self.windows - self.inferred

    def record(self) -> dict[str, float]:
        """For a machine."""
        return {**asdict(self), "gated": self.gated, "real_time_factor": self.busy_s / max(self.seconds, 1e-9)}


@dataclass(frozen=True)
class Step:
    """One window.

    Attributes:
        start: its first sample, in samples of the student's rate since the stream began; negative where the window
            begins before the stream.
        logits: what the student said, ``(labels,)``; None where the gate was closed.
        smoothed: probabilities ``(labels,)`` after smoothing.
        level_db, floor_db, hearing: of the gate.
        events: what was decided at its end.
    """

    start: int
    logits: NDArray[np.float32] | None
    smoothed: NDArray[np.float64]
    level_db: float
    floor_db: float
    hearing: bool
    events: tuple[Event, ...] = field(default=())


class Stream:
    """Follows a stream with the student of a bundle: what it says does not depend on how the stream comes in pieces.

    Sound is resampled as a file is, with silence before and after it, and a window that holds none of what the gate
    lets through is not inferred. Rows of numbers (a student for a ``sequence``) are taken as they are, and every window
    is inferred.

    Args:
        rate_hz: of the samples that come; None: the student's own.
        gate: None: the network runs on every window.
        gain_db: sound is made so much louder first.

    Raises:
        BundleError: the student neither listens nor reads a sequence, or does not classify; or a threshold of a class
            that it does not have.
    """

    def __init__(
        self,
        bundle: Bundle,
        rate_hz: int | None = None,
        *,
        rule: Rule | None = None,
        gate: GateRule | None = None,
        gain_db: float = 0.0,
    ) -> None:
        manifest, spec = bundle.manifest, bundle.manifest.input
        hop = spec.hop
        if hop is None or manifest.task != "classification":
            raise BundleError(
                f"its student does {manifest.task} of {spec.kind}, no stream is classified with it", where=bundle.folder
            )
        self.labels = manifest.labels
        self.counters = Counters()
        self.hearing = spec.kind == "audio"
        if self.hearing and spec.sample_rate_hz is None:
            raise BundleError("does not say at which rate it listens", where=bundle.folder)
        self.rate_hz = spec.sample_rate_hz or rate_hz or 1
        self._bundle = bundle
        self._gain = 10 ** (gain_db / 20)
        other_rate = self.hearing and rate_hz not in (None, self.rate_hz)
        self._resampler = Resampler(int(rate_hz or 0), self.rate_hz) if other_rate else None
        self._windows = Windows(spec.sizes[0], hop, spec.sizes[1:], padded=self.hearing)
        self._size = spec.sizes[0]
        self._gate = Gate(self.rate_hz, gate) if self.hearing and gate is not None else None
        self._decider = Decider(self.labels, rule or Rule(), hop / self.rate_hz)
        self._last_row = np.zeros(spec.sizes[1:], np.float32)
        self._told_end = 0  # where the latest event ended

    def follow(self, blocks: Iterable[Block]) -> Iterator[Event]:
        """The events of a whole stream."""
        for block in blocks:
            for step in self.push(block):
                yield from step.events
        for step in self.finish():
            yield from step.events

    def push(self, block: Block) -> list[Step]:
        """Takes the next piece; the windows that it completes."""
        start = time.process_time()
        self.counters.dropped += block.dropped
        samples = self._clean(block.samples)
        if self._resampler is not None:
            samples = self._resampler.push(samples)
        steps = self._through(samples)
        self.counters.seconds = self._windows.place / self.rate_hz
        self.counters.busy_s += time.process_time() - start
        return steps

    def finish(self) -> list[Step]:
        """The windows that still hold some of the stream when it is over."""
        start = time.process_time()
        steps = self._through(self._resampler.finish()) if self._resampler is not None else []
        self.counters.seconds = self._windows.place / self.rate_hz
        steps += self._through(np.zeros((self._windows.missing(), *self._last_row.shape), np.float32))
        self.counters.busy_s += time.process_time() - start
        return steps

    def _clean(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sound that is no number becomes silence, such a row of a sequence the row before it; both are counted."""
        if samples.shape[1:] != self._last_row.shape:
            raise BundleError(f"rows of {samples.shape[1:]} values, the student reads {self._last_row.shape}")
        bad = ~np.isfinite(samples.reshape(len(samples), -1)).all(axis=1)
        if bad.any():
            self.counters.not_numbers += int(bad.sum())
            samples = samples.copy()
            for row in np.flatnonzero(bad):
                samples[row] = 0.0 if self.hearing else (samples[row - 1] if row else self._last_row)
        if len(samples):
            self._last_row = np.array(samples[-1])
        if not self.hearing:
            return samples
        self.counters.clipped += int((np.abs(samples) >= _CLIPPED).sum())
        return samples if self._gain == 1 else samples * np.float32(self._gain)

    def _through(self, samples: NDArray[np.float32]) -> list[Step]:
        steps = []
        for piece in pieces(samples, self._windows):
            if self._gate is not None:
                self._gate.push(piece)
            window = self._windows.push(piece)
            if window is not None:
                steps.append(self._step(window))
        return steps

    def _step(self, window: NDArray[np.float32]) -> Step:
        self.counters.windows += 1
        gate, logits = self._gate, None
        events: tuple[Event, ...] = ()
        if gate is None or gate.opened:
            begun, used = time.perf_counter(), time.process_time()
            logits = self._infer(window)
            self.counters.inferred += 1
            self.counters.inference_s += time.process_time() - used
            events = self._decide(logits, begun)
        if gate is not None:
            gate.reset()
        return Step(
            self._windows.place - self._size,
            logits,
            self._decider.smoothed,
            gate.level_db if gate else 0.0,
            gate.floor_db if gate else 0.0,
            gate is None or gate.open,
            events,
        )

    def _infer(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        wanted: Any = self._bundle.manifest.input.dtype
        return self._bundle.outputs(window[None].astype(wanted))[0]

    def _decide(self, logits: NDArray[np.float32], begun: float) -> tuple[Event, ...]:
        fired = self._decider.hear(softmax(logits))
        events: tuple[Event, ...] = ()
        if fired is not None:
            self.counters.events += 1
            events = (self._event(self.labels[fired], fired, float(self._decider.smoothed[fired]), begun),)
        if self._gate is not None and not self._gate.open:
            lasted = (self._gate.end - self._gate.start) / self.rate_hz
            if not (events or self._decider.told) and lasted >= self._decider.rule.unknown_s:
                self.counters.unknown += 1
                events = (self._event(UNKNOWN, *self._decider.best, begun),)
            self._decider.reset()
        return events

    def _event(self, label: str, guess: int, confidence: float, begun: float) -> Event:
        """A class cannot have begun before its window did; what was no class lasted as long as the sound did."""
        now, gate = self._windows.place, self._gate
        end = min(now, gate.end) if gate is not None else now
        start = max(0, now - self._size) if gate is None or label != UNKNOWN else gate.start
        if gate is not None:
            start = max(start, gate.start, min(self._told_end, end))
        self._told_end = end
        latency_ms = 1000 * ((now - end) / self.rate_hz + time.perf_counter() - begun)
        return Event(label, start / self.rate_hz, end / self.rate_hz, confidence, self.labels[guess], latency_ms)
