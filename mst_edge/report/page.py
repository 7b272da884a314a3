"""``report.html``: one self-contained page with everything that a run found out."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from mst_edge.core.errors import UserError
from mst_edge.core.files import read_json, write_text
from mst_edge.front import pareto
from mst_edge.report import layers, svg
from mst_edge.report.table import dla_lines, found_words, model_name, short_verdict
from mst_edge.report.tuning import said_of
from mst_edge.run_folder import RunFolder


def write_report(run: RunFolder) -> Path:
    """Writes the page from ``result.json`` and the training histories; returns its path.

    Raises:
        UserError: the run has no result yet, or is of a model that was not trained here.
    """
    result = run.result()
    if "distill" not in result:
        raise UserError("holds a model that came as a file, which has no page", where=run.path, fix="read result.json")
    histories = read_json(run.histories_file)
    loader = jinja2.PackageLoader("mst_edge.report", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(
        percent=lambda v, digits=1: f"{v:.{digits}%}", ms=lambda v: f"{v:.3f}", found=found_words, said=_said
    )
    page = environment.get_template("report.html.j2").render(
        result=result,
        scoring=result["distill"]["scoring"],
        models=[{**row, "name": model_name(row, result["distill"])} for row in result["distill"]["models"]],
        models_chart=_models_chart(result),
        curves=_curves(result, histories),
        teachers=result["distill"]["teachers"],
        certainty=result["distill"]["certainty"],
        routing=_routing(result),
        loyalties=_loyalties(result),
        sensitivity=_sensitivity(result),
        mixed=_mixed(result),
        numerics=_numerics(run),
        targets=[_target(target) for target in _measured(result)],
        front=result["front"] if len({row["target"] for row in result["front"]}) > 1 else [],
        boards=[{**target, "dla": list(dla_lines(target))} for target in result["targets"] if not target["on_host"]],
        recipe=yaml.safe_dump(result["recipe"], sort_keys=False),
        provenance=json.dumps(result["provenance"], indent=2),
        headline=_headline(result),
    )
    write_text(run.report_file, page)
    return run.report_file


def _said(section: Mapping[str, Any], place: str = "") -> str:
    """What a recipe's section sets, by its keys; nothing of what is left null or false."""
    words = [
        _said(value, f"{place}{name}.") if isinstance(value, Mapping) else f"{place}{name} {value}"
        for name, value in section.items()
        if value not in (None, False)
    ]
    return ", ".join(filter(None, words))


def _invalid(measured: Mapping[str, Any]) -> str:
    """Why times are invalid, if they are; nothing of runs whose conditions were not recorded."""
    conditions = measured.get("conditions")
    return "" if conditions is None else "".join(f"; invalid, {problem}" for problem in conditions["problems"])


def _headline(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """The tiles at the top: the numbers that people came for."""
    tiles = []
    for target in _measured(result):
        row, scoring = _chosen(target), target["scoring"]
        latency, measured = row["measurement"]["latency"], row["measurement"]
        drop = row["accuracy"]["relative_drop"]["estimate"]
        side = "below" if (drop > 0) is scoring["higher_is_better"] else "above"
        lost = f"{abs(drop):.1%} relative {side} fp32" if drop else "as fp32"
        tiles += [
            {"value": f"{row['accuracy']['value']:.1%}", "name": scoring["label"], "note": lost},
            {
                "value": f"{latency['p90_ms']:.3f} ms",
                "name": f"latency p90, {target['target']}",
                "note": f"p50 {latency['p50_ms']:.3f} ms, {latency['threads']} thread(s), batch 1{_invalid(measured)}",
            },
            {
                "value": f"{measured['size_bytes'] / 1e6:.2f} MB",
                "name": "model size",
                "note": f"peak memory {measured['peak_memory_mb']:.0f} MB, loads in {measured['load_ms']:.0f} ms",
            },
        ]
    return tiles


def _measured(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Targets that are this machine: their builds have been measured."""
    return [target for target in result["targets"] if target["on_host"]]


def _chosen(target: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(row for row in target["builds"] if row["id"] == target["chosen"])


def _models_chart(result: Mapping[str, Any]) -> str:
    distill = result["distill"]
    metric = distill["scoring"]["metric"]
    rows = [
        (model_name(row, distill), row["test"][metric], *row["test_interval"], style)
        for row, style in zip(distill["models"], _styles(distill), strict=True)
    ]
    return svg.intervals(rows, most=_most(distill["scoring"]))


def _most(scoring: Mapping[str, Any]) -> float:
    """The largest value that an axis may show."""
    return 1.0 if scoring["higher_is_better"] else math.inf


def _styles(distill: Mapping[str, Any]) -> list[int]:
    """A colour per trained model: the deployed student's, the teacher's, and one for each other student."""
    others = itertools.cycle(range(2, svg.STYLES))
    return [
        1 if row["role"] == "teacher" else 0 if row["method"] == distill["method"] else next(others)
        for row in distill["models"]
    ]


def _curves(result: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """The headline metric on validation samples per epoch of every student and of the teacher, with a legend.

    An epoch whose phase validates something else (hints, say) is left out of the line.
    """
    distill = result["distill"]
    judged = f"val_{distill['scoring']['metric']}"
    series: dict[str, list[tuple[int, float]]] = {}
    styles: dict[str, int] = {}
    for row, style in zip(distill["models"], _styles(distill), strict=True):
        if not row["phases"]:
            continue  # a teacher that came trained, or a partner trained beside another student
        epochs = [epoch for phase in row["phases"] for epoch in histories[phase]]
        name = model_name(row, distill)
        series[name] = [(n, e[judged]) for n, e in enumerate(epochs, start=1) if judged in e]
        styles[name] = style
    y_label = f"validation {distill['scoring']['label']}"
    chart = svg.lines(series, x_label="epoch", y_label=y_label, styles=styles) if series else ""
    return {"chart": chart, "legend": [{"name": name, "style": style} for name, style in styles.items()]}


def _routing(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """How often each specialised teacher was chosen, per epoch."""
    insights = result["distill"]["insights"].get(result["distill"]["method"], {})
    teachers = insights.get("teachers", [])
    if not teachers:
        return None
    chart = svg.stacked({row["name"]: row["use"] for row in teachers}, x_label="epoch", y_label="share of samples")
    rows = [
        {
            "name": row["name"],
            "style": style % svg.STYLES,
            "judged": row["val"][result["distill"]["scoring"]["metric"]],
            "use": row["use"][-1],
            "mask_parameters": row["mask_parameters"],
        }
        for style, row in enumerate(teachers)
    ]
    return {"chart": chart, "teachers": rows}


_KINDS = ("label", "probability", "regression")


def _loyalties(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How closely students follow the teachers of their mean, per method that has such."""
    metric = result["distill"]["scoring"]["metric"]
    found = {name: said["loyalty"] for name, said in result["distill"]["insights"].items() if "loyalty" in said}
    return [
        {
            "method": name,
            "kinds": [kind for kind in _KINDS if kind in rows[0]],
            "rows": [{**row, "judged": row[metric]} for row in rows],
        }
        for name, rows in found.items()
    ]


def _sensitivity(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """What int8 does to each layer."""
    found = result["sensitivity"]
    if found is None:
        return None
    return {
        "advice": layers.sensitivity_advice(found),
        "chart": layers.sensitivity_chart(found),
        "headings": layers.HEADINGS,
        "rows": layers.sensitivity_rows(found),
        "recipe": layers.recipe_lines(found) if found["exclude"] else "",
        "samples": found["samples"],
    }


def _numerics(run: RunFolder) -> dict[str, Any] | None:
    """Builds and torch, layer by layer, where they were compared."""
    file = run.path / "numerics.json"
    if not file.is_file():
        return None
    found = read_json(file)
    head, *rows = layers.numerics_table(found)
    return {"verdicts": layers.numerics_verdicts(found), "head": head, "rows": rows, "samples": found["samples"]}


def _mixed(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the searches for mixed precision found, per target."""
    found = [row for row in result["variants"] if row["target"] and "front" in row["facts"]]
    return [
        {
            "advice": layers.mixed_advice(row["target"], row["facts"]),
            "in_float": row["facts"]["chosen"]["in_float"],
            "front": row["facts"]["front"],
        }
        for row in found
    ]


def _target(target: Mapping[str, Any]) -> dict[str, Any]:
    runtimes = list(dict.fromkeys(row["runtime"] for row in target["builds"]))
    points = [_point(row, target, runtimes) for row in target["builds"]]
    goals, scoring = target["goals"], target["scoring"]
    return {
        **target,
        "rows": [{**row, "short": short_verdict(row)} for row in target["builds"]],
        "winner": _chosen(target),
        "tunings": [f"{tuning['build_id']}: {said_of(tuning)}" for tuning in target["tuning"]],
        "scenarios": [_scenarios(row) for row in target["builds"] if _has_scenarios(row["measurement"])],
        "runtimes": [{"name": name, "style": style} for style, name in enumerate(runtimes)],
        "front": svg.scatter(
            points,
            x_label="latency p90, ms",
            y_label=f"{scoring['label']} on the test split",
            front=pareto([(point.x, point.y) for point in points], higher_is_better=scoring["higher_is_better"]),
            x_limit=goals["latency"]["p90_ms"],
            y_limit=_limit(target),
            higher_is_better=scoring["higher_is_better"],
        ),
        "confusion_chart": target["confusion"] and svg.confusion(target["confusion"], target["classes"]),
    }


def _has_scenarios(measured: Mapping[str, Any]) -> bool:
    return bool(measured["energy"] or measured["single_stream"])


def _scenarios(row: Mapping[str, Any]) -> dict[str, str]:
    """Energy, and MLPerf's scenarios, of one build, in words."""
    measured = row["measurement"]
    stream, offline = measured["single_stream"], measured["offline"]
    energy = (f"{e['counter']}: {e['mj']:.3g} mJ, {e['above_idle_mj']:.3g} above idle" for e in measured["energy"])
    said = {"build": row["id"], "energy": "; ".join(energy), "stream": "", "offline": ""}
    if stream is not None:
        p90 = "too few queries" if stream["p90_ms"] is None else f"{stream['p90_ms']:.3f} ms"
        said["stream"] = f"{p90}, {stream['queries']} queries{_invalid_words(stream)}"
    if offline is not None:
        rate = f"{offline['samples_per_s']:.0f} samples/s, batch {offline['batch']}"
        said["offline"] = rate + _invalid_words(offline)
    return said


def _invalid_words(scenario: Mapping[str, Any]) -> str:
    return f"; invalid: {scenario['problem']}" if scenario["problem"] else ""


def _limit(target: Mapping[str, Any]) -> float | None:
    """The strictest of the goals that limit the headline metric; None where there is none."""
    goal, reference, higher = (
        target["goals"]["accuracy"],
        target["fp32_accuracy"],
        target["scoring"]["higher_is_better"],
    )
    away = -1 if higher else 1
    drop, points = goal["max_relative_drop_percent"], goal["max_drop_points"]
    limits = [
        goal["min"],
        goal["max"],
        None if drop is None else reference * (1 + away * drop / 100),
        None if points is None else reference + away * points / 100,
    ]
    strictest = max if higher else min
    return strictest((limit for limit in limits if limit is not None), default=None)


def _point(row: Mapping[str, Any], target: Mapping[str, Any], runtimes: Sequence[str]) -> svg.Point:
    accuracy, latency = row["accuracy"], row["measurement"]["latency"]
    reference = target["fp32_accuracy"]
    drop, away = accuracy["drop"], -1 if target["scoring"]["higher_is_better"] else 1
    ends = [reference + away * drop[bound] for bound in ("low", "high")]
    return svg.Point(
        label=row["id"],
        x=latency["p90_ms"],
        y=accuracy["value"],
        # The interval is that of the difference from the fp32 student on the same samples.
        low=min(accuracy["value"], *ends),
        high=max(accuracy["value"], *ends),
        style=runtimes.index(row["runtime"]),
        emphasis=row["verdict"]["chosen"],
        hover=f"{row['id']}: {accuracy['value']:.2%}, p90 {latency['p90_ms']:.3f} ms. {row['verdict']['reason']}",
    )
