"""C2KD: customised cross-modal distillation (Huo and others, CVPR 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.datasets.target import CLASSIFICATION
from distill.methods.base import METHODS, Workload
from distill.methods.feature_based import FeatureOptions
from distill.methods.single_teacher import SingleTeacher
from distill.networks.registry import Model
from distill.taps import Tap, embedding_tap, pooled
from distill.tasks import Task
from distill.training.features import Batch


@dataclass(frozen=True)
class C2kdOptions(FeatureOptions):
    """``task_weight (CE + CE) + proxies_weight (four KL) + nontarget_weight (two KL)``, all at temperature 1.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        student_layer, teacher_layer: dotted path of the feature that a proxy reads; empty takes the embedding.
        task_weight: of the task loss of student and teacher.
        proxies_weight: of what each network and its proxy learn from one another.
        nontarget_weight: of what the proxies learn from one another.
        threshold: a sample counts for the proxies where the rank correlation of their logits, in [-1, 1],
            is above it.
    """

    task_weight: float = 1.0
    proxies_weight: float = 1.0
    nontarget_weight: float = 1.0
    threshold: float = 0.0


@METHODS.register("c2kd")
class CustomisedCrossModal(SingleTeacher):
    """Student and teacher each have a proxy; the proxies learn from one another where they rank classes alike.

    The teacher starts from its lone-trained weights and learns along; teacher and proxies are dropped
    after training.
    """

    name = "c2kd"
    tasks = (CLASSIFICATION,)
    Options: ClassVar[type] = C2kdOptions

    def check(self) -> None:
        super().check()
        self._taps(self.lab.new_student(), self.lab.new_teacher(self.teacher))

    def workload(self) -> list[Workload]:
        return [
            *self.lone_teacher_work(),
            Workload(self.name, self.lab.epochs.student, trained=["student", self.teacher]),
        ]

    def train(self) -> Model:
        lab, options = self.lab, self.options
        student, teacher = lab.new_student(), lab.learning_teacher(self.teacher)
        student_tap, teacher_tap = self._taps(student, teacher)
        self.seed_helpers()
        student_proxy = proxy_head(student_tap.widths[0], lab.task.num_outputs)
        teacher_proxy = proxy_head(teacher_tap.widths[0], lab.task.num_outputs)

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            z_student, (of_student,) = student_tap(batch.inputs)
            z_teacher, (of_teacher,) = teacher_tap(batch.inputs)
            q_student, q_teacher = student_proxy(pooled(of_student)), teacher_proxy(pooled(of_teacher))
            nontarget, selected = between_proxies(lab.task, q_student, q_teacher, batch.target, options.threshold)
            losses = {
                "task": lab.task.loss(z_student, batch.target) + lab.task.loss(z_teacher, batch.target),
                "proxies": both_ways(lab.task, z_student, q_student) + both_ways(lab.task, z_teacher, q_teacher),
                "nontarget": nontarget,
            }
            return {**self.weighted(losses), "selected": selected}

        helpers = {"teacher": teacher.module, "student_proxy": student_proxy, "teacher_proxy": teacher_proxy}
        self.teach(student, step, helpers, teacher.reads)
        return student

    def _taps(self, student: Model, teacher: Model) -> tuple[Tap, Tap]:
        """Where the proxies read."""
        options = self.options
        return (
            embedding_tap(self.lab, student, options.student_layer, where="distill.options.student_layer"),
            embedding_tap(self.lab, teacher, options.teacher_layer, where="distill.options.teacher_layer"),
        )


def proxy_head(width: int, outputs: int) -> nn.Sequential:
    """Logits from a feature ``(B, width)``."""
    head = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.1), nn.Linear(width, outputs))
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return head


def both_ways(task: Task, network: Tensor, proxy: Tensor) -> Tensor:
    """``KL(sg p_network || p_proxy) + KL(sg p_proxy || p_network)``, means over the batch; logits ``(B, K)``."""
    return task.kd(proxy, network.detach(), 1.0) + task.kd(network, proxy.detach(), 1.0)


def between_proxies(
    task: Task, student: Tensor, teacher: Tensor, target: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Non-target distillation both ways, over the selected samples; each side's own target is a constant.

    A sample is selected where Kendall's tau-b between both proxies' logits is above ``threshold``. The
    target class is removed from both sides before the softmax (the authors' code sets its logit to 0, which
    leaves it a probability that depends on the scale of the others). The mean is over the whole batch, so
    the term shrinks as samples are rejected.

    Args:
        student, teacher: ``(B, K)`` logits of the proxies. target: ``(B,)`` classes.

    Returns:
        The loss, and the selected share of the batch.
    """
    selected = (kendall_tau_b(student.detach(), teacher.detach()) > threshold).float()
    of_student, of_teacher = without_target(student, target), without_target(teacher, target)
    divergence = task.sample_kd(of_student, of_teacher.detach(), 1.0) + task.sample_kd(
        of_teacher, of_student.detach(), 1.0
    )
    return (selected * divergence).mean(), selected.mean()


def without_target(logits: Tensor, target: Tensor) -> Tensor:
    """``(B, K - 1)``: the logits of every class but the sample's own."""
    others = functional.one_hot(target, logits.shape[1]) == 0
    return logits[others].reshape(len(logits), -1)


def kendall_tau_b(one: Tensor, other: Tensor) -> Tensor:
    """``(B,)`` Kendall rank correlation of two ``(B, K)``, row by row, corrected for ties (tau-b).

    ``(concordant - discordant) / sqrt(pairs not tied in one * pairs not tied in the other)``; 0 where
    all values of a row are tied.
    """
    first, second = torch.triu_indices(one.shape[1], one.shape[1], offset=1, device=one.device)
    order_one = torch.sign(one[:, first] - one[:, second]).float()
    order_other = torch.sign(other[:, first] - other[:, second]).float()
    untied = order_one.abs().sum(dim=1) * order_other.abs().sum(dim=1)
    return (order_one * order_other).sum(dim=1) / untied.sqrt().clamp_min(1e-8)
