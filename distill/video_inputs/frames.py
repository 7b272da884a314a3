"""``frames``: the clip itself, or some of its frames at equal parts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.video_inputs.base import VIDEO_INPUTS, VideoInput, equal_parts, picked


@dataclass(frozen=True)
class FramesOptions:
    """What a recipe may set.

    Attributes:
        frames: how many are looked at, at equal parts of the clip; 0 for all.
    """

    frames: int = 0


@VIDEO_INPUTS.register("frames")
class Frames(VideoInput):
    """``(C, frames, H, W)``: what ``clip_cnn`` and ``stream_cnn`` read; pictures, or maps of features per step."""

    Options = FramesOptions
    moves = True
    in_place = True

    def __init__(self, shape: tuple[int, ...], options: FramesOptions) -> None:
        time, height, width, channels = shape
        self._taken = equal_parts(options.frames or time, time)
        self.feature_shape = (channels, len(self._taken), height, width)
        self.statistics_shape = (channels, 1, 1, 1)

    def __call__(self, raw: Tensor) -> Tensor:
        return picked(raw, self._taken).permute(0, 4, 1, 2, 3)

    def of_frame(self, raw: Tensor) -> Tensor:
        return raw.permute(0, 3, 1, 2)

    @property
    def taken(self) -> tuple[int, ...]:
        return self._taken
