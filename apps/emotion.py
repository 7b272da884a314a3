"""Tells the emotion of a voice as it speaks: sound files of any rate and length, standard input, or the microphone."""

from __future__ import annotations

from apps.streaming import GateRule, Rule
from apps.streaming.cli import listen, parse

# A state, not a word: pauses within a sentence close no gate, and a change is told at most once per second. Rather
# unknown than wrong: `benchmarks.emotion_stream --tune` says what other rules would give.
RULE = Rule(smooth_s=0.5, threshold=0.5, hold=2, rest_s=1.0, unknown_s=0.5)
GATE = GateRule(open_db=9.0, close_db=5.0, least_s=0.1, hangover_s=0.8)


def main(arguments: list[str]) -> int:
    """``mst-edge app emotion BUNDLE FILE... | - | --microphone``; returns the exit code."""
    return listen(parse("emotion", __doc__, arguments, RULE, GATE))
