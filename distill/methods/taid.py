"""Temporally adaptive interpolated distillation (Shing and others, ICLR 2025, arXiv 2501.16937)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill.frozen import reads_of
from distill.methods.base import METHODS
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.networks.registry import Model
from distill.training.features import Batch
from mst_edge.core.errors import UserError

_TINY = 1e-15


@dataclass(frozen=True)
class TaidOptions(TeacherOptions):
    """``task_weight CE + kd_weight KL(q_t || p_student)``, ``q_t = softmax((1 - t) sg(z_student) + t z_teacher)``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        task_weight: of CE; the paper has none.
        kd_weight: of what the student learns from the mixture.
        temperature: softens both sides; the paper does not.
        t_start, t_end: share of the teacher in the mixture at the beginning, and at most; in [0, 1].
        step_size: alpha of the paper: how far t moves beyond its schedule in a step, at most.
        momentum: beta of the paper: share of the past in the running mean of the loss's relative change.
    """

    task_weight: float = 0.0
    kd_weight: float = 1.0
    temperature: float = 1.0
    t_start: float = 0.4
    t_end: float = 1.0
    step_size: float = 5e-4
    momentum: float = 0.99


@METHODS.register("taid")
class InterpolatedDistillation(SingleTeacher):
    """The student imitates a mixture of itself and the teacher, whose share grows, and faster while that is easy.

    Of numbers the mixture is that of both answers. After training, the teacher alone is left (``t_end``).
    """

    name = "taid"
    Options: ClassVar[type] = TaidOptions

    def check(self) -> None:
        super().check()
        start, end = self.options.t_start, self.options.t_end
        if not 0 <= start <= end <= 1:
            raise UserError(
                f"expected 0 <= t_start <= t_end <= 1, received {start} and {end}",
                where="distill.options.t_start",
                fix="the share of the teacher grows from t_start to t_end",
            )

    def train(self) -> Model:
        lab = self.lab
        student, answers = lab.new_student(), self.answers()
        steps = lab.epochs.student * lab.store.steps("train", lab.session.batch_size)
        mixture = Mixture(self.options, steps).to(lab.session.device)

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            z_s, z_t = student(batch.inputs), answers[self.teacher].logits(batch)
            share = mixture.share.clone()
            apart = self._apart(z_s, z_t, share)
            mixture.observe(batch.gather(apart.detach()), ends_step=batch.ends_step)
            return {**self._losses(z_s, batch.target, apart), "t": share}

        self.teach(student, step, {"mixture": mixture}, reads_of(answers.values()))
        self.insights = {"t": [epoch["t"] for epoch in lab.histories[self.name]]}
        return student

    @property
    def fine_tunes(self) -> bool:
        return True

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        """What is left once t has arrived: for fine-tuning."""
        share = torch.tensor(self.options.t_end, device=student.device)
        return self._losses(student, batch.target, self._apart(student, teachers[self.teacher], share))

    def _apart(self, student: Tensor, teacher: Tensor, share: Tensor) -> Tensor:
        """``(B,)`` divergence of each sample's answer from the mixture."""
        target = torch.lerp(student.detach().float(), teacher.float(), share)
        return self.lab.task.sample_kd(student, target, self.options.temperature)

    def _losses(self, student: Tensor, target: Tensor, apart: Tensor) -> dict[str, Tensor]:
        return self.weighted({"task": self.lab.task.loss(student, target), "kd": apart.mean()})


class Mixture(nn.Module):
    """The teacher's share t of the mixture, and what its next step depends on. All of it is saved in checkpoints.

    ``r = (L_before - L) / L_before;  m = beta m + (1 - beta) r;  d = alpha sigmoid(m) (1 - t)``
    ``t = min(t_end, max(t_start + (t_end - t_start) step / steps, t + d))``

    The first step only leaves its loss. L is the divergence itself, as the paper has it; the authors' code takes the
    cross entropy, which holds the mixture's own entropy too, and changes relatively less.

    Attributes:
        share: t. trend: m. before: L of the step before, infinite if there was none. step: how many steps there were.
    """

    share: Tensor
    trend: Tensor
    before: Tensor
    step: Tensor

    def __init__(self, options: TaidOptions, steps: int) -> None:
        super().__init__()
        self._options, self._steps = options, steps
        self.register_buffer("share", torch.tensor(float(options.t_start)))
        self.register_buffer("trend", torch.tensor(0.0))
        self.register_buffer("before", torch.tensor(torch.inf))
        self.register_buffer("step", torch.tensor(0))
        self._seen: list[Tensor] = []

    def observe(self, divergences: Tensor, *, ends_step: bool = True) -> None:
        """Moves t once the step is whole.

        Args:
            divergences: ``(B,)`` of the samples of one part of the step's batch, of all processes.
            ends_step: whether it is the last part.
        """
        self._seen.append(divergences)
        if not ends_step:
            return
        now, self._seen = torch.cat(self._seen).mean(), []
        if torch.isfinite(self.before):
            self._move(now)
        self.before.copy_(now)
        self.step += 1

    def _move(self, now: Tensor) -> None:
        said = self._options
        change = (self.before - now) / (self.before + _TINY)
        self.trend.copy_(said.momentum * self.trend + (1 - said.momentum) * change)
        scheduled = said.t_start + (said.t_end - said.t_start) * self.step / self._steps
        reached = self.share + said.step_size * self.trend.sigmoid() * (1 - self.share)
        self.share.copy_(torch.maximum(scheduled, reached).clamp_max(said.t_end))
