"""What a recipe asks of builds, and how it has them measured."""

from __future__ import annotations

from mst_edge.recipe import Recipe
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
    """The recipe's way to measure."""
    said = recipe.measure
    return Protocol(said.protocol, said.min_runs, said.min_seconds)
