"""Recognises spoken digits as they come: sound files of any rate and length, standard input, or the microphone."""

from __future__ import annotations

from apps.streaming import GateRule, Rule
from apps.streaming.cli import listen, parse

# Words last half a second: three windows are averaged, two averages agree. `benchmarks.stream --tune` chose the rule.
RULE = Rule(smooth_s=0.3, threshold=0.8, hold=2, rest_s=0.3)
GATE = GateRule(open_db=9.0, close_db=5.0, hangover_s=0.3)


def main(arguments: list[str]) -> int:
    """``mst-edge app spoken-digits BUNDLE FILE... | - | --microphone``; returns the exit code."""
    return listen(parse("spoken-digits", __doc__, arguments, RULE, GATE))
