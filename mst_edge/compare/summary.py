"""From trials to the numbers of the table: means, ranks, paired differences and a verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from mst_edge.compare.contenders import LONE, Contender
from mst_edge.compare.intervals import gain_over_seeds, score_over_seeds
from mst_edge.compare.trial import Trial
from mst_edge.core.scoring import OutputSpec, Scoring, scoring_of
from mst_edge.core.stats import Interval
from mst_edge.recipe import Recipe

Vary = Literal["both", "initialisation", "split"]
VARY: tuple[Vary, ...] = get_args(Vary)


def summarise(
    recipe: Recipe,
    seeds: Sequence[int],
    vary: Vary,
    rows: Sequence[Contender],
    results: Sequence[Mapping[str, Trial]],
) -> dict[str, Any]:
    """One row per contender, and the verdict on the recipe's method.

    Args:
        vary: what a seed changed.
        results: per seed, trials by label.
    """
    samples = results[0][LONE].record["samples"]
    scoring = scoring_of(OutputSpec.from_dict(results[0][LONE].record["output"]))
    overlap = None if vary == "initialisation" else samples["test"] / samples["train"]
    students = [row.label for row in rows if row.role == "student"]
    ranks = _mean_ranks(students, results, scoring)
    summary = [_row(row, results, ranks, scoring, overlap) for row in rows]
    best = (max if scoring.higher_is_better else min)(row["mean"] for row in summary if row["role"] == "student")
    others = [label for label in students if label != LONE]
    judged = recipe.distill.method if recipe.distill.method in others else next(iter(others), None)
    return {
        "scoring": scoring.describe(),
        "seeds": list(seeds),
        "samples": samples,
        "epochs": recipe.distill.epochs.collaborate + recipe.distill.epochs.distill,
        "best": [row["label"] for row in summary if row["role"] == "student" and row["mean"] == best],
        "rows": summary,
        "verdict": next((_verdict(row, seeds) for row in summary if row["label"] == judged), None),
        "interval": _how(len(seeds), vary, scoring),
    }


def _row(
    contender: Contender,
    results: Sequence[Mapping[str, Trial]],
    ranks: Mapping[str, float],
    scoring: Scoring,
    overlap: float | None,
) -> dict[str, Any]:
    mine = [trials[contender.label] for trials in results]
    values = [trial.record["test"][scoring.metric] for trial in mine]
    scored = [trial.statistics for trial in mine]
    gain = None
    if contender.label != LONE:
        gain = gain_over_seeds([trials[LONE].statistics for trials in results], scored, scoring, overlap)
    return {
        "label": contender.label,
        "role": contender.role,
        "method": contender.method,
        "preset": contender.preset,
        "options": dict(contender.options),
        "parameters": mine[0].record["parameters"],
        "values": values,
        "mean": statistics.mean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "interval": _pair(score_over_seeds(scored, scoring, overlap)),
        "mean_rank": ranks.get(contender.label),
        "gain": None if gain is None else {"estimate": gain.estimate, "low": gain.low, "high": gain.high},
        "seconds": statistics.mean(trial.record["seconds"] for trial in mine),
        "peak_memory_mb": _most(mine, "peak_memory_mb"),
        "peak_gpu_memory_mb": _most(mine, "peak_gpu_memory_mb"),
    }


def _mean_ranks(students: Sequence[str], results: Sequence[Mapping[str, Trial]], scoring: Scoring) -> dict[str, float]:
    """Mean over seeds of each student's rank, 1 is best; equal ones share the mean of their places."""
    totals = dict.fromkeys(students, 0.0)
    sign = 1 if scoring.higher_is_better else -1
    for trials in results:
        values = {label: sign * trials[label].record["test"][scoring.metric] for label in students}
        for label, value in values.items():
            better = sum(other > value for other in values.values())
            equal = sum(other == value for other in values.values())
            totals[label] += better + (equal + 1) / 2
    return {label: total / len(results) for label, total in totals.items()}


def _verdict(row: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    gain = row["gain"]
    word = "clearly better than" if gain["low"] > 0 else "clearly worse than" if gain["high"] < 0 else ""
    said = word or "not clearly different from"
    text = (
        f"{row['label']} is {said} {LONE} over {len(seeds)} seed{'s' * (len(seeds) > 1)}: "
        f"{100 * gain['estimate']:+.1f} points, 95 % interval {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}"
    )
    return {"label": row["label"], "relation": said, "text": text}


def _how(seeds: int, vary: Vary, scoring: Scoring) -> str:
    paired = scoring.paired_interval
    if seeds == 1:
        return paired
    if vary == "initialisation":
        return f"the wider of: t over seeds; {paired}, mean over seeds, which share one test split"
    return f"the wider of: corrected t over seeds (Nadeau and Bengio 2003); {paired}, all seeds"


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _most(trials: Sequence[Trial], key: str) -> float | None:
    return max((trial.record[key] for trial in trials if trial.record[key] is not None), default=None)
