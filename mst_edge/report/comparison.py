"""A comparison for people: the table on the terminal and in Markdown, the chart, and rows for a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mst_edge.core.files import write_json, write_text
from mst_edge.report import svg

Record = Mapping[str, Any]
Row = Mapping[str, Any]
_NAME = "method"


def write_files(record: Record, out: Path) -> None:
    """Writes compare.csv, compare.md, compare.svg and compare.json, each whole."""
    write_text(out / "compare.csv", _csv(record))
    write_text(out / "compare.md", _markdown(record))
    write_text(out / "compare.svg", _chart(record))
    write_json(out / "compare.json", record)


def print_comparison(record: Record, out: Path, console: Console | None = None) -> None:
    """Prints the table, what its columns mean where that is not obvious, and the verdict."""
    console = console or Console()
    table = Table(title=_title(record), box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    columns = _columns(record)
    for name in columns:
        # Only names may be folded: a number in two lines is misread.
        table.add_column(name, justify="left" if name == _NAME else "right", no_wrap=name != _NAME)
    for row in record["rows"]:
        bold = "bold" if row["label"] in record["best"] else None
        table.add_row(*(show(row) for show in columns.values()), style=bold)
    console.print(table)
    for line in _notes(record):
        console.print(line, highlight=False)
    console.print(f"written to {out}: compare.csv, .md, .svg, .json", highlight=False)


def _title(record: Record) -> str:
    seeds = ", ".join(str(seed) for seed in record["seeds"])
    if record["vary"] != "both":
        seeds += f" of {record['vary']} alone"
    return f"{record['name']}: {record['epochs']} epochs, {record['samples']['test']} test samples, seeds {seeds}"


def _columns(record: Record) -> dict[str, Callable[[Row], str]]:
    """Heading to what it says of a row."""
    columns: dict[str, Callable[[Row], str]] = {
        _NAME: lambda row: row["label"],
        f"{record['scoring']['label']} %": _score,
        "rank": lambda row: "-" if row["mean_rank"] is None else f"{row['mean_rank']:.1f}",
        "vs lone, points": _gain,
        "time s": lambda row: f"{row['seconds']:.0f}" if row["seconds"] >= 10 else f"{row['seconds']:.1f}",
        "MB": lambda row: _megabytes(row["peak_memory_mb"]),
    }
    if any(row["peak_gpu_memory_mb"] is not None for row in record["rows"]):
        columns["GPU MB"] = lambda row: _megabytes(row["peak_gpu_memory_mb"])
    return columns


def _score(row: Row) -> str:
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
    return f"{100 * row['mean']:.1f}{spread}"


def _gain(row: Row) -> str:
    gain = row["gain"]
    if gain is None:
        return "-"
    estimate, low, high = (f"{100 * gain[key]:+.1f}" for key in ("estimate", "low", "high"))
    return f"{estimate} ({low} {high})"


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _notes(record: Record) -> list[str]:
    verdict = [] if record["verdict"] is None else [record["verdict"]["text"]]
    scoring = record["scoring"]
    lower = [] if scoring["higher_is_better"] else [f"{scoring['label']} is better when lower; gains are positive"]
    return [
        *verdict,
        *lower,
        f"interval of the difference: {record['interval']}",
        "time: mean per seed, without lone-trained teachers; MB: peak of the process, PyTorch and data included",
    ]


def _markdown(record: Record) -> str:
    columns = _columns(record)
    lines = [
        f"# {_title(record)}",
        "",
        "| " + " | ".join(columns) + " |",
        "|---|" + "---:|" * (len(columns) - 1),
    ]
    for row in record["rows"]:
        mark = "**" if row["label"] in record["best"] else ""
        lines.append("| " + " | ".join(f"{mark}{show(row)}{mark}" for show in columns.values()) + " |")
    return "\n".join([*lines, "", *(f"{note}.  " for note in _notes(record)), "", "![chart](compare.svg)", ""])


def _csv(record: Record) -> str:
    """One line per seed and contender, in the table's order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    trials = record["trials"]
    metrics = sorted(trials[0]["test"])
    costs = ["seconds", "peak_memory_mb", "peak_gpu_memory_mb"]
    heads = ["seed", "method", "role", *(f"test_{m}" for m in metrics), *(f"val_{m}" for m in metrics), *costs]
    writer.writerow([*heads, "parameters"])
    for seed in record["seeds"]:
        for row in record["rows"]:
            trial = next(t for t in trials if t["seed"] == seed and t["contender"]["label"] == row["label"])
            values = [trial[split][metric] for split in ("test", "val") for metric in metrics]
            spent = [trial[key] for key in costs]
            writer.writerow([seed, row["label"], row["role"], *values, *spent, trial["parameters"]])
    return text.getvalue()


def _chart(record: Record) -> str:
    rows, dots = [], []
    for number, row in enumerate(record["rows"]):
        judged = record["verdict"] is not None and row["label"] == record["verdict"]["label"]
        style = 0 if judged else 1 if row["role"] == "teacher" else 2 if row["label"] == "lone" else 3 + number % 5
        rows.append((row["label"], row["mean"], *row["interval"], style))
        dots.append([(f"seed {s}: {v:.1%}", v) for s, v in zip(record["seeds"], row["values"], strict=True)])
    most = 1.0 if record["scoring"]["higher_is_better"] else math.inf
    return svg.standalone(svg.intervals(rows, dots=dots, most=most))
