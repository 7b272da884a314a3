"""Charts as inline SVG: they open offline, follow the page's light or dark theme, and say their values on hover.

Colours are CSS classes ``c0`` to ``c7`` of the page; text and axes take the page's ink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLES = 8  # colour classes of the page
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 14, 40
_FONT_PX = 12
_LETTER_PX, _LABEL_STEP = 7.0, 16


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart; ``low`` and ``high`` are the ends of its error bar along y."""

    label: str
    x: float
    y: float
    low: float
    high: float
    style: int
    emphasis: bool = False
    hover: str = ""


@dataclass(frozen=True)
class _Frame:
    """Plot area and the maps from values to pixels."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    top: int = _TOP

    def px(self, value: float) -> float:
        return _LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - _LEFT - _RIGHT)

    def py(self, value: float) -> float:
        return (
            self.height - _BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.height - self.top - _BOTTOM)
        )


def scatter(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    front: Sequence[tuple[float, float]] = (),
    x_limit: float | None = None,
    y_limit: float | None = None,
    higher_is_better: bool = True,
    show: Callable[[float], str] | None = None,
    width: int = 826,
    height: int = 340,
) -> str:
    """Points with error bars and labels, where they have one; ``front`` is joined by a line, limits are dashed lines.

    ``y`` is shown in percent unless ``show`` puts it in words. ``x_limit`` is an upper limit; ``y_limit`` a lower one
    of a share, or an upper one of an error that is better when lower. What lies beyond them is shaded.
    """
    xs = [point.x for point in points]
    in_view = x_limit if x_limit is not None and x_limit < 2.5 * max(xs) else None
    top_x = max([*xs, *([in_view] if in_view else [])])
    low_y = min([*(point.low for point in points), *([y_limit] if y_limit is not None else [])])
    high_y = max([*(point.high for point in points), *([y_limit] if y_limit and not higher_is_better else [])])
    ceiling = 1.0 if higher_is_better else math.inf
    pad = max(0.005, 0.08 * (high_y - low_y)) if show is None else 0.08 * (high_y - low_y) or 1e-3
    bounds = (0.0, top_x * 1.12)
    rows = _label_rows(_Frame(width, height, bounds, (0, 1)), points)
    top = _TOP + _LABEL_STEP * (max((row for _, row in rows.values()), default=-1) + 1) + 6
    frame = _Frame(width, height, bounds, (low_y - pad, min(ceiling, high_y + pad)), top)
    parts = [_axes(frame, x_label, y_label, lambda v: f"{v:g}", show or _percent(frame.y))]
    if in_view is not None:
        parts.append(_limit_x(frame, in_view))
    if y_limit is not None:
        parts.append(_limit_y(frame, y_limit, below=higher_is_better))
    if len(front) > 1:
        path = " ".join(f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in front)
        parts.append(f'<polyline class="front" points="{path}"/>')
    parts += [_label(frame, points[index], *row) for index, row in sorted(rows.items())]
    parts += [_point(frame, point) for point in points]
    return _svg(width, height, parts)


def _point(frame: _Frame, point: Point) -> str:
    x, y = frame.px(point.x), frame.py(point.y)
    low, high = frame.py(max(point.low, frame.y[0])), frame.py(min(point.high, frame.y[1]))
    radius = 7 if point.emphasis else 5
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{radius + 4}"/>' if point.emphasis else ""
    return (
        f'<g class="mark c{point.style}"><title>{escape(point.hover)}</title>'
        f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>{ring}'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/></g>'
    )


def _label_rows(frame: _Frame, points: Sequence[Point]) -> dict[int, tuple[float, int]]:
    """Per point the middle of its label and the row above the plot where it touches no other."""
    ends: list[float] = []
    placed = {}
    for index in sorted((i for i, point in enumerate(points) if point.label), key=lambda i: points[i].x):
        wide = _LETTER_PX * len(points[index].label)
        middle = min(max(frame.px(points[index].x), _LEFT + wide / 2), frame.width - _RIGHT - wide / 2)
        row = next((r for r, end in enumerate(ends) if end + 10 < middle - wide / 2), len(ends))
        ends[row : row + 1] = [middle + wide / 2]
        placed[index] = (middle, row)
    return placed


def _label(frame: _Frame, point: Point, middle: float, row: int) -> str:
    """The label above the plot, and a thin line from it to its point."""
    y = _TOP + _LABEL_STEP * row
    return (
        f'<polyline class="leader" points="{middle:.1f},{y + 4:.1f} {frame.px(point.x):.1f},{frame.top - 2:.1f} '
        f'{frame.px(point.x):.1f},{frame.py(point.y):.1f}"/>'
        + _text(middle, y, point.label, "strong" if point.emphasis else "", "middle")
    )


def _limit_x(frame: _Frame, value: float) -> str:
    x, top, bottom = frame.px(value), frame.top, frame.height - _BOTTOM
    right = frame.width - _RIGHT
    return (
        f'<rect class="beyond" x="{x:.1f}" y="{top}" width="{right - x:.1f}" height="{bottom - top}"/>'
        f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
    )


def _limit_y(frame: _Frame, value: float, *, below: bool) -> str:
    """The limit, and shade on its wrong side."""
    y = frame.py(value)
    right = frame.width - _RIGHT
    start, end = (y, frame.height - _BOTTOM) if below else (frame.top, y)
    return (
        f'<rect class="beyond" x="{_LEFT}" y="{start:.1f}" width="{right - _LEFT}" '
        f'height="{max(0.0, end - start):.1f}"/>'
        f'<line class="limit" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    )


def lines(
    series: Mapping[str, Sequence[tuple[int, float]]],
    *,
    x_label: str,
    y_label: str,
    styles: Mapping[str, int],
    show: Callable[[float], str] | None = None,
    limit: float | None = None,
    width: int = 826,
    height: int = 300,
) -> str:
    """One line per series of (number, value).

    Args:
        show: a value in words; percent unless told.
        limit: a value to mark; below it is shaded.
    """
    numbers = [number for points in series.values() for number, _ in points]
    every = [value for points in series.values() for _, value in points]
    low, high = min(every), max(every)
    pad = 0.06 * (high - low) or 0.05
    first = min(numbers)
    bottom = low - pad if low < 0 else max(0.0, low - pad)
    frame = _Frame(width, height, (first, max(first + 1, *numbers)), (bottom, high + pad))
    parts = [_axes(frame, x_label, y_label, lambda v: f"{v:.0f}", show or _percent(frame.y))]
    if limit is not None and frame.y[0] < limit < frame.y[1]:
        parts.append(_limit_y(frame, limit, below=True))
    said = show or "{:.1%}".format
    for name, points in series.items():
        path = " ".join(f"{frame.px(number):.1f},{frame.py(value):.1f}" for number, value in points)
        dots = "".join(
            f'<circle cx="{frame.px(number):.1f}" cy="{frame.py(value):.1f}" r="7" class="hit">'
            f"<title>{escape(name)}, {escape(x_label)} {number}: {said(value)}</title></circle>"
            for number, value in points
        )
        parts.append(
            f'<g class="series c{styles[name]}"><title>{escape(name)}: {said(points[-1][1])} at the end</title>'
            f'<polyline points="{path}"/>{dots}</g>'
        )
    return _svg(width, height, parts)


def stacked(
    series: Mapping[str, Sequence[float]], *, x_label: str, y_label: str, width: int = 826, height: int = 260
) -> str:
    """Shares that sum to 1 per epoch, as stacked bars."""
    epochs = len(next(iter(series.values())))
    frame = _Frame(width, height, (0.5, epochs + 0.5), (0.0, 1.0))
    parts = [_axes(frame, x_label, y_label, lambda v: f"{v:.0f}", lambda v: f"{v:.0%}")]
    bar = (frame.px(2) - frame.px(1)) * 0.86 if epochs > 1 else 80
    for epoch in range(epochs):
        base = 0.0
        for style, (name, values) in enumerate(series.items()):
            share = values[epoch]
            top = frame.py(base + share)
            parts.append(
                f'<rect class="fill c{style % STYLES}" x="{frame.px(epoch + 1) - bar / 2:.1f}" y="{top:.1f}" '
                f'width="{bar:.1f}" height="{max(0.0, frame.py(base) - top):.1f}">'
                f"<title>{escape(name)}, epoch {epoch + 1}: {share:.1%}</title></rect>"
            )
            base += share
    return _svg(width, height, parts)


def intervals(
    rows: Sequence[tuple[str, float, float, float, int]],
    *,
    dots: Sequence[Sequence[tuple[str, float]]] = (),
    most: float = 1.0,
    width: int = 826,
) -> str:
    """One row each: label, value, low, high, style. Values are shown in percent.

    Args:
        most: the largest value that there can be.
        dots: per row what the value is a mean of, each with what it says on hover. The view then follows the
            dots; intervals that are much wider are cut off at its edge.
    """
    step, left = 30, 190
    height = _TOP + step * len(rows) + _BOTTOM
    start, end = _view(rows, [value for row in dots for _, value in row], most)

    def px(value: float) -> float:
        inside = min(max(value, start), end)
        return left + (inside - start) / (end - start) * (width - left - 70)

    parts = []
    for tick in _ticks(start, end, 6):
        parts.append(
            f'<line class="grid" x1="{px(tick):.1f}" x2="{px(tick):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>'
            + _text(px(tick), height - _BOTTOM + 18, _percent((start, end))(tick), anchor="middle")
        )
    for index, (label, value, row_low, row_high, style) in enumerate(rows):
        y = _TOP + step * (index + 0.5)
        singles = "".join(
            f'<circle class="one" cx="{px(one):.1f}" cy="{y:.1f}" r="3"><title>{escape(said)}</title></circle>'
            for said, one in (dots[index] if dots else ())
        )
        parts.append(
            _text(left - 14, y + 4, _cut(label, 26), "", "end")
            + f'<g class="mark c{style}"><title>{escape(label)}: {value:.1%} ({row_low:.1%} to {row_high:.1%})</title>'
            f'<line class="bar wide" x1="{px(row_low):.1f}" x2="{px(row_high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle cx="{px(value):.1f}" cy="{y:.1f}" r="6"/>{singles}</g>' + _text(width - 60, y + 4, f"{value:.1%}")
        )
    return _svg(width, height, parts)


def _view(
    rows: Sequence[tuple[str, float, float, float, int]], dots: Sequence[float], most: float
) -> tuple[float, float]:
    """The shares at both ends of the axis of ``intervals``."""
    low, high = min(row[2] for row in rows), max(row[3] for row in rows)
    if dots:
        reach = max(0.02, max(dots) - min(dots))
        low, high = max(low, min(dots) - reach), min(high, max(dots) + reach)
    pad = max(0.01, 0.1 * (high - low))
    return max(0.0, low - pad), min(most, high + pad)


def standalone(chart: str) -> str:
    """A chart as an SVG file of its own, with the page's colours in it."""
    style = (Path(__file__).parent / "templates" / "chart.css").read_text(encoding="utf-8")
    head, rest = chart.split(">", 1)
    look = "background: var(--paper); font-family: system-ui, sans-serif"
    return f'{head} xmlns="http://www.w3.org/2000/svg" style="{look}"><style>{style}</style>{rest}\n'


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str], *, width: int = 560) -> str:
    """Rows are true classes, columns predictions; shade is the share of the row."""
    count = len(labels)
    left, top = 110, 30
    cell = max(12.0, min(44.0, (width - left - 10) / count))
    height = int(top + cell * count + 40)
    parts = [_text(left + cell * count / 2, height - 6, "predicted", anchor="middle")]
    for row, counts in enumerate(matrix):
        total = max(1, sum(counts))
        y = top + row * cell
        parts.append(_text(left - 8, y + cell / 2 + 4, _cut(labels[row], 14), anchor="end"))
        for column, value in enumerate(counts):
            x, share = left + column * cell, value / total
            parts.append(
                f'<rect class="cell" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:.1f}" height="{cell - 2:.1f}" '
                f'style="fill-opacity:{0.04 + 0.96 * share:.3f}"><title>{escape(labels[row])} taken for '
                f"{escape(labels[column])}: {value} of {total}</title></rect>"
            )
            if cell >= 24 and value:
                tone = "cellink light" if share > 0.5 else "cellink"
                parts.append(_text(x + cell / 2, y + cell / 2 + 4, str(value), tone, "middle"))
    for column, label in enumerate(labels):
        x = left + (column + 0.5) * cell
        parts.append(_text(x, top - 8, _cut(label, 5), anchor="middle"))
    return _svg(int(left + cell * count + 10), height, parts)


def _axes(
    frame: _Frame, x_label: str, y_label: str, show_x: Callable[[float], str], show_y: Callable[[float], str]
) -> str:
    parts = []
    for tick in _ticks(*frame.y, 6):
        y = frame.py(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            + _text(_LEFT - 8, y + 4, show_y(tick), anchor="end")
        )
    whole = show_x(1.5) == "2"
    for tick in _ticks(*frame.x, 8):
        if whole and tick != round(tick):
            continue
        parts.append(_text(frame.px(tick), frame.height - _BOTTOM + 18, show_x(tick), anchor="middle"))
    middle = (_LEFT + frame.width - _RIGHT) / 2
    parts.append(_text(middle, frame.height - 4, x_label, "axis", "middle"))
    parts.append(
        _text(0, 0, y_label, "axis", "middle", f' transform="translate(16 {frame.height / 2:.0f}) rotate(-90)"')
    )
    return "".join(parts)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values inside ``low .. high``, at most ``most`` of them."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= most:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _percent(bounds: tuple[float, float]) -> Callable[[float], str]:
    digits = 0 if bounds[1] - bounds[0] > 0.05 else 1
    return lambda value: f"{value:.{digits}%}"


def _text(x: float, y: float, said: str, css: str = "tick", anchor: str = "start", more: str = "") -> str:
    return f'<text class="{css}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}"{more}>{escape(said)}</text>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" font-size="{_FONT_PX}">{"".join(parts)}</svg>'
    )
