"""What a recipe asks of builds, and how it has them measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mst_edge.recipe import Recipe
from targets import measure
from targets.gate import Goals
from targets.measure import Protocol


def goals_of(recipe: Recipe, target: str) -> Goals:
    """The recipe's goals for a target, as the gate takes them."""
    said = recipe.goals.model_dump(exclude={"targets"})
    own = recipe.goals.targets.get(target)
    return Goals.of({"drift": {}, **(said if own is None else _replaced(said, own.model_dump()))})


def _replaced(said: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``said`` with what ``own`` says: all but None and False."""
    return {
        name: _replaced(value, own[name])
        if isinstance(value, Mapping)
        else (value if own[name] is None or own[name] is False else own[name])
        for name, value in said.items()
    }


def protocol_of(recipe: Recipe) -> Protocol:
    """The recipe's way to measure: its minima, and where its protocol is MLPerf's at least the rules'."""
    said = recipe.measure
    base, runs, seconds = measure.QUICK, said.min_runs, said.min_seconds
    if said.protocol == measure.MLPERF.name:
        base = measure.MLPERF
        runs, seconds = max(runs, base.min_runs), max(seconds, base.min_seconds)
    return replace(base, min_runs=runs, min_seconds=seconds, max_seconds=max(base.max_seconds, seconds))
