"""Plain knowledge distillation from one teacher (Hinton and others, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from distill.methods.base import METHODS
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.training.features import Batch


@dataclass(frozen=True)
class KdOptions(TeacherOptions):
    """``(1 - alpha) CE + alpha KD`` at ``temperature``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        temperature: softens both sides of KD.
        alpha: share of KD in the loss, in [0, 1].
    """

    temperature: float = 4.0
    alpha: float = 0.5


@METHODS.register("kd")
class KnowledgeDistillation(SingleTeacher):
    """The student imitates the softened probabilities of a lone-trained teacher."""

    name = "kd"
    Options: ClassVar[type] = KdOptions

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        task = self.lab.task.loss(student, batch.target)
        kd = self.lab.task.kd(student, teachers[self.teacher], self.options.temperature)
        alpha = self.options.alpha
        return {"loss": (1 - alpha) * task + alpha * kd, "task": task, "kd": kd}
