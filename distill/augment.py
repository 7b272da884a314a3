"""Random changes to training samples, applied to features on the training device.

What happens to a sample is decided by numbers drawn for its place in the epoch's order, from the session's
seed: neither the batch size nor the number of processes nor a resumed run changes it. Features are
standardised, so 0 is the mean over the training split and 1 a standard deviation.
"""

from __future__ import annotations

import functools
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distill.datasets.spec import Kind
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError

_POOL = 1 << 20
_SHARES = ("crop", "drop", "scale")


class Augmentation(ABC):
    """Base of all augmentations: a frozen dataclass of amounts, all of which are off by default.

    Attributes:
        draws: how many random numbers one sample needs.
        moves: options that move what is seen to another pixel.
    """

    kind: ClassVar[Kind]
    draws: ClassVar[int]
    moves: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def __call__(self, features: Tensor, draws: Tensor) -> Tensor:
        """Changed features from ``(batch, *feature_shape)`` and ``(batch, draws)`` numbers in [0, 1)."""

    def on(self, shape: Sequence[int]) -> Augmentation:
        """What changes features of this shape."""
        return self

    @property
    def is_on(self) -> bool:
        """Whether anything changes at all."""
        return any(bool(getattr(self, option.name)) for option in fields(self))  # type: ignore[arg-type]

    def check(self, shape: Sequence[int], where: str, *, dense: bool = False, tiled: bool = False) -> None:
        """Whether the amounts make sense for features of this shape.

        Args:
            dense: every pixel has a target of its own, which stays where it is.
            tiled: features are no picture, or one made of several.

        Raises:
            UserError: an amount is negative, or larger than what it changes, or moves pixels away from their targets.
        """
        for name in self.moves if dense else ():
            if getattr(self, name):
                fix = "leave it out; noise may stay"
                raise UserError("moves pixels, but not the label map", where=f"{where}.{name}", fix=fix)
        for name in self.moves if tiled else ():
            if getattr(self, name):
                raise UserError(
                    "moves pixels from one frame to another with this input",
                    where=f"{where}.{name}",
                    fix="leave it out, or take `input: frames`; noise may stay",
                )
        longest = {"time": shape[-1], "frequency": shape[-2] if len(shape) > 1 else 1}
        for option in fields(self):  # type: ignore[arg-type]
            amount, name = getattr(self, option.name), option.name
            axis = longest["frequency" if name.startswith("frequency") else "time"]
            most = 0.99 if name in _SHARES else axis - 1 if isinstance(option.default, int) else math.inf
            if not 0 <= amount <= most:
                limit = f" and at most {most}" if most < math.inf else ""
                raise UserError(f"must be at least 0{limit}, received {amount}", where=f"{where}.{name}")


@dataclass(frozen=True)
class SpectrogramAugmentation(Augmentation):
    """For ``(1, mels, frames)``: SpecAugment's masks (Park and others, arXiv 1904.08779), shift, gain and noise.

    Attributes:
        time_shift: frames that the sound moves, at most, either way; its first or last frame is repeated.
        time_mask, frequency_mask: frames and mel bands that are set to the mean, at most, in one stripe.
        gain: standard deviations by which the whole spectrogram is louder or softer, at most.
        noise: standard deviation of white noise, at most.
    """

    time_shift: int = 0
    time_mask: int = 0
    frequency_mask: int = 0
    gain: float = 0.0
    noise: float = 0.0

    kind = Kind.AUDIO
    draws = 8

    def __call__(self, features: Tensor, draws: Tensor) -> Tensor:
        shift, gain, level, place = draws[:, :4].unbind(dim=1)
        x = _shifted(features, self.time_shift, shift)
        x = _noisy(x + _wide(self.gain * (2 * gain - 1), x), self.noise, level, place)
        x = _striped(x, self.time_mask, draws[:, 4:6], axis=3)
        return _striped(x, self.frequency_mask, draws[:, 6:8], axis=2)


@dataclass(frozen=True)
class ImageAugmentation(Augmentation):
    """For ``(channels, height, width)``: shift, crop and flip in one resampling, then noise.

    Attributes:
        shift: pixels that the picture moves, at most, along each axis; its border is repeated.
        crop: share of its sides that is cut off, at most; the rest is enlarged to the full size.
        flip: mirror half of the pictures left to right.
        noise: standard deviation of white noise, at most.
    """

    shift: int = 0
    crop: float = 0.0
    flip: bool = False
    noise: float = 0.0

    kind = Kind.IMAGE
    draws = 8
    moves = ("shift", "crop", "flip")

    def __call__(self, features: Tensor, draws: Tensor) -> Tensor:
        x = features
        if self.shift or self.crop or self.flip:
            x = self._resampled(x, draws[:, :6])
        return _noisy(x, self.noise, draws[:, 6], draws[:, 7])

    def _resampled(self, x: Tensor, draws: Tensor) -> Tensor:
        """Coordinates run from -1 to 1 along both axes, so that a pixel is 2 / size wide."""
        height, width = x.shape[2:]
        zoom = 1 - self.crop * draws[:, 0]
        # Whole pixels: an unzoomed picture is moved, not blurred.
        steps = (draws[:, 1:3] * (2 * self.shift + 1)).floor() - self.shift
        centre = (1 - zoom)[:, None] * (2 * draws[:, 3:5] - 1) + steps * steps.new_tensor([2 / width, 2 / height])
        mirror = torch.where(draws[:, 5] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(zoom)
        affine = x.new_zeros(len(x), 2, 3, dtype=torch.float32)
        affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = zoom * mirror, zoom, centre
        grid = functional.affine_grid(affine, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class VideoAugmentation(ImageAugmentation):
    """For ``(channels, time, height, width)``: as for pictures, every frame of a sample alike. For other features,
    noise alone.

    Attributes:
        shift, crop, flip, noise: as for pictures.
    """

    kind = Kind.VIDEO

    def __call__(self, features: Tensor, draws: Tensor) -> Tensor:
        pictures = features.reshape(len(features), -1, *features.shape[-2:])
        return super().__call__(pictures, draws).reshape(features.shape)


@dataclass(frozen=True)
class SequenceAugmentation(Augmentation):
    """For ``(channels, time)``.

    Attributes:
        time_shift: steps that the sequence moves, at most, either way; its first or last step is repeated.
        scale: share by which the whole sequence grows or shrinks, at most.
        jitter: standard deviation of white noise, at most.
    """

    time_shift: int = 0
    scale: float = 0.0
    jitter: float = 0.0

    kind = Kind.SEQUENCE
    draws = 4

    def __call__(self, features: Tensor, draws: Tensor) -> Tensor:
        shift, scale, level, place = draws.unbind(dim=1)
        x = _shifted(features, self.time_shift, shift)
        return _noisy(x * _wide(1 + self.scale * (2 * scale - 1), x), self.jitter, level, place)


@dataclass(frozen=True)
class VectorAugmentation(Augmentation):
    """For ``(features,)``.

    Attributes:
        scale: share by which all features grow or shrink, at most.
        jitter: standard deviation of white noise, at most.
    """

    scale: float = 0.0
    jitter: float = 0.0

    kind = Kind.VECTOR
    draws = 3

    def __call__(self, features: Tensor, draws: Tensor) -> Tensor:
        scale, level, place = draws.unbind(dim=1)
        return _noisy(features * _wide(1 + self.scale * (2 * scale - 1), features), self.jitter, level, place)


@dataclass(frozen=True)
class TextAugmentation(Augmentation):
    """Of token ids ``(batch, tokens)``.

    Attributes:
        drop: share of tokens that become padding, which networks do not look at. The first token of a language model
            stays: it stands for the text.
    """

    drop: float = 0.0

    kind = Kind.TEXT
    draws = 1

    def on(self, shape: Sequence[int]) -> Augmentation:
        return (
            _LanguageModelText(self.drop, shape.padding) if isinstance(shape, TokenShape) and shape.identity else self
        )

    def __call__(self, features: Tensor, draws: Tensor) -> Tensor:
        return features.masked_fill(self._dropped(features, draws), 0)

    def _dropped(self, features: Tensor, draws: Tensor) -> Tensor:
        return _noise(features, draws[:, 0]) < NormalDist().inv_cdf(self.drop)


@dataclass(frozen=True)
class _LanguageModelText(TextAugmentation):
    """Of the ids of a language model's own tokenizer."""

    padding: int = 0

    def __call__(self, features: Tensor, draws: Tensor) -> Tensor:
        dropped = self._dropped(features, draws)
        dropped[:, 0] = False
        return features.masked_fill(dropped, self.padding)


_BY_KIND: Mapping[Kind, type[Augmentation]] = {
    cls.kind: cls
    for cls in (
        SpectrogramAugmentation,
        ImageAugmentation,
        VideoAugmentation,
        SequenceAugmentation,
        VectorAugmentation,
        TextAugmentation,
    )
}


def augmentation_options(kind: Kind) -> type[Any]:
    """The augmentation for modalities of ``kind``, a frozen dataclass of its options."""
    return _BY_KIND[kind]


def epoch_draws(augmentation: Augmentation, seed: Sequence[int], name: str, samples: int) -> NDArray[np.float32]:
    """``(samples, draws)`` random numbers in [0, 1) for one modality, row by row in the epoch's order."""
    rng = np.random.default_rng([*seed, zlib.crc32(name.encode())])
    return rng.random((samples, augmentation.draws), dtype=np.float32)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """``(batch,)`` as ``(batch, 1, ...)``."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def _shifted(x: Tensor, most: int, draw: Tensor) -> Tensor:
    """Moves each sample along its last axis by up to ``most`` places either way; the edge is repeated."""
    if not most:
        return x
    steps = (draw * (2 * most + 1)).floor().long() - most
    size = x.shape[-1]
    source = (torch.arange(size, device=x.device) - steps[:, None]).clamp(0, size - 1)
    return x.gather(-1, source.reshape(len(x), *([1] * (x.ndim - 2)), size).expand_as(x))


def _striped(x: Tensor, most: int, draws: Tensor, axis: int) -> Tensor:
    """Sets one stripe across ``axis`` to 0, of a width up to ``most`` at a random place."""
    if not most:
        return x
    size = x.shape[axis]
    width = (draws[:, :1] * (most + 1)).floor()
    start = (draws[:, 1:] * (size - width + 1)).floor()
    place = torch.arange(size, device=x.device)
    inside = (place >= start) & (place < start + width)
    shape = [len(x), *([1] * (x.ndim - 1))]
    shape[axis] = size
    return x.masked_fill(inside.reshape(shape), 0.0)


def _noisy(x: Tensor, most: float, level: Tensor, place: Tensor) -> Tensor:
    """Adds white noise of a deviation up to ``most``."""
    return x + _wide(most * level, x) * _noise(x, place) if most else x


def _noise(x: Tensor, place: Tensor) -> Tensor:
    """Normal numbers in the shape of ``x``.

    Each sample reads a window of one pool of them, so that its noise depends on its own draw alone.
    """
    size = x[0].numel()
    pool = _pool(size, x.device)
    start = (place * (len(pool) - size)).long()
    return pool[start[:, None] + torch.arange(size, device=x.device)].reshape(x.shape)


@functools.cache
def _pool(size: int, device: torch.device) -> Tensor:
    """At least 2^20 normal numbers, and at least four rows of ``size``: the same on every device."""
    length = max(_POOL, 4 * size)
    return torch.randn(length, generator=torch.Generator().manual_seed(0)).to(device)
