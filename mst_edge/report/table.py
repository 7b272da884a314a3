"""The result on the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mst_edge.report.layers import sensitivity_advice
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
    if result["sensitivity"] and result["sensitivity"]["exclude"]:
        console.print(sensitivity_advice(result["sensitivity"]), highlight=False)
        console.print(f"their names, for quantize.exclude: {run.variants / 'sensitivity.md'}", highlight=False)
    for target in result["targets"]:
        console.print(_builds(target))
        _verdict(console, target, run)
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
    for column in (target["scoring"]["label"], "drop (95 % interval)", "p50 ms", "p90 ms", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in target["builds"]:
        drop, latency = row["accuracy"]["drop"], row["measurement"]["latency"]
        table.add_row(
            row["id"],
            f"{row['accuracy']['value']:.1%}",
            f"{drop['estimate']:+.1%} ({drop['low']:+.1%} {drop['high']:+.1%})",
            f"{latency['p50_ms']:.3f}",
            f"{latency['p90_ms']:.3f}",
            f"{row['measurement']['size_bytes'] / 1e6:.2f}",
            style="bold" if row["verdict"]["chosen"] else None,
        )
    return table


def short_verdict(row: dict[str, Any]) -> str:
    """One word or two on a build."""
    verdict = row["verdict"]
    if verdict["chosen"]:
        return "chosen" if verdict["passed"] else "chosen, gate failed"
    return "passed" if verdict["passed"] else "failed"


def _verdict(console: Console, target: dict[str, Any], run: RunFolder) -> None:
    colour = "green" if target["gate"] == "passed" else "red"
    console.print(f"gate [{colour}]{target['gate']}[/{colour}] with {target['chosen']}", highlight=False)
    for row in target["builds"]:
        console.print(f"  {row['id']}: {row['verdict']['reason']}", highlight=False)
        noise = row["measurement"]["latency"]["noise"]
        if noise:
            console.print(f"    {noise}", highlight=False)
    for entry in target["skipped"]:
        console.print(f"  {entry['id']}: not built, {entry['reason']}", highlight=False)
    console.print(f"bundle: {run.path / target['bundle']}", highlight=False)
