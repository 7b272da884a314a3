"""What came of tuning a build, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def said_of(tuning: Mapping[str, Any]) -> str:
    """One line on a tuning, as ``result.json`` keeps it."""
    tried = f"{len(tuning['trials'])} settings tried"
    if tuning["unfinished"]:
        tried += ", then time ran out"
    taken = [trial for trial in tuning["trials"] if trial["taken"]]
    if not taken:
        return f"{tried}, none is faster beyond noise"
    steps = "; ".join(f"{_named(trial)} {_times(trial['speedup'])}" for trial in taken)
    return f"{tried}; taken, each against the one before: {steps}"


def _named(trial: Mapping[str, Any]) -> str:
    """The option that a trial changed: what was taken before it comes first."""
    name, value = list(trial["options"].items())[-1]
    return f"{name} {value}"


def _times(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['estimate']:.2f} x ({ratio['low']:.2f} to {ratio['high']:.2f})"
