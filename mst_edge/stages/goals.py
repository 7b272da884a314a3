"""What a recipe asks of builds, and how it has them measured."""

from __future__ import annotations

from dataclasses import replace

from mst_edge.recipe import Recipe
from targets import measure
from targets.gate import AccuracyGoal, Goals, LatencyGoal
from targets.measure import Protocol


def goals_of(recipe: Recipe) -> Goals:
    """The recipe's goals as the gate takes them."""
    said = recipe.goals
    return Goals(
        accuracy=AccuracyGoal(**said.accuracy.model_dump()),
        latency=LatencyGoal(**said.latency.model_dump()),
        max_size_mb=said.max_size_mb,
        max_memory_mb=said.max_memory_mb,
        min_int8_speedup=said.min_int8_speedup,
    )


def protocol_of(recipe: Recipe) -> Protocol:
    """The recipe's way to measure: its minima, and where its protocol is MLPerf's at least the rules'."""
    said = recipe.measure
    base, runs, seconds = measure.QUICK, said.min_runs, said.min_seconds
    if said.protocol == measure.MLPERF.name:
        base = measure.MLPERF
        runs, seconds = max(runs, base.min_runs), max(seconds, base.min_seconds)
    return replace(base, min_runs=runs, min_seconds=seconds, max_seconds=max(base.max_seconds, seconds))
