"""Separates ink from paper under uneven light, and groups it into signs. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOOKED_AT = 640  # pixels of the longer side that a picture is searched with
_LEAST_CONTRAST = 0.13  # of the paper's brightness; smooth shadows and paper's texture stay below
_STRONG = 0.45  # of the strongest ink's contrast; weaker is a stroke's soft edge, or a shadow's
_NOISES = 6.0  # standard deviations of the camera's noise: paper's brightest and darkest pixels are so far apart
_DARKEST = 24.0
_SMALLEST = 0.035  # of the picture's shorter side: height of the least digit
_MOST_RUNS = 60_000  # of pixels; beyond, the picture is texture all over


@dataclass(frozen=True)
class Box:
    """Pixels ``top..bottom`` and ``left..right``, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def joined(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )


def ink_of(grey: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """How strongly each pixel ``(H, W)`` is marked, 0 to 1: the share of the light that ink, or bare board, swallows.

    Light falls on paper and ink alike, so their ratio stays as the light changes. What the paper would look like
    without ink is a closing (of light ink: an opening) with a window wider than strokes: it keeps the edges of
    shadows where they are, which a blur would turn into strokes.
    """
    smooth = _blur(grey.astype(np.float32))
    window = max(9, round(min(grey.shape) / 6)) | 1
    high, low = _slide(smooth, window, np.maximum), _slide(smooth, window, np.minimum)
    # Ink is the lesser part of what is near ink.
    spread = high - low
    near = spread > 0.5 * spread.max()
    if not near.any():
        return np.zeros_like(smooth)
    if ((smooth - low)[near] / np.maximum(spread[near], 1.0)).mean() >= 0.5:
        light, dark = _slide(high, window, np.minimum), smooth
    else:
        light, dark = smooth, _slide(low, window, np.maximum)
    return np.maximum(0, light - dark - _NOISES * _noise(smooth)) / np.maximum(light, _DARKEST)


def marked(ink: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Which pixels are ink, beyond the paper's texture and what is faint beside the strongest."""
    strong = ink[ink > _LEAST_CONTRAST]
    least = max(_LEAST_CONTRAST, _STRONG * float(np.percentile(strong, 90))) if strong.size else np.inf
    return ink > least


def _noise(smooth: NDArray[np.floating[Any]]) -> float:
    """Standard deviation of what ``_blur`` leaves of white noise, from neighbours, which it correlates by 2/3."""
    return float(np.median(np.abs(np.diff(smooth, axis=1)))) / (0.6745 * np.sqrt(2 / 3))


def signs(mask: NDArray[np.bool_]) -> list[tuple[Box, NDArray[np.bool_]]]:
    """What looks like one sign each, in reading order: its box, and which pixels in the box are its own.

    Specks are dropped, and what touches the border (the sheet's edge, a finger); parts above one another that
    nearly touch (the stroke of a 5) are one.
    """
    numbered, boxes = _components(mask)
    least = max(6, _SMALLEST * min(mask.shape))
    parts = [
        (box, {number})
        for number, box in boxes.items()
        if max(box.height, box.width) >= least / 3 and not _touches(box, mask.shape)
    ]
    whole = [
        (box, own)
        for box, own in _join(parts)
        if box.height >= least and box.width <= 2.5 * box.height and box.height <= 12 * box.width
    ]
    tall = max((box.height for box, _ in whole), default=0)
    chosen = [(box, own) for box, own in whole if box.height >= 0.3 * tall]
    return [
        (box, np.isin(numbered[box.top : box.bottom, box.left : box.right], list(own)))
        for box, own in _in_reading_order(chosen)
    ]


def _blur(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """By [1 2 1] / 4 along both axes."""
    for axis in (0, 1):
        pads = [(1, 1) if k == axis else (0, 0) for k in (0, 1)]
        padded = np.pad(values, pads, mode="edge")
        size = values.shape[axis]
        before, here, after = (np.take(padded, range(k, k + size), axis=axis) for k in (0, 1, 2))
        values = (before + 2 * here + after) / 4
    return values


def _slide(values: NDArray[np.floating[Any]], window: int, pick: np.ufunc) -> NDArray[np.floating[Any]]:
    """``pick`` (maximum or minimum) over squares of odd ``window``, in steps that double."""
    for axis in (0, 1):
        half = window // 2
        pads = [(half, half) if k == axis else (0, 0) for k in (0, 1)]
        reach, out = 1, np.swapaxes(np.pad(values, pads, mode="edge"), 0, axis)
        while reach < window:
            step = min(reach, window - reach)
            out = pick(out[: len(out) - step], out[step:])
            reach += step
        values = np.swapaxes(out, 0, axis)
    return values


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], dict[int, Box]]:
    """Connected parts (over corners, too): their numbers from 1 per pixel, and their boxes."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    numbered = np.zeros(mask.shape, np.int32)
    if len(rows) > _MOST_RUNS:
        return numbered, {}
    parent = list(range(len(rows)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    for row in range(1, mask.shape[0]):
        above, here = int(first[row - 1]), int(first[row])
        while above < first[row] and here < first[row + 1]:
            if starts[above] <= ends[here] and starts[here] <= ends[above]:
                parent[root(here)] = root(above)
            if ends[above] < ends[here]:
                above += 1
            else:
                here += 1
    boxes: dict[int, Box] = {}
    for k in range(len(rows)):
        row, start, end, number = int(rows[k]), int(starts[k]), int(ends[k]), root(k) + 1
        numbered[row, start:end] = number
        box = Box(row, start, row + 1, end)
        boxes[number] = boxes[number].joined(box) if number in boxes else box
    return numbered, boxes


def _touches(box: Box, shape: tuple[int, ...]) -> bool:
    return box.top <= 0 or box.left <= 0 or box.bottom >= shape[0] or box.right >= shape[1]


def _join(parts: list[tuple[Box, set[int]]]) -> list[tuple[Box, set[int]]]:
    """Parts that lie over one another and nearly touch, together; largest first, so that specks join signs."""
    out: list[tuple[Box, set[int]]] = []
    for box, own in sorted(parts, key=lambda part: -part[0].height * part[0].width):
        for k, (other, owned) in enumerate(out):
            gap_down = max(box.top, other.top) - min(box.bottom, other.bottom)
            gap_across = max(box.left, other.left) - min(box.right, other.right)
            size = max(other.height, other.width)
            if (gap_across <= -0.4 * min(box.width, other.width) and gap_down <= 0.2 * size) or (
                gap_down <= -0.5 * min(box.height, other.height) and gap_across <= 0.06 * size
            ):
                out[k] = (box.joined(other), owned | own)
                break
        else:
            out.append((box, own))
    return out


def _in_reading_order(found: list[tuple[Box, set[int]]]) -> list[tuple[Box, set[int]]]:
    """By lines from above, from left to right in each: signs whose heights overlap by a quarter share a line."""
    lines: list[list[tuple[Box, set[int]]]] = []
    for item in sorted(found, key=lambda item: item[0].left):
        beside = [line for line in lines if any(_beside(item[0], box) for box, _ in line)]
        lines = [line for line in lines if line not in beside]
        lines.append([*(other for line in beside for other in line), item])
    lines.sort(key=lambda line: sum(box.top + box.bottom for box, _ in line) / len(line))
    return [item for line in lines for item in sorted(line, key=lambda item: item[0].left)]


def _beside(one: Box, other: Box) -> bool:
    shared = min(one.bottom, other.bottom) - max(one.top, other.top)
    return shared >= 0.25 * min(one.height, other.height)
