"""Front ends of pictures and of clips."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends.base import BASE, Standardiser
from distill.video_inputs import base as video_inputs_module
from distill.video_inputs.base import VideoOptions, make_video_input
from mst_edge.core.errors import UserError


@dataclass(frozen=True)
class ImageOptions:
    """How large networks see pictures.

    Attributes:
        scale: of both sides, above 0 and at most 1; what a device gives keeps its size, the graph reduces it.
    """

    scale: float = 1.0


class ImageScale(Standardiser):
    """``(B, H, W)`` or ``(B, H, W, C)``, uint8 or float, to standardised ``(B, C, H, W)``.

    Bytes are not brought to [0, 1] first: standardising does that as well, in one product. ``scale`` reduces pictures
    before it.
    """

    kind = Kind.IMAGE
    Options = ImageOptions
    code = (BASE, Path(__file__))

    def __init__(self, spec: ModalitySpec, options: ImageOptions) -> None:
        height, width, *rest = spec.shape
        channels = rest[0] if rest else 1
        if not 0 < options.scale <= 1:
            raise UserError(
                f"scale must be above 0 and at most 1, received {options.scale}", where=f"modalities.{spec.name}"
            )
        super().__init__(spec, (channels, 1, 1))
        self._channels_last = bool(rest)
        self._taken = (channels, height, width)
        self._sides = (max(1, round(height * options.scale)), max(1, round(width * options.scale)))
        self.feature_shape = (channels, *self._sides)

    def transform(self, raw: Tensor) -> Tensor:
        picture = raw.permute(0, 3, 1, 2) if self._channels_last else raw.reshape(-1, *self._taken)
        return reduced(picture.float(), self._sides)


def reduced(picture: Tensor, sides: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` to smaller ``sides``: means of whole blocks of pixels, then bilinear for what is left."""
    block = min(size // side for size, side in zip(picture.shape[2:], sides, strict=True))
    if block > 1:
        picture = functional.avg_pool2d(picture, block)
    if tuple(picture.shape[2:]) == sides:
        return picture
    return functional.interpolate(picture, size=sides, mode="bilinear")


class VideoScale(Standardiser):
    """``(B, time, height, width, C)``, uint8 or float, to what an input strategy makes of it, standardised per channel.

    Frames of pictures (3 channels) or maps of features (hundreds) alike.
    """

    kind = Kind.VIDEO
    Options = VideoOptions
    code: tuple[Path, ...] = (BASE, Path(__file__))

    def __init__(self, spec: ModalitySpec, options: VideoOptions) -> None:
        video_input = make_video_input(options.input, options.options, spec.shape, f"modalities.{spec.name}")
        super().__init__(spec, video_input.statistics_shape)
        self._options, self._input = options, video_input
        self.feature_shape = video_input.feature_shape
        self.in_place = video_input.in_place and self.graph_dtype == "uint8"
        self.moves = video_input.moves
        own = Path(inspect.getfile(type(video_input)))
        self.code = (*type(self).code, Path(video_inputs_module.__file__), own)

    def transform(self, raw: Tensor) -> Tensor:
        return self._input(raw.float())

    def of_frame(self, raw: Tensor) -> Tensor | None:
        """``(B, height, width, C)`` to one time step ``(B, C, height, width)`` of the features; None where the strategy
        does not look at frames one by one."""
        frame = self._input.of_frame(raw.float())
        return None if frame is None else frame * self.scale[:, 0] + self.shift[:, 0]

    @property
    def taken(self) -> tuple[int, ...]:
        """Which frames of a clip are looked at, where ``of_frame`` is known."""
        return self._input.taken

    def key(self) -> list[object]:
        return [*super().key(), asdict(self._options)]
