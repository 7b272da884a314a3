"""The spoken-digits app's stream on hours of sound, faster than real time: prints the table of docs/performance.md.

    python -m benchmarks.soak BUNDLE --data-root DATA --hours 4

Ten minutes of words in noise at 44.1 kHz come again and again from a thread of its own, ``--speed`` times as fast as
they would be spoken, through the inbox that the microphone uses; what the stream does not take in time is dropped and
counted. Each round must give the logits and events of the round before, bit for bit: what differs is drift. Load is
time on the CPU over the length of the sound: of this process with all its threads, the one that feeds it included, and
of the stream alone.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.runtime import Bundle, memory_mb
from apps.runtime.audio import Waveform, resample
from apps.spoken_digits import GATE, RULE
from apps.streaming import Block, Stream
from apps.streaming.source import BLOCK_S, Inbox
from benchmarks.listening import RATE_HZ, Studio

_FED_HZ = 44100
_ROUND_S = 600
_KEPT_S = 5.0  # of the clock, as the microphone's inbox keeps


@dataclass(frozen=True)
class Round:
    """Hash of what was said in a round, and what the process held and had used when it was over; CPU time in s."""

    digest: str
    events: int
    inferred: int
    dropped: int
    memory_mb: float
    cpu_s: float
    stream_s: float


class Feeder(threading.Thread):
    """Puts the same sound into an inbox ``rounds`` times, ``speed`` times as fast as real time."""

    def __init__(self, samples: NDArray[np.float32], rounds: int, speed: float) -> None:
        super().__init__(daemon=True)
        self.inbox = Inbox("feeder", timeout_s=60.0, kept_s=_KEPT_S * speed)
        self._samples, self._rounds, self._speed = samples, rounds, speed

    def run(self) -> None:
        """In time with the clock: when it was kept waiting, it catches up."""
        step, begun, given = int(BLOCK_S * _FED_HZ), time.monotonic(), 0
        for _ in range(self._rounds):
            for start in range(0, len(self._samples), step):
                block = self._samples[start : start + step]
                given += len(block)
                time.sleep(max(0.0, begun + given / _FED_HZ / self._speed - time.monotonic()))
                self.inbox.put(block)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--speed", type=float, default=20.0, help="times real time")
    parser.add_argument("--round", type=float, default=_ROUND_S, help="seconds of sound that come again and again")
    said = parser.parse_args()
    sound = _sound(said.data_root, said.round)
    rounds = max(3, round(said.hours * 3600 / said.round))
    feeder = Feeder(sound, rounds + 1, said.speed)  # the last windows of a round end in the next
    with Bundle.open(said.bundle) as bundle:
        bundle.load()
        stream = Stream(bundle, _FED_HZ, rule=RULE, gate=GATE)
        feeder.start()
        found = soak(stream, feeder.inbox.blocks(), rounds, round(said.round * RATE_HZ))
    print("\n".join(table(found, said.round)), flush=True)


def _sound(root: Path, seconds: float) -> NDArray[np.float32]:
    """Words at 10 dB SNR, cut to ``seconds``, at 44.1 kHz."""
    samples = Studio(root, "test").words(round(seconds / 1.5) + 1, 10.0).samples[: round(seconds * RATE_HZ)]
    return resample(Waveform(samples, RATE_HZ), _FED_HZ).samples


def soak(stream: Stream, blocks: Iterable[Block], rounds: int, samples_per_round: int) -> list[Round]:
    """Follows the stream till ``rounds`` are over; a round holds the windows that begin in it."""
    found: list[Round] = []
    digest, events = hashlib.sha256(), 0
    used, busy, inferred, dropped = time.process_time(), 0.0, 0, 0
    for block in blocks:
        for step in stream.push(block):
            number, place = divmod(step.start, samples_per_round)
            if number > len(found):
                now, counters = time.process_time(), stream.counters
                amounts = (events, counters.inferred - inferred, counters.dropped - dropped)
                spent = (now - used, counters.busy_s - busy)
                found.append(Round(digest.hexdigest(), *amounts, memory_mb().get("now", 0.0), *spent))
                digest, events = hashlib.sha256(), 0
                used, busy, inferred, dropped = now, counters.busy_s, counters.inferred, counters.dropped
            if number == len(found):
                digest.update(str(place).encode() + (b"" if step.logits is None else step.logits.tobytes()))
                digest.update("".join(f"{event.label} {event.confidence!r}" for event in step.events).encode())
                events += len(step.events)
        if len(found) >= rounds:
            break
    return found


def table(rounds: Sequence[Round], seconds: float) -> list[str]:
    """Markdown: all rounds together; drift and growth are told against the second round, when all is warm."""
    settled = rounds[1:]
    drifted = sum(one.digest != settled[0].digest for one in settled)
    growth = settled[-1].memory_mb - settled[0].memory_mb
    names = (
        "hours",
        "events",
        "rounds unlike the second",
        "samples dropped",
        "memory MB, second round",
        "growth MB",
        "windows inferred per s",
        "CPU s per s",
        "of it in the stream",
    )
    cells = (
        f"{len(rounds) * seconds / 3600:.2f}",
        f"{sum(one.events for one in rounds):,}",
        f"{drifted} of {len(settled)}",
        f"{sum(one.dropped for one in rounds)}",
        f"{settled[0].memory_mb:.1f}",
        f"{growth:+.1f}",
        f"{sum(one.inferred for one in rounds) / len(rounds) / seconds:.2f}",
        f"{np.median([one.cpu_s for one in settled]) / seconds:.4f}",
        f"{np.median([one.stream_s for one in settled]) / seconds:.4f}",
    )
    return [f"| {' | '.join(names)} |", "|" + "---:|" * len(names), f"| {' | '.join(cells)} |"]


if __name__ == "__main__":
    main()
