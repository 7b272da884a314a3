"""DisWOT: how well a student suits a teacher before either is trained (Dong and others, CVPR 2023, arXiv 2303.15678).

One mini-batch goes through teacher and student, both with fresh weights. Two similarities are compared: which samples
look alike to them, and which classes pull at the same features. What their published script computes is kept where it
can be; what differs is said at each function.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.networks.registry import Model
from distill.tasks import Task
from distill.training.features import Batch
from mst_edge.core.errors import UserError

_WITH_CLASSES = ("classification", "segmentation")


@dataclass(frozen=True)
class Readout:
    """What one network shows of a batch.

    Attributes:
        features: ``(batch, n)``: its last map before pooling, flattened.
        classes: ``(classes, d)``: gradient of the batch's loss with respect to the weight of its last layer, a row per
            class; None where the task has no classes.
    """

    features: Tensor
    classes: Tensor | None


@dataclass(frozen=True)
class Score:
    """The parts of a score, each 0 at best and negative otherwise; ``semantic`` is None for a task without classes.

    DisWOT is their sum, weighed alike as in the paper.
    """

    relation: float
    semantic: float | None

    @property
    def total(self) -> float:
        """The sum."""
        return self.relation + (self.semantic or 0.0)


def score(teacher: Readout, student: Readout, *, width_free: bool = True) -> Score:
    """How much a student sees a batch as its teacher does.

    Args:
        width_free: compare classes with classes, so that any widths do; False compares channels, as published.

    Raises:
        ValueError: channels are compared, and the networks' last layers read different numbers of them.
    """
    semantic = None
    if teacher.classes is not None and student.classes is not None:
        measure = class_similarity if width_free else channel_similarity
        semantic = float(measure(teacher.classes, student.classes))
    return Score(float(relation_similarity(teacher.features, student.features)), semantic)


def relation_similarity(teacher: Tensor, student: Tensor) -> Tensor:
    """``-||G_t - G_s||_F^2 / B^2`` with ``G`` the Gram matrix ``A A^T`` of the flattened features ``(B, n)``, its rows
    of unit length (DisWOT's relation similarity).

    The published script for NAS-Bench-201 takes the first image alone, and the Gram matrix of its channels; this is
    what the paper says.
    """
    difference = _unit_rows(_gram(teacher)) - _unit_rows(_gram(student))
    return -difference.square().sum() / difference.numel()


def channel_similarity(teacher: Tensor, student: Tensor) -> Tensor:
    """``-sum_c ||G_t,c - G_s,c||_F^2 / (C d)`` over the classes, with ``G_c = g_c g_c^T``, its rows of unit length, of
    each row ``g_c`` of the gradient ``(C, d)`` (DisWOT's semantic
    similarity, as its script for NAS-Bench-201 has it).

    Args:
        teacher, student: ``(C, d)``.

    Raises:
        ValueError: two different ``d``.
    """
    if teacher.shape != student.shape:
        raise ValueError(f"{teacher.shape[1]} and {student.shape[1]} channels cannot be compared one by one")
    # Class by class: all at once would take C d^2 numbers.
    parts = [
        (_unit_rows(torch.outer(one, one)) - _unit_rows(torch.outer(other, other))).square().sum()
        for one, other in zip(teacher, student, strict=True)
    ]
    return -torch.stack(parts).sum() / teacher.numel()


def class_similarity(teacher: Tensor, student: Tensor) -> Tensor:
    """``-||G_t - G_s||_F^2 / C^2`` with ``G`` the Gram matrix of the gradient's rows, ``(C, C)``, its rows of unit
    length: which classes pull at the same features.

    Our adaptation: ``channel_similarity`` needs a student as wide as its teacher.

    Args:
        teacher: ``(C, d)``.
        student: ``(C, d')``.
    """
    difference = _unit_rows(_gram(teacher)) - _unit_rows(_gram(student))
    return -difference.square().sum() / difference.numel()


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _unit_rows(matrix: Tensor) -> Tensor:
    return functional.normalize(matrix, dim=1)


def read(model: Model, task: Task, batch: Batch) -> Readout:
    """What a network shows of a batch; its weights and statistics stay as they are.

    Batch norm takes the batch's own statistics, as in training, and nothing is dropped out. Features are the output of
    the last module that gives ``(batch, channels, positions...)``: the map before pooling. A network without one (for
    vectors), and one that reads several modalities and so has several maps, shows what its last layer reads: our
    adaptation. The paper draws weights from N(0, 1); here they are the initial weights that training starts from, since
    N(0, 1) saturates networks without batch norm.

    Raises:
        UserError: no linear layer or convolution gives the logits.
    """
    with _watched(model, len(batch.ids), task.num_outputs) as seen, _as_in_training(model.module):
        logits = model(batch.inputs)
        if seen.last is None:
            raise UserError(
                f"network {model.network!r} of {model.name} ends in no linear layer or convolution of "
                f"{task.num_outputs} outputs, which DisWOT reads",
                where="search",
                fix="leave the network out, or end it in such a layer",
            )
        features = seen.read if seen.map is None or model.multimodal else seen.map
        classes = None
        if task.output.task in _WITH_CLASSES:
            weight = seen.last.weight
            (gradient,) = torch.autograd.grad(task.loss(logits, batch.target), [weight])
            classes = gradient.flatten(1).double()
    return Readout(features.detach().flatten(1).double(), classes)


@dataclass
class _Seen:
    """The last layer that gives the logits, what it read, and the last map before it."""

    last: nn.Linear | nn.Conv1d | nn.Conv2d | None = None
    read: Tensor = field(default_factory=lambda: torch.empty(0))
    map: Tensor | None = None


@contextlib.contextmanager
def _watched(model: Model, samples: int, outputs: int) -> Iterator[_Seen]:
    seen = _Seen()
    latest: list[Tensor] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if not isinstance(output, Tensor) or len(output) != samples:
            return
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) and len(layer.weight) == outputs:
            seen.last, seen.read, seen.map = layer, inputs[0], latest[-1] if latest else None
        if output.ndim > 2:
            latest[:] = [output]

    hooks = [layer.register_forward_hook(look) for layer in model.module.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _as_in_training(module: nn.Module) -> Iterator[None]:
    """Train mode without dropout; running statistics and modes are put back."""
    modes: Mapping[nn.Module, bool] = {layer: layer.training for layer in module.modules()}
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    for layer in modes:
        layer.training = not isinstance(layer, nn.modules.dropout._DropoutNd)
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        with torch.no_grad():
            for name, value in module.named_buffers():
                value.copy_(buffers[name])
