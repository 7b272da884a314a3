"""Mask networks and specialised teachers of MST-Distill (arXiv 2507.07015, section on specialised teachers)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.networks.registry import Model, blank_features, find_layer
from distill.suffix import SplitModel
from mst_edge.core.errors import UserError

_HEADS = 3


class FullMask(nn.Module):
    """The published mask network: every feature becomes a token by a linear map C -> C * e.

    ``e = floor(C / (factor * heads)) * heads``; self-attention over the C tokens; linear e -> 1; sigmoid.
    A map ``(B, C, h, w)`` is first reduced to C numbers by a strided depthwise-separable convolution.
    The parameters grow with the cube of C: 106 M for 596 features.
    """

    def __init__(self, features: int, spatial: bool, factor: int = 2) -> None:
        super().__init__()
        width = features // (factor * _HEADS) * _HEADS
        if width == 0:
            raise UserError(f"a layer of {features} features is too narrow for a full mask network")
        self.reduce = _reducer(features) if spatial else nn.Identity()
        self.features, self.width = features, width
        self.embed = nn.Linear(features, features * width)
        self.attention = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.score = nn.Linear(width, 1)

    def forward(self, h: Tensor) -> Tensor:
        """``(B, C, ...)`` to a mask ``(B, C)`` in (0, 1)."""
        tokens = self.embed(self.reduce(h)).reshape(-1, self.features, self.width)
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return torch.sigmoid(self.score(attended).squeeze(2))


def _reducer(features: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(features, features, 3, stride=2, padding=1, groups=features, bias=False),
        nn.Conv2d(features, features, 1, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class CompactMask(nn.Module):
    """A mask network whose size grows linearly with C.

    Token i is ``h_i * u + p_i``: one direction ``u`` shared by all features, one learned vector ``p_i``
    each. The rest is as published. A map is reduced to C numbers by its mean. It starts close to 1
    everywhere, so that the specialised teacher starts as the teacher itself.
    """

    def __init__(self, features: int, spatial: bool, width: int = 12) -> None:
        super().__init__()
        self.spatial = spatial
        self.scale = nn.LayerNorm(features, elementwise_affine=False)
        self.direction = nn.Parameter(torch.randn(width) * width**-0.5)
        self.identity = nn.Parameter(torch.randn(features, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.score = nn.Linear(width, 1)
        nn.init.constant_(self.score.bias, 3.0)

    def forward(self, h: Tensor) -> Tensor:
        """``(B, C, ...)`` to a mask ``(B, C)`` in (0, 1)."""
        values = self.scale(h.flatten(2).mean(dim=2) if self.spatial else h)
        tokens = values[:, :, None] * self.direction + self.identity
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return torch.sigmoid(self.score(tokens + attended).squeeze(2))


MASKS = {"full": FullMask, "compact": CompactMask}


@dataclass
class SpecialisedTeacher:
    """A frozen teacher of which one layer's output is masked by its own mask network, alone."""

    name: str
    teacher: Model
    layer: str
    mask: nn.Module

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that the teacher reads."""
        return self.teacher.reads

    @property
    def mask_parameters(self) -> int:
        """Number of learned values of the mask."""
        return sum(p.numel() for p in self.mask.parameters())

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of the masked teacher."""
        with masked(self.teacher.module, self.layer, self.mask):
            return self.teacher(inputs)

    def above(self, split: SplitModel, kept: Sequence[Tensor]) -> Tensor:
        """The same logits from what the teacher, split at the masked layer, computes below it."""
        layer_output, *bypass = kept
        return split.after((apply_mask(self.mask, layer_output), *bypass))


def apply_mask(mask: nn.Module, h: Tensor) -> Tensor:
    """``h * mask(h)``, channel by channel, for ``(B, C)`` or ``(B, C, ...)``."""
    spatial = h.ndim > 2 and h.shape[2:].numel() > 1
    values = mask(h if spatial else h.flatten(1))
    return h * values.reshape(*h.shape[:2], *([1] * (h.ndim - 2)))


@contextlib.contextmanager
def masked(module: nn.Module, layer: str, mask: nn.Module) -> Iterator[None]:
    """While open, the output h of ``layer`` is replaced by h * mask(h), channel by channel."""

    def hook(_layer: nn.Module, _inputs: object, h: Tensor) -> Tensor:
        return apply_mask(mask, h)

    handle = find_layer(module, layer, where="distill.options.layers").register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def make_specialised(
    teacher: Model, layer: str, mask: str, shapes: Mapping[str, tuple[int, ...]], where: str
) -> SpecialisedTeacher:
    """A specialised teacher with a fresh mask, sized by the layer's output.

    Raises:
        UserError: the layer does not exist, is not reached, or its output is not ``(batch, C, ...)``.
    """
    output = probe_layer(teacher, layer, shapes, where)
    spatial = output.ndim > 2 and output.shape[2:].numel() > 1
    if mask == "full" and spatial and output.ndim != 4:
        raise UserError(f"full masks know maps (C, h, w); layer {layer!r} gives {tuple(output.shape[1:])}", where=where)
    return SpecialisedTeacher(f"{teacher.name}:{layer}", teacher, layer, MASKS[mask](output.shape[1], spatial))


@torch.no_grad()
def probe_layer(teacher: Model, layer: str, shapes: Mapping[str, tuple[int, ...]], where: str) -> Tensor:
    """What a teacher's layer gives for two samples of zeros, ``(2, C, ...)``.

    Raises:
        UserError: the layer does not exist, is not reached, or its output is not ``(batch, C, ...)``.
    """
    seen: list[Tensor] = []
    found = find_layer(teacher.module, layer, where=where)
    handle = found.register_forward_hook(lambda _m, _i, output: seen.append(output))
    try:
        teacher.module.eval()
        device = next(teacher.module.parameters()).device
        teacher(blank_features({name: shapes[name] for name in teacher.reads}, device))
    finally:
        handle.remove()
    if not seen or not isinstance(seen[0], Tensor) or seen[0].ndim < 2:
        raise UserError(
            f"layer {layer!r} of teacher {teacher.name} gives no (batch, channels, ...) output", where=where
        )
    return seen[0]
