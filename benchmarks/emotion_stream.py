"""What the emotion app tells of whole clips of actors that its student never heard.

    python -m benchmarks.emotion_stream BUNDLE --data-root DATA           # the app's defaults, on test actors
    python -m benchmarks.emotion_stream BUNDLE --data-root DATA --tune    # how they were chosen, on validation actors

The bundle is that of ``mst-edge run ravdess``, whose split this is. A clip is right where the last emotion told is its
own, and unknown where none was told. Offline is the student's answer for the stretch with the most energy, as in the
run's own evaluation: it has no way to say that it does not know.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.emotion import GATE, RULE
from apps.runtime import Bundle
from apps.runtime.audio import fit_length
from apps.streaming import UNKNOWN, Block, Rule, Stream
from benchmarks.stream import Remembering
from distill.datasets.raw import ravdess
from distill.datasets.splits import SplitRule, split_codes

_FETCH = "mst-edge data fetch ravdess"
_SPLIT = SplitRule(seed=0, by="actor", folds=4)
_RATE_HZ = 16000

Clip = tuple[NDArray[np.float32], str]


def main() -> None:
    """Prints a line per rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=360, help="at most so many, drawn at random")
    parser.add_argument("--tune", action="store_true")
    said = parser.parse_args()
    clips = list(_clips(said.data_root, 1 if said.tune else 2, said.clips))
    rules = [RULE]
    if said.tune:
        grid = itertools.product((0.25, 0.5, 1.0), (0.3, 0.4, 0.5), (1, 2))
        rules = [replace(RULE, smooth_s=smooth, threshold=share, hold=hold) for smooth, share, hold in grid]
    with Remembering.open(said.bundle) as bundle:
        bundle.load()
        print(f"offline: {_offline(bundle, clips)} of {len(clips)} right")
        for rule in rules:
            right, wrong, unknown = count(bundle, clips, rule)
            words = f"smooth {rule.smooth_s} s, threshold {rule.threshold}, hold {rule.hold}"
            print(f"{words}: {right} right, {wrong} wrong, {unknown} unknown", flush=True)


def _clips(root: Path, part: int, most: int) -> Iterator[Clip]:
    clips = ravdess.clips_of(ravdess.ACTORS)
    target = np.array([clip.emotion for clip in clips])
    codes = split_codes(target, {"actor": np.array([clip.actor for clip in clips])}, _SPLIT)
    chosen = set(np.random.default_rng(0).permutation(np.flatnonzero(codes == part))[:most].tolist())
    sound = ravdess.read_speech(ravdess.AUDIO.locate(root, _FETCH), clips, _RATE_HZ)
    for number, (pcm, _) in enumerate(sound):
        if number in chosen:
            yield (pcm / 32768.0).astype(np.float32), ravdess.EMOTIONS[target[number]]


def _offline(bundle: Bundle, clips: Sequence[Clip]) -> int:
    (length,) = bundle.manifest.input.sizes
    return sum(bundle.predict(fit_length(samples, length)[0]).label == label for samples, label in clips)


def count(bundle: Bundle, clips: Sequence[Clip], rule: Rule) -> tuple[int, int, int]:
    """Clips whose last emotion told is right, wrong, and none."""
    found = [0, 0, 0]
    for samples, label in clips:
        events = Stream(bundle, _RATE_HZ, rule=rule, gate=GATE).follow([Block(samples)])
        told = [event.label for event in events if event.label != UNKNOWN]
        found[2 if not told else int(told[-1] != label)] += 1
    return found[0], found[1], found[2]


if __name__ == "__main__":
    main()
