"""Networks that answer with a map: a small encoder-decoder, and its fusion of several modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.networks.encoders import scaled
from distill.networks.registry import NETWORKS

_SMALLEST = 4  # the shorter side at the bottom is not made smaller than this
_WIDTHS = (16, 24, 48, 64, 96)
_HALVED = 1  # the part of a level whose output is the first one of the level's size


def _block(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
        # Depthwise-separable: looks farther for few weights.
        nn.Conv2d(c_out, c_out, 3, 1, 1, groups=c_out, bias=False),
        nn.Conv2d(c_out, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
    )


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of every level, the largest first: each half of the one before, rounded up."""
    sizes = [(height, width)]
    while len(sizes) < len(_WIDTHS) and min(sizes[-1]) >= 2 * _SMALLEST:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class MapEncoder(nn.Module):
    """``(B, C, H, W)`` to a list of maps, one per level; every level after the first halves the map."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        before = [channels, *widths[:-1]]
        self.levels = nn.ModuleList(
            _block(c_in, c_out, 1 if level == 0 else 2)
            for level, (c_in, c_out) in enumerate(zip(before, widths, strict=True))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class MapDecoder(nn.Module):
    """A list of maps to logits ``(B, num_outputs, H, W)``: from the smallest up, each level joined by its skip."""

    def __init__(
        self, widths: Sequence[int], sizes: Sequence[tuple[int, int]], num_outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self._sizes = list(sizes[:-1])[::-1]
        pairs = list(pairwise(widths))[::-1]
        self.dropout = nn.Dropout2d(dropout)
        self.levels = nn.ModuleList(_block(below + skip, skip) for skip, below in pairs)
        self.head = nn.Conv2d(widths[0], num_outputs, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.dropout(maps[-1])
        for level, size, skip in zip(self.levels, self._sizes, maps[-2::-1], strict=True):
            # Doubled by a constant factor and cut: a size asked for would make the exported graph compute shapes.
            doubled = functional.interpolate(x, scale_factor=2.0)[:, :, : size[0], : size[1]]
            x = level(torch.cat([doubled, skip], dim=1))
        return self.head(x)


@NETWORKS.register("small_unet")
class SmallUnet(nn.Module):
    """Encoder-decoder with skips for ``(channels, height, width)`` of any size (after Ronneberger and others,
    arXiv 1505.04597): up to five levels, 0.29 M parameters at width 1."""

    maskable = ("bottom", "decoder.levels.0")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, *size = input_shape
        sizes = level_sizes(size[0], size[1])
        widths = [scaled(wide, width) for wide in _WIDTHS[: len(sizes)]]
        self.encoder = MapEncoder(channels, widths)
        self.stage_maps = tuple(f"encoder.levels.{level}" for level in range(len(sizes)))
        self.patch_embeddings = tuple(f"{stage}.{_HALVED}" for stage in self.stage_maps)
        self.bottom = nn.Identity()
        self.decoder = MapDecoder(widths, sizes, num_outputs, dropout)

    def forward(self, x: Tensor) -> Tensor:
        *skips, lowest = self.encoder(x)
        return self.decoder([*skips, self.bottom(lowest)])


@NETWORKS.register("map_fusion")
class MapFusion(nn.Module):
    """One encoder per modality, joined on every level, one decoder: a teacher that answers with a map.

    Logits have the size of the first modality; the maps of others are brought to its sizes, level by level.

    Args:
        width: width multiplier of encoders and decoder.
        dropout: on the lowest level.
    """

    multimodal = True
    maskable = ("fused", "decoder.levels.0")

    def __init__(
        self,
        input_shapes: Mapping[str, tuple[int, ...]],
        num_outputs: int,
        width: float = 1.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, shape in input_shapes.items():
            if len(shape) != 3:
                raise ValueError(f"{name} is no map (channels, height, width)")
        _, *size = next(iter(input_shapes.values()))
        self._sizes = level_sizes(size[0], size[1])
        widths = [scaled(wide, width) for wide in _WIDTHS[: len(self._sizes)]]
        self.encoders = nn.ModuleDict({name: MapEncoder(shape[0], widths) for name, shape in input_shapes.items()})
        self.join = nn.ModuleList(nn.Conv2d(len(input_shapes) * wide, wide, 1) for wide in widths)
        self.joined = nn.ModuleList(nn.Identity() for _ in widths)
        self.stage_maps = tuple(f"joined.{level}" for level in range(len(widths)))
        self.patch_embeddings = {
            name: tuple(f"encoders.{name}.levels.{level}.{_HALVED}" for level in range(len(widths)))
            for name in input_shapes
        }
        self.fused = nn.Identity()
        self.decoder = MapDecoder(widths, self._sizes, num_outputs, dropout)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        levels = zip(*(encoder(inputs[name]) for name, encoder in self.encoders.items()), strict=True)
        *skips, lowest = (
            joined(torch.relu(join(torch.cat([functional.interpolate(one, size=size) for one in maps], dim=1))))
            for join, joined, size, maps in zip(self.join, self.joined, self._sizes, levels, strict=True)
        )
        return self.decoder([*skips, self.fused(lowest)])
