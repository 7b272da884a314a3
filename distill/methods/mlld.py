"""Multi-level logit distillation (Jin, Wang and Lin, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from distill.datasets.target import CLASSIFICATION, SEGMENTATION
from distill.methods.base import METHODS
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.training.features import Batch


@dataclass(frozen=True)
class MlldOptions(TeacherOptions):
    """``CE + sum over temperatures of (instance + class + batch)``, each with a weight.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        temperatures: soften both sides; all three levels are taken at each of them.
        task_weight: of CE.
        instance_weight, class_weight, batch_weight: of the three levels.
    """

    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)
    task_weight: float = 1.0
    instance_weight: float = 1.0
    class_weight: float = 1.0
    batch_weight: float = 1.0


@METHODS.register("mlld")
class MultiLevelLogits(SingleTeacher):
    """The student imitates probabilities, how classes go together, and how samples go together."""

    name = "mlld"
    tasks = (CLASSIFICATION, SEGMENTATION)
    Options: ClassVar[type] = MlldOptions

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        options, task, teacher = self.options, self.lab.task, teachers[self.teacher]
        students, taught = batch.gather(student), batch.gather(teacher)
        levels = [correlations(students, taught, temperature) for temperature in options.temperatures]
        losses = {
            "task": task.loss(student, batch.target),
            "instance": torch.stack([task.kd(student, teacher, t) for t in options.temperatures]).sum(),
            "class": torch.stack([between_classes for between_classes, _ in levels]).sum(),
            "batch": torch.stack([between_samples for _, between_samples in levels]).sum(),
        }
        return self.weighted(losses)


def correlations(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Distances between the correlations of student and teacher (CVPR 2023 paper, from memory).

    With ``P`` and ``Q`` the ``(B, K)`` softened probabilities of student and teacher:
    ``||P'P - Q'Q||^2 / K`` between classes, and ``||PP' - QQ'||^2 / B`` between samples. Of dense logits the
    products are means over the pixels: classes go together in a pixel, samples pixel by pixel.

    Args:
        student, teacher: ``(B, K, ...)`` logits.

    Returns:
        Both scalars, classes first.
    """
    # Inside autocast the products would be rounded to bfloat16, and with them their small differences.
    with torch.autocast(student.device.type, enabled=False):
        p = torch.softmax(student.float() / temperature, dim=1)[..., None].flatten(2)
        q = torch.softmax(teacher.float() / temperature, dim=1)[..., None].flatten(2)
        pixels = p.shape[2:].numel()
        by_class, of_teacher = (x.transpose(0, 1).flatten(1) for x in (p, q))
        between_classes = _apart(by_class, of_teacher, pixels) / p.shape[1]
        between_samples = _apart(p.flatten(1), q.flatten(1), pixels) / p.shape[0]
    return between_classes, between_samples


def _apart(one: Tensor, other: Tensor, pixels: int) -> Tensor:
    """Squared distance of two Gram matrices of rows ``(n, ...)``, each a mean over ``pixels``."""
    return ((one @ one.T - other @ other.T) / pixels).square().sum()
