"""A search for people: the table on the terminal and in Markdown, and the chart of score against latency."""

from __future__ import annotations

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
_NAME = "candidate"
_SHOWN = 20


def write_files(record: Record, folder: Path) -> None:
    """Writes search.md, search.svg and last search.json, each whole."""
    write_text(folder / "search.md", _markdown(record))
    write_text(folder / "search.svg", _chart(record))
    write_json(folder / "search.json", record)


def print_search(record: Record, folder: Path, console: Console | None = None) -> None:
    """Prints the first rows, what the score is worth, and the student that was chosen."""
    console = console or Console()
    rows = _first(record)
    table = Table(title=_title(record), box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    columns = _columns(record)
    for name in columns:
        table.add_column(name, justify="left" if name == _NAME else "right", no_wrap=name != _NAME)
    for row in rows:
        style = "bold" if row["key"] == record["chosen"]["key"] else None
        table.add_row(*(show(row) for show in columns.values()), style=style)
    console.print(table)
    if len(rows) < len(record["rows"]):
        console.print(f"{len(rows)} of {len(record['rows'])} candidates; search.md has all", highlight=False)
    for line in notes(record):
        console.print(line, highlight=False, markup=False)
    console.print(f"written to {folder}: search.md, .svg, .json; chosen.yaml runs as a recipe", highlight=False)


def notes(record: Record) -> list[str]:
    """What the numbers say, in sentences: the chosen student first."""
    chosen, proved = record["chosen"], any(row["value"] is not None for row in record["rows"])
    lines = [f"chosen: {chosen['label']}: {chosen['text']}", record["verdict"]["text"]]
    lines += [
        f"rank correlation of {name} with {record['scoring']['label']}: Kendall {_interval(found['kendall'])}, "
        f"Spearman {_interval(found['spearman'])}"
        for name, found in record["correlations"].items()
    ]
    for target in record["targets"]:
        error = target["table_error"]
        lines.append(
            f"latency on {target['target']} ({target['runtime']} fp32, {target['threads']} thread(s)): predicted from "
            f"blocks, off by {error['median']:.0%} in the median of {error['candidates']} measured whole, "
            f"{error['worst']:+.0%} at worst ({error['worst_label']})"
        )
    lines += [f"{name} is not this machine: its goals decide nothing here" for name in record["elsewhere"]]
    lines += [f"left out: {row['label']}: {row['problem']}" for row in record["left_out"]]
    if proved:
        said = record["recipe"]["search"]["prove"]
        short = f"{said['epochs']} epochs of {said['method']}"
        lines.append(f"{record['scoring']['label']}: on the validation split, after {short}")
    return lines


def _title(record: Record) -> str:
    space = record["space"]
    return f"{record['name']}: {space['rated']} of {space['candidates']} candidates rated, {space['strategy']}"


def _first(record: Record) -> list[Row]:
    """The best by score, and all that were measured whole."""
    return [row for number, row in enumerate(record["rows"]) if number < _SHOWN or row["measured"] is not None]


def _columns(record: Record) -> dict[str, Callable[[Row], str]]:
    """Heading to what it says of a row."""
    columns: dict[str, Callable[[Row], str]] = {
        _NAME: lambda row: row["label"],
        "score": lambda row: f"{row['score']:.4f}" + ("" if row["spread"] is None else f" ± {row['spread']:.4f}"),
        "parameters": lambda row: f"{row['parameters']:,}".replace(",", " "),
        "MB": lambda row: f"{row['mb']:.2f}",
    }
    for one in record["targets"]:
        columns |= _latencies(one["target"])
    if any(row["value"] is not None for row in record["rows"]):
        columns[f"{record['scoring']['label']} %"] = lambda row: _percent(row["value"])
    columns["goals"] = lambda row: "met" if not row["short_by"] else f"missed by {row['short_by']:.0%}"
    return columns


def _latencies(target: str) -> dict[str, Callable[[Row], str]]:
    return {
        f"{target} ms, predicted": lambda row: f"{row['predicted_ms'][target]:.3f}{_mark(row, target)}",
        "measured": lambda row: "-" if row["measured"] is None else f"{row['measured'][target]['p50_ms']:.3f}",
    }


def _mark(row: Row, target: str) -> str:
    """A star on the front of score and latency."""
    return " *" if target in row["front"] else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['estimate']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


def _markdown(record: Record) -> str:
    columns = _columns(record)
    lines = [f"# {_title(record)}", "", "| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in record["rows"]:
        mark = "**" if row["key"] == record["chosen"]["key"] else ""
        lines.append("| " + " | ".join(f"{mark}{show(row)}{mark}" for show in columns.values()) + " |")
    star = "A star marks the front: no candidate has both a better score and a lower predicted latency."
    return "\n".join([*lines, "", *(f"{note}.  " for note in notes(record)), f"{star}", "", "![chart](search.svg)", ""])


def _chart(record: Record) -> str:
    """Score against predicted latency on the first target; labels for the front and the chosen one."""
    target = record["targets"][0]
    name = target["target"]
    points = [_point(row, name, row["key"] == record["chosen"]["key"]) for row in record["rows"]]
    front = sorted(
        (point.x, point.y) for point, row in zip(points, record["rows"], strict=True) if name in row["front"]
    )
    limits = [limit for key, limit in target["goals"].items() if key.endswith("_ms") and limit is not None]
    return svg.standalone(
        svg.scatter(
            points,
            x_label=f"predicted p50 latency on {name}, ms",
            y_label="score",
            front=front,
            x_limit=min(limits, default=None),
            show=lambda value: f"{value:.3g}",
        )
    )


def _point(row: Row, target: str, chosen: bool) -> svg.Point:
    x, y, spread = row["predicted_ms"][target], row["score"], row["spread"] or 0.0
    named = chosen or target in row["front"]
    hover = f"{row['label']}: score {y:.4f}, {x:.3f} ms"
    return svg.Point(row["label"] if named else "", x, y, y - spread, y + spread, 0 if chosen else 3, chosen, hover)
