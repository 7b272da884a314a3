"""One-for-all distillation across architectures (Hao and others, NeurIPS 2023, arXiv 2310.19444)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.datasets.target import CLASSIFICATION
from distill.methods.base import METHODS
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.networks.registry import Model
from distill.taps import Tap, maskable_layers
from distill.training.features import Batch
from mst_edge.core.errors import UserError

_WHERE = "distill.options.layers"
_CONVOLUTIONS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
}


@dataclass(frozen=True)
class OfaOptions(TeacherOptions):
    """``task_weight CE + exits_weight (sum over exits of L_OFA) + logits_weight L_OFA``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        layers: dotted paths of the student's layers that get an exit; empty takes its maskable layers.
        task_weight: of CE.
        exits_weight: of what the exits are told.
        logits_weight: of what the student's own logits are told.
        gamma: exponent that raises the target class above the others.
        temperature: softens both sides.
    """

    layers: Sequence[str] = ()
    task_weight: float = 1.0
    exits_weight: float = 1.0
    logits_weight: float = 1.0
    gamma: float = 1.1
    temperature: float = 1.0


@METHODS.register("ofa")
class OneForAll(SingleTeacher):
    """Layers of the student imitate the teacher's probabilities, each through an exit of its own.

    Exits are dropped after training.
    """

    name = "ofa"
    tasks = (CLASSIFICATION,)
    Options: ClassVar[type] = OfaOptions

    def check(self) -> None:
        super().check()
        self._tap(self.lab.new_student())

    def _tap(self, student: Model) -> Tap:
        """The student's layers that get an exit."""
        layers = self.options.layers or maskable_layers(student, where=_WHERE)
        return Tap(student, layers, self.lab.store.shapes, where=_WHERE)

    def train(self) -> Model:
        lab, options = self.lab, self.options
        student, answer = lab.new_student(), self.answers()[self.teacher]
        tap = self._tap(student)
        self.seed_helpers()
        exits = nn.ModuleList(exit_branch(shape, lab.task.num_outputs) for shape in tap.feature_shapes)

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            logits, outputs = tap(batch.inputs)
            teacher = answer.logits(batch)
            told = [
                ofa_loss(answer, teacher, batch.target, options.gamma, options.temperature)
                for answer in (logits, *(branch(output) for branch, output in zip(exits, outputs, strict=True)))
            ]
            task = lab.task.loss(logits, batch.target)
            return self.weighted({"task": task, "logits": told[0], "exits": torch.stack(told[1:]).sum()})

        self.teach(student, step, {"exits": exits}, answer.reads)
        return student


def ofa_loss(student: Tensor, teacher: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    """``- sum_c [(p_c + h_c)^gamma - h_c] log q_c``, averaged over the batch (eq. 5 as the paper's code has it).

    ``p`` and ``q`` are softened probabilities of teacher and student, ``h`` the one-hot target.

    Args:
        student, teacher: ``(B, K)`` logits. target: ``(B,)`` classes.
    """
    p = torch.softmax(teacher.float() / temperature, dim=1)
    h = functional.one_hot(target, p.shape[1])
    log_q = functional.log_softmax(student.float() / temperature, dim=1)
    return -(((p + h) ** gamma - h) * log_q).sum(dim=1).mean()


def exit_branch(shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Logits from a layer's output: ``(C,)`` by two linear layers, ``(C, ...)`` by two separable blocks.

    Raises:
        UserError: maps with more than two axes of positions.
    """
    channels, rank = shape[0], len(shape) - 1
    if rank == 0:
        branch = nn.Sequential(nn.Linear(channels, 2 * outputs), nn.ReLU(), nn.Linear(2 * outputs, outputs))
    elif rank in _CONVOLUTIONS:
        branch = nn.Sequential(
            *_separable(rank, channels, 2 * channels),
            *_separable(rank, 2 * channels, 2 * outputs),
            _MeanOverPositions(),
            nn.Linear(2 * outputs, outputs),
        )
    else:
        raise UserError(f"an exit cannot read a layer of shape {shape}", where=_WHERE, fix="name other layers")
    for layer in branch:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return branch


def _separable(rank: int, c_in: int, c_out: int) -> list[nn.Module]:
    """Halves every axis of positions, then mixes: two depthwise convolutions, each with a pointwise one."""
    convolution, norm = _CONVOLUTIONS[rank]
    layers: list[nn.Module] = []
    for stride, width in ((2, c_in), (1, c_out)):
        layers += [
            convolution(c_in, c_in, 3, stride, 1, groups=c_in, bias=False),
            convolution(c_in, width, 1, bias=False),
            norm(width),
            nn.ReLU(),
        ]
    return layers


class _MeanOverPositions(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(2).mean(dim=2)
