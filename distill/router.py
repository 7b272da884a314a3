"""Routing: which specialised teachers each sample listens to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-8


class LinearRouter(nn.Module):
    """The published router: two linear layers without a nonlinearity on the student's logits."""

    def __init__(self, outputs: int, teachers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(outputs, 2 * outputs), nn.Linear(2 * outputs, teachers))

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """``(B, C)`` student logits and ``(B, W, C)`` teacher logits to weights ``(B, W)`` that sum to 1."""
        return torch.softmax(self.layers(student), dim=1)


class EvidenceRouter(nn.Module):
    """A router that sees what it decides about: the student's and every teacher's probabilities.

    Teachers share one scoring network, so that it learns what a helpful answer looks like, and each
    has a bias of its own. It reads no gradient into student or teachers.
    """

    def __init__(self, outputs: int, teachers: int, hidden: int = 32) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(2 * outputs + 2, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.bias = nn.Parameter(torch.zeros(teachers))

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """``(B, C)`` student logits and ``(B, W, C)`` teacher logits to weights ``(B, W)`` that sum to 1."""
        p_student = torch.softmax(student.detach().float(), dim=1)[:, None].expand_as(teachers)
        p_teacher = torch.softmax(teachers.detach().float(), dim=2)
        entropy = -(p_teacher * (p_teacher + _EPSILON).log()).sum(dim=2, keepdim=True)
        agreement = (p_teacher * p_student).sum(dim=2, keepdim=True)
        evidence = torch.cat([p_student, p_teacher, entropy, agreement], dim=2)
        return torch.softmax(self.score(evidence).squeeze(2) + self.bias, dim=1)


class UniformRouter(nn.Module):
    """No router: every teacher counts alike. Takes the arguments of the others; learns nothing."""

    def __init__(self, outputs: int, teachers: int) -> None:
        super().__init__()

    def forward(self, student: Tensor, teachers: Tensor) -> Tensor:
        """``(B, C)`` student logits and ``(B, W, C)`` teacher logits to weights ``(B, W)`` of 1/W."""
        return teachers.new_full(teachers.shape[:2], 1.0 / teachers.shape[1])


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
