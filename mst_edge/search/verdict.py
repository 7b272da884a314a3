"""Whether a score can be trusted, and which student to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mst_edge.core.ranks import kendall_tau, rank_interval, spearman_rho

# Fewer candidates say too little about a rank correlation, and one below this leaves a quarter of the pairs in the
# wrong order: tau is the share of pairs in the right order less that of pairs in the wrong one.
LEAST_CANDIDATES, LEAST_TAU = 12, 0.5
SCORE, ACCURACY = "score", "accuracy"


def correlations(columns: Mapping[str, Sequence[float]], accuracy: Sequence[float]) -> dict[str, dict[str, Any]]:
    """By column, Kendall's tau and Spearman's rho with accuracy, each with its 95 % bootstrap interval.

    Args:
        columns: by name, a value per candidate.
        accuracy: larger is better.
    """
    return {
        name: {
            "kendall": asdict(rank_interval(values, accuracy, kendall_tau)),
            "spearman": asdict(rank_interval(values, accuracy, spearman_rho)),
        }
        for name, values in columns.items()
    }


def judge_score(found: Mapping[str, Mapping[str, Any]], candidates: int) -> dict[str, Any]:
    """Whether the score is recommended, and why.

    It is where its tau is at least 0.5 and its interval above 0, on 12 candidates or more, and no cheaper column
    (``parameters``, latency) orders them better.

    Args:
        found: as ``correlations`` gave it, the score by the name ``score``.
        candidates: that were trained.
    """
    if candidates < 2:
        count = "one candidate" if candidates else "no candidate"
        text = (
            f"{count} was trained, so that nobody knows what the score is worth here; --prove {LEAST_CANDIDATES} tells"
        )
        return {"trusted": False, "text": text}
    tau = found[SCORE]["kendall"]
    said = f"tau {tau['estimate']:+.2f}, 95 % interval {tau['low']:+.2f} to {tau['high']:+.2f}, {candidates} candidates"
    better = [
        f"{name} ({values['kendall']['estimate']:+.2f})"
        for name, values in found.items()
        if name not in (SCORE, "relation", "semantic") and values["kendall"]["estimate"] > tau["estimate"]
    ]
    if candidates < LEAST_CANDIDATES:
        reason = f"{LEAST_CANDIDATES} candidates are the least that tell"
    elif tau["estimate"] < LEAST_TAU or tau["low"] <= 0:
        reason = f"asked are a tau of {LEAST_TAU} and an interval above 0"
    elif better:
        reason = f"what costs nothing orders them better: {', '.join(better)}"
    else:
        return {"trusted": True, "text": f"the score orders trained students here: {said}"}
    return {"trusted": False, "text": f"the score is not recommended here: {said}; {reason}"}


def choose(rows: Sequence[Mapping[str, Any]], *, trusted: bool) -> tuple[str, str, str]:
    """The student to take, of those that were measured whole.

    Those that meet the goals come first, and where none does, the one that misses them least. Of these the best
    accuracy of those that were trained decides, unless the score is trusted or none was trained; then the best score.

    Args:
        rows: with ``key``, ``score``, ``short_by`` and ``accuracy`` (larger is better; None where not trained).

    Returns:
        Its key, what it was chosen by, and that in words.
    """
    least = min(row["short_by"] for row in rows)
    fit = [row for row in rows if row["short_by"] == least]
    trained = [row for row in fit if row["accuracy"] is not None]
    if trained and not trusted:
        # Of equals, the one that took the lead in the score.
        best = max(trained, key=lambda row: (row["accuracy"], row["score"]))
        by, words = ACCURACY, "the most accurate after a short training"
    else:
        best = max(fit, key=lambda row: row["score"])
        by, words = SCORE, "the best score"
    goals = "that meets latency and size goals" if least == 0 else "though it misses latency or size goals, as all do"
    return best["key"], by, f"{words} {goals}"
