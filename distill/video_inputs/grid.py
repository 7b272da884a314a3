"""``grid``: frames side by side in one picture, so that networks for pictures read videos.

The image grid of IG-VLM (Kim and others, arXiv 2403.18406), which asks a vision language model about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from distill.video_inputs.base import VIDEO_INPUTS, VideoInput, equal_parts, picked, tiled
from mst_edge.core.errors import UserError


@dataclass(frozen=True)
class GridOptions:
    """What a recipe may set.

    Attributes:
        frames: how many tiles, at equal parts of the clip; 0 for as many as fill whole rows.
        columns: tiles side by side; 0 for the largest square that the frames fill.
        shrink: a tile's pixel is the mean of a square of so many by so many.
    """

    frames: int = 0
    columns: int = 0
    shrink: int = 1


@VIDEO_INPUTS.register("grid")
class Grid(VideoInput):
    """``(C, rows * H / shrink, columns * W / shrink)``, in the order of reading."""

    Options = GridOptions

    def __init__(self, shape: tuple[int, ...], options: GridOptions) -> None:
        time, height, width, channels = shape
        self._columns = options.columns or math.isqrt(options.frames or time)
        if not 1 <= self._columns <= (options.frames or time):
            raise UserError(f"expected 1 to {time}, received {options.columns}", where="columns")
        self._rows = (options.frames or time) // self._columns
        if options.frames and self._rows * self._columns != options.frames:
            raise UserError(f"{options.frames} frames do not fill rows of {self._columns}", where="columns")
        require_divisor(options.shrink, height, width, "shrink")
        self._taken = equal_parts(self._rows * self._columns, time)
        self._shrink = options.shrink
        self.feature_shape = (channels, self._rows * height // self._shrink, self._columns * width // self._shrink)
        self.statistics_shape = (channels, 1, 1)

    def __call__(self, raw: Tensor) -> Tensor:
        return tiled(picked(raw, self._taken), self._rows, self._columns, self._shrink)


def require_divisor(factor: int, height: int, width: int, where: str) -> None:
    """Whether a picture can be cut into squares of ``factor`` by ``factor``.

    Raises:
        UserError: it cannot.
    """
    if factor < 1 or height % factor or width % factor:
        raise UserError(f"{factor} does not divide frames of {height} x {width}", where=where)
