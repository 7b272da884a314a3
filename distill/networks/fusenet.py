"""Networks of the NYU-Depth-V2 benchmark: SegNet (arXiv 1511.00561) and FuseNet (Hazirbas and others, ACCV 2016).

Both have the shape of VGG-16: five encoder stages, each pooled to half, and five decoder stages that put values back
where the encoder's maxima were.

Weights start by He's rule (arXiv 1502.01852), those of the last layer by Xavier's, biases at 0 and batch norms at 1.
What MST-Distill's reference means to do, ImageNet weights in the encoders, its code undoes: every convolution is drawn
anew with a gain of 0.02, so that its figures, too, are of networks trained from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from distill.networks.encoders import scaled
from distill.networks.registry import NETWORKS

_ENCODER = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_DECODER = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))
_DROPOUT = 0.4


def pool_with_cells(x: Tensor) -> tuple[Tensor, Tensor]:
    """Max pooling 2 x 2 of ``(B, C, H, W)``, and in which cell of its four (row by row) each maximum was."""
    width = x.shape[3]
    pooled, places = nn.functional.max_pool2d(x, 2, return_indices=True)
    # With even sides this holds wherever a runtime begins to count: at the map, as torch does, or at the batch.
    return pooled, places // width % 2 * 2 + places % 2


def unpool(x: Tensor, cells: Tensor) -> Tensor:
    """``(B, C, h, w)`` to ``(B, C, 2 h, 2 w)``: each value in the cell its maximum came from, zeros elsewhere.

    What ``max_unpool2d`` gives, without its scattered writes: they are not deterministic on a GPU, and runtimes on
    devices lack them.
    """
    channels, height, width = x.shape[1:]
    inside = torch.arange(4, device=x.device).reshape(1, 1, 1, 2, 1, 2)
    spread = torch.where(cells[:, :, :, None, :, None] == inside, x[:, :, :, None, :, None], 0.0)
    return spread.reshape(-1, channels, 2 * height, 2 * width)


def _stage(c_in: int, widths: Sequence[int]) -> nn.Sequential:
    """3 x 3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for a, b in pairwise((c_in, *widths)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers)


def _stages(c_in: int, table: Sequence[Sequence[int]], width: float) -> nn.ModuleList:
    widths = [[scaled(c, width) for c in row] for row in table]
    inputs = [c_in, *(row[-1] for row in widths)]
    return nn.ModuleList(_stage(c, row) for c, row in zip(inputs, widths, strict=False))


def _first_of(stages: Sequence[str]) -> tuple[str, ...]:
    """Dotted paths of the stages' first convolutions, after batch norm."""
    return tuple(f"{stage}.1" for stage in stages)


def _rest(stage: int) -> float:
    """Dropout behind the deepest three stages of encoder and decoder."""
    return _DROPOUT if stage >= 2 else 0.0


class _Decoder(nn.Module):
    """``stages[0]`` is the deepest; the last is followed by the convolution that gives the logits."""

    def __init__(self, num_outputs: int, width: float) -> None:
        super().__init__()
        self.stages = _stages(scaled(512, width), _DECODER, width)
        self.dropouts = nn.ModuleList(nn.Dropout(_rest(4 - index)) for index in range(5))
        self.logits = nn.Conv2d(scaled(64, width), num_outputs, 3, padding=1)

    def forward(self, x: Tensor, cells: Sequence[Tensor]) -> Tensor:
        for stage, dropout, places in zip(self.stages, self.dropouts, reversed(cells), strict=True):
            x = dropout(stage(unpool(x, places)))
        return self.logits(x)


def _start(module: nn.Module, logits: nn.Conv2d) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    nn.init.xavier_normal_(logits.weight)


def _require_halvable(shape: tuple[int, ...]) -> None:
    if shape[1] % 32 or shape[2] % 32:
        raise ValueError(f"height and width must be multiples of 32, received {shape[1]} x {shape[2]}")


@NETWORKS.register("segnet")
class SegNet(nn.Module):
    """Labels every pixel: ``(channels, H, W)`` to ``(outputs, H, W)``, H and W multiples of 32.

    With 41 outputs 29 466 665 parameters for colour and 29 465 513 for depth.

    Args:
        width: multiplies all channels.
    """

    maskable = ("encoder.4", "decoder.stages.0")
    stage_maps = tuple(f"encoder.{stage}" for stage in range(5))
    patch_embeddings = _first_of(stage_maps)

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0) -> None:
        super().__init__()
        _require_halvable(input_shape)
        self.encoder = _stages(input_shape[0], _ENCODER, width)
        self.dropouts = nn.ModuleList(nn.Dropout(_rest(index)) for index in range(5))
        self.decoder = _Decoder(num_outputs, width)
        _start(self, self.decoder.logits)

    def forward(self, x: Tensor) -> Tensor:
        cells = []
        for stage, dropout in zip(self.encoder, self.dropouts, strict=True):
            x, places = pool_with_cells(stage(x))
            x = dropout(x)
            cells.append(places)
        return self.decoder(x, cells)


@NETWORKS.register("fusenet")
class FuseNet(nn.Module):
    """Labels every pixel from colour and depth; 44 188 649 parameters with 41 outputs.

    At every stage the colour stream becomes the mean of both, as in MST-Distill's reference (in the paper, their sum);
    the depth stream stays as it is. Depth is the modality with one channel.
    """

    multimodal = True
    maskable = ("fused", "decoder.stages.0")
    stage_maps = tuple(f"joined.{stage}" for stage in range(5))

    def __init__(self, input_shapes: Mapping[str, tuple[int, ...]], num_outputs: int, width: float = 1.0) -> None:
        super().__init__()
        depths = [name for name, shape in input_shapes.items() if shape[0] == 1]
        if len(input_shapes) != 2 or len(depths) != 1 or len({shape[1:] for shape in input_shapes.values()}) != 1:
            raise ValueError("expected colour and a depth map of one channel, of the same height and width")
        (self._depth,) = depths
        (self._colour,) = (name for name in input_shapes if name != self._depth)
        _require_halvable(input_shapes[self._depth])
        self.colour = _stages(input_shapes[self._colour][0], _ENCODER, width)
        self.depth = _stages(1, _ENCODER, width)
        self.colour_dropouts = nn.ModuleList(nn.Dropout(_rest(index)) for index in range(5))
        self.depth_dropouts = nn.ModuleList(nn.Dropout(_rest(index)) for index in range(5))
        self.joined = nn.ModuleList(nn.Identity() for _ in range(5))
        self.patch_embeddings = {
            name: _first_of([f"{stream}.{stage}" for stage in range(5)])
            for name, stream in ((self._colour, "colour"), (self._depth, "depth"))
        }
        self.fused = nn.Identity()
        self.decoder = _Decoder(num_outputs, width)
        _start(self, self.decoder.logits)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        colour, depth, cells = inputs[self._colour], inputs[self._depth], []
        for index in range(5):
            depth = self.depth[index](depth)
            colour, places = pool_with_cells(self.joined[index]((self.colour[index](colour) + depth) / 2))
            colour = self.colour_dropouts[index](colour)
            depth = self.depth_dropouts[index](nn.functional.max_pool2d(depth, 2))
            cells.append(places)
        return self.decoder(self.fused(colour), cells)
