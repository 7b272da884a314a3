"""The front: builds that no other beats in both latency and the task's metric, over all targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mst_edge.stages.subject import overall

_AGREEMENT = "agreement"


def pareto(points: Sequence[tuple[float, float]], *, higher_is_better: bool = True) -> list[tuple[float, float]]:
    """The points that no other beats in both latency (lower) and the metric, by latency."""
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    return front


def summary(targets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a result says of all its targets together: ``targets``, ``gate`` and ``front``."""
    return {"targets": list(targets), "gate": overall(targets), "front": front_of(targets)}


def front_of(targets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The builds on the front, by p90.

    Without labels, agreement with the fp32 model stands for the metric. What a board has not measured yet is not there.
    """
    rows = [row for target in targets for row in (_measured(target) if target["on_host"] else _found(target))]
    if not rows:
        return []
    higher = rows[0]["metric"] == _AGREEMENT or targets[0]["scoring"]["higher_is_better"]
    kept = set(pareto([(row["p90_ms"], row["value"]) for row in rows], higher_is_better=higher))
    return sorted((row for row in rows if (row["p90_ms"], row["value"]) in kept), key=lambda row: row["p90_ms"])


def _measured(target: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for build in target["builds"]:
        if target["bundle"] is not None and not build["deployable"]:
            continue  # nobody can have it
        accuracy, drift = build["accuracy"], build["drift"]
        yield {
            "target": target["target"],
            "build": build["id"],
            "metric": _AGREEMENT if accuracy is None else target["scoring"]["metric"],
            "value": drift["agreement"] if accuracy is None else accuracy["value"],
            "samples": drift["samples"],
            "p90_ms": build["measurement"]["latency"]["p90_ms"],
        }


def _found(target: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of what came home from a board, the builds that were measured there and have a metric."""
    found = target.get("found")
    for name, about in found["builds"].items() if found else ():
        check, bench = about.get("check") or {}, about.get("bench") or {}
        if bench.get("valid") and check.get("value") is not None:
            yield {
                "target": target["target"],
                "build": name,
                "metric": check["metric"],
                "value": check["value"],
                "samples": check["samples"],
                "p90_ms": bench["latency"]["p90_ms"],
            }
