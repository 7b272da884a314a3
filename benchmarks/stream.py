"""What gate, smoothing and thresholds make of spoken digits in a stream: prints the tables of docs/performance.md.

    python -m benchmarks.stream BUNDLE --data-root DATA           # what the app's defaults give on test utterances
    python -m benchmarks.stream BUNDLE --data-root DATA --tune    # how they were chosen, on validation utterances

A word counts as detected where its digit is told between its start and a second after its end; every event tells at
most one word. A wrong digit told in that time is a confusion, any other event a false alarm. ``?`` is neither.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime import Bundle
from apps.spoken_digits import GATE, RULE
from apps.streaming import UNKNOWN, Block, Counters, GateRule, Rule, Stream
from benchmarks.listening import RATE_HZ, Studio, Track

_LATE_S = 1.0
_BLOCK = RATE_HZ // 20
_NOISE_RMS = 0.03


@dataclass(frozen=True)
class Told:
    """An event, and the second of the stream when it was told."""

    label: str
    at_s: float


@dataclass(frozen=True)
class Score:
    """What became of a track's words."""

    words: int
    detected: int
    confused: int
    false_alarms: int
    unknown: int
    latencies_s: tuple[float, ...]
    seconds: float
    counters: Counters

    @property
    def per_hour(self) -> float:
        """False alarms per hour."""
        return 3600 * self.false_alarms / self.seconds

    @property
    def worth(self) -> float:
        """What tuning maximises: detected words less wrong events, per word."""
        return (self.detected - self.confused - self.false_alarms) / max(1, self.words)


class Remembering(Bundle):
    """A bundle that answers a window that it knows without running it: tuning hears every track many times."""

    def __init__(self, folder: Path, manifest: Any) -> None:
        super().__init__(folder, manifest)
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def outputs(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        key = batch.tobytes()
        if key not in self._known:
            self._known[key] = super().outputs(batch)
        return self._known[key]


def hear(bundle: Bundle, track: Track, rule: Rule, gate: GateRule | None) -> Score:
    """Plays a track to the app's stream."""
    stream = Stream(bundle, RATE_HZ, rule=rule, gate=gate)
    told = []
    for start in range(0, len(track.samples), _BLOCK):
        for step in stream.push(Block(track.samples[start : start + _BLOCK])):
            told += [Told(event.label, event.end_s + event.latency_ms / 1000) for event in step.events]
    told += [Told(e.label, e.end_s + e.latency_ms / 1000) for step in stream.finish() for e in step.events]
    return judge(track, told, stream.counters)


def judge(track: Track, told: Sequence[Told], counters: Counters) -> Score:
    """Counts detections, confusions and false alarms."""
    latencies: dict[int, float] = {}
    confused = false_alarms = 0
    events = [event for event in told if event.label != UNKNOWN]
    for event in events:
        near = [n for n, w in enumerate(track.words) if w.start_s <= event.at_s <= w.end_s + _LATE_S]
        right = [n for n in near if str(track.words[n].digit) == event.label and n not in latencies]
        if right:
            latencies[right[0]] = event.at_s - track.words[right[0]].end_s
        elif near:
            confused += 1
        else:
            false_alarms += 1
    unknown = len(told) - len(events)
    found = tuple(latencies.values())
    return Score(len(track.words), len(found), confused, false_alarms, unknown, found, track.seconds, counters)


def main() -> None:
    """Prints the tables, or tunes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument(
        "--snr", type=lambda text: [float(snr) for snr in text.split(",")], default=[20.0, 10.0, 5.0, 0.0]
    )
    parser.add_argument("--words", type=int, default=200, help="per signal-to-noise ratio")
    parser.add_argument("--noise-minutes", type=float, default=30.0, help="of noise alone")
    parser.add_argument("--tune", action="store_true")
    said = parser.parse_args()
    studio = Studio(said.data_root, "val" if said.tune else "test")
    tracks = {"quiet": studio.words(said.words, None)}
    tracks |= {f"{snr:g} dB": studio.words(said.words, snr) for snr in said.snr}
    tracks["noise alone"] = studio.noise(60 * said.noise_minutes, _NOISE_RMS)
    kind = Remembering if said.tune else Bundle
    with kind.open(said.bundle) as bundle:
        bundle.load()
        lines = tune(bundle, tracks) if said.tune else report(bundle, tracks)
        for line in lines:
            print(line, flush=True)


def tune(bundle: Bundle, tracks: dict[str, Track]) -> Iterator[str]:
    """All rules of a grid, the best last."""
    grid = itertools.product((0.2, 0.3, 0.4), (0.7, 0.8, 0.9), (1, 2))
    scored = []
    for smooth, threshold, hold in grid:
        rule = replace(RULE, smooth_s=smooth, threshold=threshold, hold=hold)
        scores = [hear(bundle, track, rule, GATE) for track in tracks.values()]
        worth = float(np.mean([score.worth for score in scores if score.words]))
        scored.append((worth, f"smooth {smooth} s, threshold {threshold}, hold {hold}", scores[-1].per_hour))
    for worth, text, per_hour in sorted(scored):
        yield f"{worth:.3f}  {text}; noise alone: {per_hour:.0f} false alarms per hour"


def report(bundle: Bundle, tracks: dict[str, Track]) -> Iterator[str]:
    """A table of the app's defaults by noise, and one of what becomes of them without gate or smoothing."""
    yield from _head("words in")
    for name, track in tracks.items():
        yield _row(name, hear(bundle, track, RULE, GATE))
    yield ""
    yield from _head("all of the above, with")
    variants: dict[str, tuple[Rule, GateRule | None]] = {
        "the defaults": (RULE, GATE),
        "no gate": (RULE, None),
        "no smoothing": (replace(RULE, smooth_s=0.0), GATE),
    }
    for name, (rule, gate) in variants.items():
        yield _row(name, total([hear(bundle, track, rule, gate) for track in tracks.values()]))


def total(scores: Sequence[Score]) -> Score:
    """All tracks as one."""
    counters = Counters()
    for score in scores:
        for name in ("seconds", "windows", "inferred", "inference_s", "busy_s"):
            setattr(counters, name, getattr(counters, name) + getattr(score.counters, name))
    return Score(
        words=sum(score.words for score in scores),
        detected=sum(score.detected for score in scores),
        confused=sum(score.confused for score in scores),
        false_alarms=sum(score.false_alarms for score in scores),
        unknown=sum(score.unknown for score in scores),
        latencies_s=tuple(latency for score in scores for latency in score.latencies_s),
        seconds=sum(score.seconds for score in scores),
        counters=counters,
    )


def _head(first: str) -> Iterator[str]:
    names = (
        "detected",
        "confused",
        "false alarms per hour",
        "? per hour",
        "latency p50, p90 ms",
        "windows inferred",
        "real-time factor",
        "of it gate and smoothing",
    )
    yield f"| {first} | {' | '.join(names)} |"
    yield "|---|" + "---:|" * len(names)


def _row(name: str, score: Score) -> str:
    counters = score.counters
    rate = "-" if not score.words else f"{score.detected / score.words:.1%}"
    wrong = "-" if not score.words else f"{score.confused / score.words:.1%}"
    latency = (
        ", ".join(f"{1000 * q:.0f}" for q in np.quantile(score.latencies_s, (0.5, 0.9))) if score.detected else "-"
    )
    cells = (
        rate,
        wrong,
        f"{score.per_hour:.0f}",
        f"{3600 * score.unknown / score.seconds:.0f}",
        latency,
        f"{counters.inferred / counters.windows:.0%}",
        f"{counters.busy_s / counters.seconds:.4f}",
        f"{(counters.busy_s - counters.inference_s) / counters.seconds:.4f}",
    )
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
