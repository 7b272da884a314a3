"""Plain knowledge distillation from the multimodal teacher (Hinton and others, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from distill.lab import MULTIMODAL
from distill.methods.base import METHODS, Method
from distill.training.features import Batch


@dataclass(frozen=True)
class KdOptions:
    """``(1 - alpha) CE + alpha KD`` at ``temperature``."""

    temperature: float = 4.0
    alpha: float = 0.5


@METHODS.register("kd")
class KnowledgeDistillation(Method):
    """The student imitates the softened probabilities of the lone-trained multimodal teacher."""

    name = "kd"
    Options: ClassVar[type] = KdOptions

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        task = self.lab.task.loss(student, batch.target)
        kd = self.lab.task.kd(student, teachers[MULTIMODAL], self.options.temperature)
        alpha = self.options.alpha
        return {"loss": (1 - alpha) * task + alpha * kd, "task": task, "kd": kd}
