"""``thumbnail``: an overview of the clip in one frame's size, and a few frames as they are.

After thumbnail-and-sampling (TS-LLaVA: Qu and others, arXiv 2411.11066): a grid of shrunk frames says what happens
when, sampled frames show detail. There the samples are tokens of an image encoder, here they are frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.video_inputs.base import VIDEO_INPUTS, VideoInput, equal_parts, picked, tiled
from distill.video_inputs.grid import require_divisor
from mst_edge.core.errors import UserError


@dataclass(frozen=True)
class ThumbnailOptions:
    """What a recipe may set.

    Attributes:
        side: the overview has so many rows of as many tiles; 0 for the most that the clip fills and that divide a
            frame.
        samples: frames shown whole, at equal parts of the clip.
    """

    side: int = 0
    samples: int = 2


@VIDEO_INPUTS.register("thumbnail")
class Thumbnail(VideoInput):
    """``(C, 1 + samples, H, W)``: the overview first, then frames in order. A clip network reads so many steps only."""

    Options = ThumbnailOptions

    def __init__(self, shape: tuple[int, ...], options: ThumbnailOptions) -> None:
        time, height, width, channels = shape
        fitting = [side for side in range(1, math.isqrt(time) + 1) if height % side == width % side == 0]
        self._side = options.side or fitting[-1]
        require_divisor(self._side, height, width, "side")
        if self._side**2 > time:
            raise UserError(f"a clip of {time} frames does not fill {self._side} x {self._side} tiles", where="side")
        self._overview = equal_parts(self._side**2, time)
        try:
            self._samples = equal_parts(options.samples, time)
        except UserError as error:
            raise UserError(error.problem, where="samples") from None
        self.feature_shape = (channels, 1 + len(self._samples), height, width)
        self.statistics_shape = (channels, 1, 1, 1)

    def __call__(self, raw: Tensor) -> Tensor:
        overview = tiled(picked(raw, self._overview), self._side, self._side, self._side)
        channels, _, height, width = self.feature_shape
        return torch.cat(
            [overview.reshape(-1, channels, 1, height, width), picked(raw, self._samples).permute(0, 4, 1, 2, 3)], dim=2
        )
