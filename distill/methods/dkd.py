"""Decoupled knowledge distillation (Zhao and others, CVPR 2022, arXiv 2203.08679)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from distill.datasets.target import CLASSIFICATION, SEGMENTATION
from distill.methods.base import METHODS
from distill.methods.c2kd import without_target
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.training.features import Batch


@dataclass(frozen=True)
class DkdOptions(TeacherOptions):
    """``task_weight CE + min(1, epoch / warm-up) (alpha TCKD + beta NCKD)``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        task_weight: of CE.
        alpha: of the target-class part: how sure the teacher is of the label.
        beta: of the non-target-class part: how the teacher ranks all other classes. KD weighs it by how unsure the
            teacher is, which silences a teacher that is sure of its training samples.
        temperature: softens both sides of both parts.
        warmup_share: share of the student's epochs in which both parts grow from 0, epoch by epoch, to their weight;
            the authors' code takes 20 of 240.
    """

    task_weight: float = 1.0
    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    warmup_share: float = 20 / 240


@METHODS.register("dkd")
class DecoupledDistillation(SingleTeacher):
    """KD in two parts with weights of their own: the target class, and the others among themselves.

    Where there are two classes the second part is 0, and the first is KD.
    """

    name = "dkd"
    tasks = (CLASSIFICATION, SEGMENTATION)
    Options: ClassVar[type] = DkdOptions

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        task, options = self.lab.task, self.options
        target, others = parts(
            *labelled(student, teachers[self.teacher], batch.target, task.output.ignore_label), options.temperature
        )
        # A picture without any labelled pixel has no target class, and nothing to learn from here.
        decoupled = {name: part.sum() / max(1, len(part)) for name, part in (("target", target), ("others", others))}
        losses = {"task": task.loss(student, batch.target), **decoupled}
        told = options.alpha * losses["target"] + options.beta * losses["others"]
        return {"loss": options.task_weight * losses["task"] + self.warmth(epoch) * told, **losses}

    def warmth(self, epoch: int) -> float:
        """Factor on both parts in an epoch, counted from 0."""
        epochs = self.options.warmup_share * self.lab.epochs.student
        return min(1.0, epoch / epochs) if epochs > 0 else 1.0


def labelled(
    student: Tensor, teacher: Tensor, target: Tensor, ignore_label: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``(B, K, ...)`` twice and classes ``(B, ...)`` to ``(N, K)`` twice and ``(N,)``, of what has a label."""
    known = torch.ones_like(target, dtype=torch.bool) if ignore_label is None else target != ignore_label
    return student.movedim(1, -1)[known], teacher.movedim(1, -1)[known], target[known]


def parts(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both divergences of each sample, times tau^2 (eqs. 5 and 6 of the paper).

    With ``b = (p_target, 1 - p_target)`` and ``p^`` the softmax over all classes but the target's:
    ``KL(b_teacher || b_student)`` and ``KL(p^_teacher || p^_student)``. KD is the first plus ``1 - p_target`` of the
    teacher times the second.

    Args:
        student, teacher: ``(N, K)`` logits. target: ``(N,)`` classes.

    Returns:
        ``(N,)`` of the target class, and of the others.
    """
    (b_s, others_s), (b_t, others_t) = (_split(z.float() / temperature, target) for z in (student, teacher))
    return temperature**2 * _divergence(b_s, b_t), temperature**2 * _divergence(others_s, others_t)


def _split(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``(N, 2)`` log-probabilities of the target class and of all others together; ``(N, K - 1)`` of each other one
    among the others."""
    others = without_target(z, target)
    # Not log(1 - p), which is nothing but rounding where p is close to 1.
    both = torch.stack([z.gather(1, target[:, None])[:, 0], others.logsumexp(dim=1)], dim=1)
    return both.log_softmax(dim=1), others.log_softmax(dim=1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``(N,)`` KL of log-probabilities ``(N, n)``."""
    return (teacher.exp() * (teacher - student)).sum(dim=1)
