"""Routing: which specialised teachers each sample listens to."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

_EPSILON = 1e-8


class _Published(nn.Module):
    """Layers on the student's logits; the teachers' are not looked at."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """``(B, C, ...)`` student logits and ``(B, W, C, ...)`` teacher logits to weights ``(B, W)`` that sum to 1."""
        return torch.softmax(self.layers(student), dim=1)


class LinearRouter(_Published):
    """The published router of logits ``(B, C)``: two linear layers without a nonlinearity."""

    def __init__(self, outputs: int, teachers: int) -> None:
        super().__init__(nn.Linear(outputs, 2 * outputs), nn.Linear(2 * outputs, teachers))


class MapRouter(_Published):
    """The published router of dense logits ``(B, C, H, W)``."""

    def __init__(self, outputs: int, teachers: int) -> None:
        wide = 2 * outputs
        super().__init__(
            nn.Conv2d(outputs, wide, 1),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, stride=2, padding=1, groups=wide),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(wide, teachers),
        )


class _Scorer(nn.Module, ABC):
    """A router that sees what it decides about: the student's and every teacher's answers.

    Teachers share one scoring network, so that it learns what a helpful answer looks like, and each
    has a bias of its own. It reads no gradient into student or teachers.
    """

    def __init__(self, evidence: int, teachers: int, hidden: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(evidence, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.bias = nn.Parameter(torch.zeros(teachers))

    @abstractmethod
    def evidence(self, student: Tensor, teachers: Tensor) -> Tensor:
        """``(B, C, ...)`` and ``(B, W, C, ...)`` logits, without gradient, to ``(B, W, evidence)``."""

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """``(B, C, ...)`` student logits and ``(B, W, C, ...)`` teacher logits to weights ``(B, W)`` that sum to 1."""
        evidence = self.evidence(student.detach().float(), teachers.detach().float())
        return torch.softmax(self.score(evidence).squeeze(2) + self.bias, dim=1)


class EvidenceRouter(_Scorer):
    """Evidence of classes: both sides' probabilities, the teacher's entropy, and the chance that both agree.

    Of dense logits it sees the means over all pixels.
    """

    def __init__(self, outputs: int, teachers: int, hidden: int = 32) -> None:
        super().__init__(2 * outputs + 2, teachers, hidden)

    def evidence(self, student: Tensor, teachers: Tensor) -> Tensor:
        p_student = torch.softmax(student, dim=1)[:, None].expand_as(teachers)
        p_teacher = torch.softmax(teachers, dim=2)
        entropy = -(p_teacher * (p_teacher + _EPSILON).log()).sum(dim=2, keepdim=True)
        agreement = (p_teacher * p_student).sum(dim=2, keepdim=True)
        evidence = torch.cat([p_student, p_teacher, entropy, agreement], dim=2)
        return evidence.flatten(3).mean(dim=3) if evidence.ndim > 3 else evidence


class NumberRouter(_Scorer):
    """Evidence of numbers: both sides' answers, and how far the teacher is from the student and from the other
    teachers' mean. A number alone says nothing of how sure its teacher is."""

    def __init__(self, outputs: int, teachers: int, hidden: int = 32) -> None:
        super().__init__(4 * outputs, teachers, hidden)

    def evidence(self, student: Tensor, teachers: Tensor) -> Tensor:
        z_student = student[:, None].expand_as(teachers)
        others = (teachers.sum(dim=1, keepdim=True) - teachers) / max(1, teachers.shape[1] - 1)
        return torch.cat([z_student, teachers, (teachers - z_student).abs(), (teachers - others).abs()], dim=2)


class UniformRouter(nn.Module):
    """No router: every teacher counts alike. Takes the arguments of the others; learns nothing."""

    def __init__(self, outputs: int, teachers: int) -> None:
        super().__init__()

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """Weights ``(B, W)`` of 1/W, whatever ``(B, C, ...)`` and ``(B, W, C, ...)`` logits say."""
        return student.new_full(teachers.shape[:2], 1.0 / teachers.shape[1])


def balance_loss(weights: Tensor) -> Tensor:
    """(1/W) sum_i u (log u - log mean_b g_bi) with u = 1/W: how far the mean use is from even use."""
    teachers = weights.shape[1]
    mean = weights.mean(dim=0)
    uniform = 1.0 / teachers
    return (uniform * (torch.log(torch.tensor(uniform)) - torch.log(mean + _EPSILON))).sum() / teachers


def top_k(weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest weights per sample, renormalised to sum 1, and their teachers; both ``(B, k)``."""
    values, chosen = weights.topk(k, dim=1)
    return values / values.sum(dim=1, keepdim=True), chosen
