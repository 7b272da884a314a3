"""``pooled``: a token per time step, of means over squares of pixels and stretches of time.

Pooling tokens over space and time is how video language models shorten clips (PLLaVA: Xu and others, arXiv 2404.16994).
There tokens are of an image encoder; here they are of pixels, so that no picture is encoded on the device at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.video_inputs.base import VIDEO_INPUTS, VideoInput, shrunk
from distill.video_inputs.grid import require_divisor
from mst_edge.core.errors import UserError

_MOST_CELLS = 8


@dataclass(frozen=True)
class PooledOptions:
    """What a recipe may set.

    Attributes:
        square: pixels along the side of a square whose mean is one value; 0 for the smallest that leaves 8 or fewer
            along the shorter side of a frame.
        stretch: frames whose mean is one time step.
    """

    square: int = 0
    stretch: int = 1


@VIDEO_INPUTS.register("pooled")
class Pooled(VideoInput):
    """``(C * rows * columns, time / stretch)``: a sequence, for ``tcn`` or ``transformer``."""

    Options = PooledOptions

    def __init__(self, shape: tuple[int, ...], options: PooledOptions) -> None:
        time, height, width, channels = shape
        sides = [side for side in range(1, min(height, width) + 1) if height % side == width % side == 0]
        fitting = [side for side in sides if min(height, width) // side <= _MOST_CELLS]
        if not (options.square or fitting):
            raise UserError(f"no square divides frames of {height} x {width}", where="square", fix="give frame_size")
        self._square = options.square or fitting[0]
        require_divisor(self._square, height, width, "square")
        if options.stretch < 1 or time % options.stretch:
            raise UserError(f"{options.stretch} does not divide clips of {time} frames", where="stretch")
        self._frame = (channels, height, width)
        self._time, self._stretch = time, options.stretch
        cells = channels * (height // self._square) * (width // self._square)
        self.feature_shape = (cells, time // options.stretch)
        self.statistics_shape = (cells, 1)

    def __call__(self, raw: Tensor) -> Tensor:
        cells, steps = self.feature_shape
        pictures = shrunk(raw.permute(0, 1, 4, 2, 3).reshape(-1, *self._frame), self._square)
        tokens = pictures.reshape(-1, steps, self._stretch, cells)
        tokens = tokens.mean(dim=2) if self._stretch > 1 else tokens.reshape(-1, steps, cells)
        return tokens.transpose(1, 2)
