"""Mask networks and specialised teachers of MST-Distill (arXiv 2507.07015, section on specialised teachers)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.frozen import Frozen, Keeper, as_logits
from distill.networks.registry import Model, blank_features, find_layer
from distill.suffix import SplitModel, Tensors, split_at
from distill.training.features import Batch
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
        self.spatial = spatial
        self.reduce = _reducer(features) if spatial else nn.Identity()
        self.features, self.width = features, width
        self.embed = nn.Linear(features, features * width)
        self.attention = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.score = nn.Linear(width, 1)

    def summary(self, h: Tensor) -> Tensor:
        """What the mask reads of a layer's output ``(B, C, ...)``, before anything that it learns: all of it."""
        return h if self.spatial else h.flatten(1)

    def forward(self, h: Tensor) -> Tensor:
        """A summary ``(B, C)`` or ``(B, C, h, w)`` to a mask ``(B, C)`` in (0, 1)."""
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
    each. Tokens attend to one another, by linear attention: its time and memory grow with C, where those of
    the published softmax grow with its square. A map is reduced to C numbers by its mean. The mask starts
    close to 1 everywhere, so that the specialised teacher starts as the teacher itself.
    """

    def __init__(self, features: int, spatial: bool, width: int = 12) -> None:
        super().__init__()
        self.spatial = spatial
        self.scale = nn.LayerNorm(features, elementwise_affine=False)
        self.direction = nn.Parameter(torch.randn(width) * width**-0.5)
        self.identity = nn.Parameter(torch.randn(features, width) * width**-0.5)
        self.project = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        nn.init.xavier_uniform_(self.project.weight)
        for layer in (self.project, self.mix):
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.score.bias, 3.0)

    def summary(self, h: Tensor) -> Tensor:
        """What the mask reads of a layer's output ``(B, C, ...)``, before anything that it learns: ``(B, C)``."""
        return h.flatten(2).mean(dim=2) if self.spatial else h.flatten(1)

    def forward(self, h: Tensor) -> Tensor:
        """A summary ``(B, C)`` to a mask ``(B, C)`` in (0, 1)."""
        values = self.scale(h)
        tokens = values[:, :, None] * self.direction + self.identity
        query, key, value = self.project(tokens).unflatten(2, (3, _HEADS, -1)).unbind(dim=2)
        attended = self.mix(linear_attention(query, key, value).flatten(2))
        return torch.sigmoid(self.score(tokens + attended).squeeze(2))


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``sum_j f(q_i) f(k_j) v_j / sum_j f(q_i) f(k_j)`` with ``f(x) = elu(x) + 1`` (Katharopoulos and others, eq. 5).

    Transformers are RNNs, ICML 2020, arXiv 2006.16236. The sums over j are formed once for all i.

    Args:
        query, key, value: ``(B, C, heads, width)``.
    """
    query, key = functional.elu(query) + 1, functional.elu(key) + 1
    summed = torch.einsum("bchd,bche->bhde", key, value)
    total = torch.einsum("bchd,bhd->bch", query, key.sum(dim=1))
    return torch.einsum("bchd,bhde->bche", query, summed) / total[..., None]


Mask = FullMask | CompactMask
MASKS: Mapping[str, type[Mask]] = {"full": FullMask, "compact": CompactMask}


@dataclass
class SpecialisedTeacher:
    """A frozen teacher of which one layer's output is masked by its own mask network, alone."""

    name: str
    teacher: Model
    layer: str
    mask: Mask

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


@dataclass(frozen=True)
class Learning:
    """``logits`` of a batch, ``(B, outputs)`` per specialised teacher of one teacher; gradients flow into the masks.

    Attributes:
        reads: modalities that a batch must hold.
    """

    logits: Callable[[Batch], Tensors]
    reads: tuple[str, ...]


class MaskedTeacher:
    """The specialised teachers of one teacher: one pass gives what no mask changes, only the rest runs per mask."""

    def __init__(self, specialised: Sequence[SpecialisedTeacher]) -> None:
        """Splits the teacher at the masked layers. One that cannot be traced runs whole, once per mask."""
        self._specialised, self._teacher = list(specialised), specialised[0].teacher
        self._layers = [special.layer for special in specialised]
        # A mask that learns to read the whole map needs the layer's output itself.
        self._slides = not any(isinstance(special.mask, FullMask) and special.mask.spatial for special in specialised)
        self._split = split_at(self._teacher, *self._layers, slide=self._slides)

    def learning(self, keeper: Keeper) -> Learning:
        """Logits while the masks learn."""
        if self._split is None:
            return Learning(lambda batch: tuple(s(batch.inputs) for s in self._specialised), self._teacher.reads)
        split, below = self._split, keeper.answers(self._below)
        return Learning(lambda batch: self._above(split, below(batch)), below.reads)

    @property
    def frozen(self) -> Frozen:
        """The same logits, once the masks have learned."""
        return Frozen(
            what=f"{self._teacher.name} masked at {', '.join(self._layers)}",
            compute=self._logits,
            reads=self._teacher.reads,
            networks=[self._teacher.module, *(special.mask for special in self._specialised)],
            facts={"masked": self._layers},
        )

    @property
    def _below(self) -> Frozen:
        return Frozen(
            what=f"{self._teacher.name} below {', '.join(self._layers)}",
            compute=self._compute_below,
            reads=self._teacher.reads,
            networks=[self._teacher.module],
            facts={"below": self._layers, "masks": [type(special.mask).__qualname__ for special in self._specialised]},
        )

    def _compute_below(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """What each mask reads of its layer, then what lies under the parts above."""
        assert self._split is not None
        layers, kept = self._split.before(inputs)
        if not self._slides:
            return kept
        return *(special.mask.summary(h) for special, h in zip(self._specialised, layers, strict=True)), *kept

    def _above(self, split: SplitModel, below: Tensors) -> Tensors:
        count = len(self._specialised) if self._slides else 0
        summaries, kept = below[:count], below[count:]
        said = []
        for cut, special in enumerate(self._specialised):
            body, *bypass = split.part(kept, cut)
            summary = summaries[cut] if self._slides else special.mask.summary(body)
            said.append(split.after((multiplied(body, special.mask(summary)), *bypass), cut))
        return tuple(said)

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensors:
        if self._split is None:
            return tuple(as_logits(special(inputs)) for special in self._specialised)
        return tuple(map(as_logits, self._above(self._split, self._compute_below(inputs))))


def multiplied(h: Tensor, values: Tensor) -> Tensor:
    """``h`` ``(B, C, ...)`` times a mask ``(B, C)``, channel by channel."""
    return h * values.reshape(*h.shape[:2], *([1] * (h.ndim - 2)))


@contextlib.contextmanager
def masked(module: nn.Module, layer: str, mask: Mask) -> Iterator[None]:
    """While open, the output h of ``layer`` is replaced by h * mask(h), channel by channel."""

    def hook(_layer: nn.Module, _inputs: object, h: Tensor) -> Tensor:
        return multiplied(h, mask(mask.summary(h)))

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
