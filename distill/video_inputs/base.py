"""The interface of input strategies: a clip as a device records it, turned into what a network reads.

All sizes are fixed by the clip's shape and the options, and all arithmetic is that of the exported graph: training and
device give the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from apps.runtime.clips import part_middles
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.registry import Registry


@dataclass(frozen=True)
class NoOptions:
    """For a strategy without options."""


@dataclass(frozen=True)
class VideoOptions:
    """How networks see a clip.

    Attributes:
        input: name of a strategy.
        options: of the strategy.
    """

    input: str = "frames"
    options: dict[str, Any] = field(default_factory=dict)


class VideoInput(ABC):
    """One strategy.

    Class attributes:
        Options: frozen dataclass of what a recipe may set.
        moves: whether the last two axes of the features are those of one picture, so that training may shift, crop
            and flip them.
        in_place: whether features are no more than the clip's own values: they are computed batch by batch then, and
            not kept on disk in four times the size.

    Attributes:
        feature_shape: of one sample.
        statistics_shape: of the values that are standardised together, 1 along the axes that share them.
    """

    Options: ClassVar[type] = NoOptions
    moves: ClassVar[bool] = False
    in_place: ClassVar[bool] = False
    feature_shape: tuple[int, ...]
    statistics_shape: tuple[int, ...]

    @abstractmethod
    def __init__(self, shape: tuple[int, ...], options: Any) -> None:
        """For clips of ``shape``, ``(time, height, width, channels)``.

        Raises:
            UserError: options do not fit the shape; ``where`` is the option at fault.
        """

    @abstractmethod
    def __call__(self, raw: Tensor) -> Tensor:
        """``(B, time, height, width, channels)`` float32 to ``(B, *feature_shape)``, not yet standardised."""

    def of_frame(self, raw: Tensor) -> Tensor | None:
        """``(B, height, width, channels)`` to what one time step of the features is; None where features are not made
        of frames one by one, so that nothing can be streamed."""
        return None

    @property
    def taken(self) -> tuple[int, ...]:
        """Which frames of a clip are looked at, in order, where ``of_frame`` is known."""
        return ()


VIDEO_INPUTS: Registry[VideoInput] = Registry("video input", "distill.video_inputs", "mst_edge.video_inputs")


def make_video_input(name: str, said: Mapping[str, Any], shape: tuple[int, ...], where: str) -> VideoInput:
    """The strategy called ``name`` for clips of ``shape``.

    Raises:
        UserError: an unknown strategy or option, or one that does not fit the shape.
    """
    cls = VIDEO_INPUTS.get(name, where=f"{where}.input")
    known = [option.name for option in fields(cls.Options)]
    for key in said:
        if key not in known:
            raise unknown_name(f"option of {name}", key, known, where=f"{where}.options")
    try:
        options: Any = TypeAdapter(cls.Options).validate_python(dict(said))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{problem['msg']}; received {problem['input']!r}", where=f"{where}.options.{key}") from None
    try:
        return cls(shape, options)
    except UserError as error:
        raise UserError(error.problem, where=f"{where}.options.{error.where}", fix=error.fix) from None


def equal_parts(frames: int, time: int) -> tuple[int, ...]:
    """Which ``frames`` of ``time`` stand for equal parts: those shown at their middles.

    Raises:
        UserError: there are not so many.
    """
    if not 1 <= frames <= time:
        raise UserError(f"a clip has {time} frames: expected 1 to {time}, received {frames}", where="frames")
    return tuple(np.floor(part_middles(frames, time)).astype(int).tolist())


def picked(raw: Tensor, frames: tuple[int, ...]) -> Tensor:
    """The frames of a clip whose numbers are given, all of them where that is all."""
    return raw if frames == tuple(range(raw.shape[1])) else raw[:, list(frames)]


def shrunk(pictures: Tensor, factor: int) -> Tensor:
    """``(N, C, H, W)`` to ``(N, C, H / factor, W / factor)`` means of squares."""
    return pictures if factor == 1 else nn.functional.avg_pool2d(pictures, factor)


def tiled(raw: Tensor, rows: int, columns: int, factor: int) -> Tensor:
    """Frames ``(B, rows * columns, H, W, C)`` as one picture ``(B, C, rows * h, columns * w)``, row by row, each shrunk
    by ``factor``."""
    _, _, height, width, channels = raw.shape
    h, w = height // factor, width // factor
    pictures = shrunk(raw.permute(0, 1, 4, 2, 3).reshape(-1, channels, height, width), factor)
    tiles = pictures.reshape(-1, rows, columns, channels, h, w)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, rows * h, columns * w)
