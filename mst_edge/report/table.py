"""The result on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mst_edge.report.layers import sensitivity_advice
from mst_edge.report.tuning import said_of
from mst_edge.run_folder import RunFolder


def print_result(result: dict[str, Any], run: RunFolder, console: Console | None = None) -> None:
    """Prints what was trained, what was built, what won and why, and where everything lies."""
    console = console or Console()
    console.print(_models(result))
    errors = _errors_in_units(result["distill"])
    if errors:
        console.print(errors, highlight=False)
    for entry in result["skipped_schemes"]:
        console.print(f"{entry['id']}: not made, {entry['reason']}", highlight=False)
    _print_sensitivity(result["sensitivity"], run, console)
    for target in result["targets"]:
        _print_target(console, target, run.path)
    for said in result["distill"]["diagnoses"]:
        console.print(f"{said['level']}: {said['text']}", highlight=False)
    console.print(f"report: {run.report_file}", highlight=False)


def _models(result: dict[str, Any]) -> Table:
    distill = result["distill"]
    samples = result["data"]["samples"]["test"]
    title = f"Trained: {distill['student_epochs']} epochs per student, {samples} test samples"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in ("model", "reads"):
        table.add_column(column)
    metric, label = distill["scoring"]["metric"], distill["scoring"]["label"]
    for column in ("parameters", label, "95 % interval"):
        table.add_column(column, justify="right")
    for row in distill["models"]:
        low, high = row["test_interval"]
        deployed = row["role"] == "student" and row["method"] == distill["method"]
        table.add_row(
            model_name(row, distill),
            " + ".join(row["reads"]),
            f"{row['parameters']:,}",
            f"{row['test'][metric]:.1%}",
            f"{low:.1%} - {high:.1%}",
            style="bold" if deployed else None,
        )
    return table


def _errors_in_units(distill: dict[str, Any]) -> str:
    """The deployed student's other metrics that are no shares: the errors of numbers in their own units."""
    deployed = next(row for row in distill["models"] if row["role"] == "student" and row["method"] == distill["method"])
    columns = [column for column in distill["scoring"]["columns"] if not column["percent"]]
    said = (f"{column['heading']}: {deployed['test'][column['key']]:.4g}" for column in columns)
    return f"{model_name(deployed, distill)}: {'; '.join(said)}\n" if columns else ""


def model_name(row: dict[str, Any], distill: dict[str, Any]) -> str:
    """What a person calls a trained model."""
    if row["role"] == "teacher":
        return "multimodal teacher" if len(row["reads"]) > 1 else "unimodal teacher"
    if row["method"] == "lone":
        return "lone student"
    preset = f" ({distill['preset']})" if row["method"] == distill["method"] and distill["preset"] else ""
    return f"{row['method']} student{preset}"


def _builds(target: dict[str, Any]) -> Table:
    title = f"Builds for {target['target']}: batch 1, {target['threads']} thread(s)"
    # Narrow: 80 columns hold the longest build; what the gate says of each stands below.
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    table.add_column("build", no_wrap=True)
    for column in (*_judged_by(target), "p50 ms", "p90 ms", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in target["builds"]:
        latency = row["measurement"]["latency"]
        table.add_row(
            row["id"],
            *_judged(row),
            f"{latency['p50_ms']:.3f}",
            f"{latency['p90_ms']:.3f}",
            f"{row['measurement']['size_bytes'] / 1e6:.2f}",
            style="bold" if row["verdict"]["chosen"] else None,
        )
    return table


def _judged_by(target: dict[str, Any]) -> tuple[str, str]:
    """Headings of what tells how right builds are: labels, else drift from the fp32 model."""
    row = target["builds"][0]
    if row["accuracy"] is not None:
        return target["scoring"]["label"], "drop (95 % interval)"
    return "as fp32", "correlation" if row["drift"]["js_mean"] is None else "JS mean (max)"


def _judged(row: dict[str, Any]) -> tuple[str, str]:
    if row["accuracy"] is not None:
        drop = row["accuracy"]["drop"]
        interval = f"{drop['estimate']:+.1%} ({drop['low']:+.1%} {drop['high']:+.1%})"
        return f"{row['accuracy']['value']:.1%}", interval
    drift = row["drift"]
    if drift["js_mean"] is not None:
        return f"{drift['agreement']:.1%}", f"{drift['js_mean']:.4f} ({drift['js_max']:.4f})"
    least = min((value for value in drift["correlation"] if value is not None), default=None)
    return f"{drift['agreement']:.1%}", "-" if least is None else f"{least:.5f}"


def _print_sensitivity(found: dict[str, Any] | None, run: RunFolder, console: Console) -> None:
    """Which layers int8 harms, where it harms the network."""
    if found and found["exclude"]:
        console.print(sensitivity_advice(found), highlight=False)
        console.print(f"names of layers, to leave them in float: {run.variants / 'sensitivity.md'}", highlight=False)


def print_model(result: dict[str, Any], place: Path, console: Console | None = None) -> None:
    """Prints what became of a model that came as a file: its variants, its builds, what won and why."""
    console = console or Console()
    said = result.get("model", {})
    if said:
        console.print(
            f"{said['file']}: {said['calibrating']} samples calibrate, {said['judging']} others judge", highlight=False
        )
    for note in said.get("notes", ()):
        console.print(f"note: {note}", highlight=False)
    if not result["real"]:
        console.print("random samples: not for accuracy, nothing is judged", style="bold red", highlight=False)
    for row in result["variants"]:
        console.print(f"  {row['name']}: {row['backend']}, {row['size_bytes'] / 1e6:.2f} MB", highlight=False)
    for entry in result["skipped_schemes"]:
        console.print(f"  {entry['id']}: not made, {entry['reason']}", highlight=False)
    _print_sensitivity(result.get("sensitivity"), RunFolder(place), console)
    for target in result.get("targets", ()):
        _print_target(console, target, place)
    console.print(f"in {place}", highlight=False)


def print_profile(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints latencies."""
    console = console or Console()
    first = result["builds"][0]["measurement"]["latency"]
    title = f"{result['target']}: batch 1, {first['threads']} thread(s), inputs: {result['inputs']}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", title_style="bold")
    table.add_column("build", no_wrap=True)
    for column in ("p50 ms", "p90 ms", "p99 ms", "runs", "load ms", "peak MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result["builds"]:
        measured = row["measurement"]
        latency = measured["latency"]
        times = (f"{latency[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms"))
        table.add_row(
            row["id"], *times, str(latency["runs"]), f"{measured['load_ms']:.0f}", f"{measured['peak_memory_mb']:.0f}"
        )
    console.print(table)
    for row in result["builds"]:
        for line in _more(row["measurement"]):
            console.print(f"  {row['id']}: {line}", highlight=False)
    _print_conditions(result["builds"], console)
    for entry in result["skipped"]:
        console.print(f"  {entry['id']}: not built, {entry['reason']}", highlight=False)


def _more(measured: dict[str, Any]) -> Iterator[str]:
    """What a build's row has no column for: noise, MLPerf's scenarios, energy."""
    if measured["latency"]["noise"]:
        yield measured["latency"]["noise"]
    single, offline = measured["single_stream"], measured["offline"]
    if single is not None:
        estimate = "unknown" if single["p90_ms"] is None else f"{single['p90_ms']:.3f} ms"
        queries = f"{single['queries']} queries in {single['seconds']:.0f} s, slowest {single['discarded']} left out"
        yield f"SingleStream p90 {estimate} ({queries}): {_valid(single)}"
    if offline is not None:
        yield f"Offline {offline['samples_per_s']:.0f} samples/s in batches of {offline['batch']}: {_valid(offline)}"
    for energy in measured["energy"]:
        above = f"{energy['above_idle_mj']:.3g} mJ above the {energy['idle_w']:.1f} W of idling"
        yield f"{energy['counter']}: {energy['mj']:.3g} mJ per inference, {above}"


def _noise(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line for all builds whose times are noisy, with the worst of them."""
    noisy = {row["id"]: row["measurement"]["latency"] for row in rows if row["measurement"]["latency"]["noise"]}
    if noisy:
        whose = "all builds" if len(noisy) == len(rows) else ", ".join(noisy)
        tail = max(latency["p90_ms"] / latency["p50_ms"] for latency in noisy.values())
        spread = max(np.ptp(latency["rounds_p50_ms"]) / latency["p50_ms"] for latency in noisy.values())
        yield f"noisy: {whose}; p90 up to {tail:.2f} x p50, medians of rounds differ by up to {spread:.0%}"


def _valid(scenario: dict[str, Any]) -> str:
    return f"invalid, {scenario['problem']}" if scenario["problem"] else "valid"


def _print_conditions(rows: list[dict[str, Any]], console: Console) -> None:
    """What the machine did while the builds were measured, where a person should know; of all builds the same."""
    said = rows[0]["measurement"].get("conditions")
    if said is not None:
        for problem in said["problems"]:
            console.print(f"  [red]times are invalid[/red]: {problem}", highlight=False)
        for warning in said["warnings"]:
            console.print(f"  {warning}", highlight=False)


def short_verdict(row: dict[str, Any]) -> str:
    """One word or two on a build."""
    verdict = row["verdict"]
    if verdict["chosen"]:
        return "chosen" if verdict["passed"] else "chosen, gate failed"
    return "passed" if verdict["passed"] else "failed"


def _print_target(console: Console, target: dict[str, Any], place: Path) -> None:
    if target["on_host"]:
        console.print(_builds(target))
        print_verdict(console, target, place)
        return
    if target["found"] is not None:
        _print_found(console, target, place)
        return
    console.print(f"For {target['target']}, to be built and judged there:", style="bold", highlight=False)
    for row in target["builds"]:
        console.print(
            f"  {row['id']}: {row['size_bytes'] / 1e6:.2f} MB, opset {row['options']['opset']}", highlight=False
        )
    for entry in target["skipped"]:
        console.print(f"  {entry['id']}: not packed, {entry['reason']}", highlight=False)
    for line in dla_lines(target):
        console.print(f"  {line}", highlight=False, markup=False)
    console.print(f"gate {target['gate']}; next: the README.md of {place / target['bundle']}", highlight=False)


def dla_lines(target: dict[str, Any]) -> Iterator[str]:
    """What is expected of a board's deep-learning accelerator, per build, with the reasons of what falls back."""
    for name, said in target["forecasts"].get("dla", {"builds": {}})["builds"].items():
        reasons = Counter((row["operator"], row["reason"]) for row in said["fallbacks"])
        counted = (f"{count} {operator} ({reason})" for (operator, reason), count in reasons.most_common(3))
        unsure = f", {said['unsure']} unsure" if said["unsure"] else ""
        there = f"DLA: {name}: {said['on_dla']} of {said['layers']} layers{unsure}; {said['advice']}"
        yield f"{there}; not there: {', '.join(counted)}" if reasons and said["on_dla"] + said["unsure"] else there


def _print_found(console: Console, target: dict[str, Any], place: Path) -> None:
    """What a board found, and what the gate says of it."""
    found = target["found"]
    board, judged = found["board"] or {}, found["judged"]
    mode = (board.get("power_mode") or {}).get("name", "unknown")
    clocks = (board.get("clocks") or {}).get("state", "unknown")
    console.print(f"{target['target']}, on {found['address']}:", style="bold", highlight=False)
    console.print(f"  TensorRT {found['tensorrt']}, power mode {mode}, clocks {clocks}", highlight=False)
    for name, about in found["builds"].items():
        console.print(f"  {name}: {found_words(about)}", highlight=False, markup=False)
    colour = "green" if target["gate"] == "passed" else "red"
    console.print(f"gate [{colour}]{target['gate']}[/{colour}] with {judged['build']}", highlight=False)
    for goal in judged["goals"]:
        mark = "ok  " if goal["passed"] else "FAIL"
        console.print(f"  {mark}  {goal['goal']}: {goal['text']}", highlight=False, markup=False)
    console.print(f"bundle: {place / target['bundle']}", highlight=False)


def found_words(about: dict[str, Any]) -> str:
    """What a board found of one build."""
    for step in ("build", "check", "bench"):
        if about.get(step) is None:
            return f"no {step} was done"
        if about[step].get("problem"):
            return f"{step} failed, {about[step]['problem']}"
    check, bench = about["check"], about["bench"]
    said = f"p50 {bench['latency']['p50_ms']:.3f} ms, p90 {bench['latency']['p90_ms']:.3f} ms"
    if bench["energy"] is not None:
        said += f", {bench['energy']['total_mj']:.3g} mJ per inference"
    if check.get("value") is not None:
        said += f", {check['metric']} {check['value']:.4f} (fp32 {check['fp32_value']:.4f})"
    return said + ("" if bench["valid"] else "; not valid")


def print_verdict(console: Console, target: dict[str, Any], place: Path) -> None:
    """What the gate says of a target's builds, and where the bundle lies."""
    colour = "green" if target["gate"] == "passed" else "red"
    console.print(f"gate [{colour}]{target['gate']}[/{colour}] with {target['chosen']}", highlight=False)
    for row in target["builds"]:
        console.print(f"  {row['id']}: {row['verdict']['reason']}", highlight=False)
    for line in _noise(target["builds"]):
        console.print(f"  {line}", highlight=False)
    _print_conditions(target["builds"], console)
    for tuning in target["tuning"]:
        console.print(f"  {tuning['build_id']}: {said_of(tuning)}", highlight=False)
    for entry in target["skipped"]:
        console.print(f"  {entry['id']}: not built, {entry['reason']}", highlight=False)
    bundle = place / target["bundle"] if target["bundle"] else "none, no build runs without torch"
    console.print(f"bundle: {bundle}", highlight=False)
