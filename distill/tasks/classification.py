"""One class per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.router import EvidenceRouter, LinearRouter, UniformRouter
from distill.tasks.base import Meter, Task
from mst_edge.core.scoring import OutputSpec


class Classification(Task):
    """One of ``num_outputs`` classes per sample; logits ``(B, classes)``, targets ``(B,)``.

    Args:
        class_weights: ``(classes,)`` weights of the training loss, mean 1 over training samples; None
            weighs every sample alike.
        names: of the classes; their numbers where not given.
    """

    certainty = ("confidence", "gives the right class {:.0%} probability")
    routers: ClassVar[Mapping[str, type[nn.Module]]] = {
        "linear": LinearRouter,
        "evidence": EvidenceRouter,
        "mean": UniformRouter,
    }

    def __init__(self, num_outputs: int, class_weights: Tensor | None = None, names: Sequence[str] = ()) -> None:
        classes = tuple(names or map(str, range(num_outputs)))
        super().__init__(OutputSpec("classification", classes), class_weights)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        # A weighted mean over the batch, not torch's sum(w * l) / sum(w): the latter cancels the weights
        # of a batch that happens to hold one class.
        losses = functional.cross_entropy(logits.float(), target, weight=weights, reduction="none")
        return losses.mean()

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), target, reduction="none")

    def sample_kd(self, learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """tau^2 KL(softmax(teacher / tau) || softmax(learner / tau)) (Hinton and others, arXiv 1503.02531)."""
        return divergence(learner, teacher, temperature)

    def ensemble(self, teachers: Tensor, weights: Tensor, temperature: float) -> Tensor:
        return mean_of_probabilities(teachers, weights, temperature)

    def meter(self) -> Meter:
        return _ClassMeter(self)


def divergence(learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``tau^2 KL(softmax(teacher / tau) || softmax(learner / tau))`` over axis 1 of ``(B, C, ...)``: ``(B, ...)``."""
    log_learner = functional.log_softmax(learner.float() / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_learner)).sum(dim=1)


def mean_of_probabilities(teachers: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """``tau log sum_k w_k softmax(z_k / tau)`` of ``(B, n, C, ...)`` logits and ``(n,)`` weights: ``(B, C, ...)``."""
    each = functional.log_softmax(teachers.float() / temperature, dim=2)
    shares = weights.log().reshape(1, -1, *([1] * (teachers.ndim - 2)))
    return temperature * (each + shares).logsumexp(dim=1)


class _ClassMeter:
    """Per class how many samples there were and how many were right, and the sum of losses."""

    def __init__(self, task: Classification) -> None:
        self._task = task
        self._samples = torch.zeros(task.num_outputs, dtype=torch.int64)
        self._right = torch.zeros(task.num_outputs, dtype=torch.int64)
        self._loss = self._confidence = 0.0

    def add(self, logits: Tensor, target: Tensor) -> None:
        classes = self._task.num_outputs
        right = target[logits.argmax(dim=1) == target]
        self._samples += torch.bincount(target, minlength=classes).cpu()
        self._right += torch.bincount(right, minlength=classes).cpu()
        losses = self._task.sample_loss(logits, target)
        self._loss += float(losses.sum(dtype=torch.float64))
        self._confidence += float((-losses).exp().sum(dtype=torch.float64))

    def result(self) -> dict[str, float]:
        total, present = int(self._samples.sum()), self._samples > 0
        accuracy = int(self._right.sum()) / total
        return {
            "accuracy": accuracy,
            "error": 1.0 - accuracy,
            "balanced_accuracy": float((self._right[present] / self._samples[present]).mean()),
            "confidence": self._confidence / total,
            "loss": self._loss / total,
        }
