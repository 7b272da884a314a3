"""A task owns its loss, its metrics and the reduction of knowledge distillation."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from mst_edge.core.errors import unknown_name


class Task(ABC):
    """What a model is asked to do.

    Attributes:
        num_outputs: width of the network's output.
        class_weights: ``(outputs,)`` weights of the training loss, or None.
    """

    num_outputs: int
    class_weights: Tensor | None = None

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Training loss, a scalar: mean over the batch."""

    @abstractmethod
    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """``(batch,)`` loss of each sample, unweighted."""

    @abstractmethod
    def sample_kd(self, learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """``(batch,)`` distillation divergence of each sample; gradients flow into both sides."""

    @abstractmethod
    def metrics(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        """Metrics over a whole split. ``error`` and ``loss`` are always there, lower is better in both."""

    def kd(self, learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean of ``sample_kd`` over the batch."""
        return self.sample_kd(learner, teacher, temperature).mean()


class Classification(Task):
    """One of ``num_outputs`` classes per sample.

    Args:
        class_weights: ``(classes,)`` weights of the training loss, mean 1 over training samples; None
            weighs every sample alike.
    """

    def __init__(self, num_outputs: int, class_weights: Tensor | None = None) -> None:
        self.num_outputs = num_outputs
        self.class_weights = class_weights

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
        log_learner = functional.log_softmax(learner.float() / temperature, dim=1)
        log_teacher = functional.log_softmax(teacher.float() / temperature, dim=1)
        divergence = (log_teacher.exp() * (log_teacher - log_learner)).sum(dim=1)
        return temperature**2 * divergence

    def metrics(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        predicted = logits.argmax(dim=1)
        recalls = [
            (predicted[target == label] == label).float().mean()
            for label in range(self.num_outputs)
            if bool((target == label).any())
        ]
        accuracy = float((predicted == target).float().mean())
        return {
            "accuracy": accuracy,
            "error": 1.0 - accuracy,
            "balanced_accuracy": float(torch.stack(recalls).mean()),
            "loss": float(self.sample_loss(logits, target).mean()),
        }


_TASKS = {"classification": Classification}


def make_task(name: str, num_outputs: int, class_weights: Tensor | None = None) -> Task:
    """The task called ``name``."""
    if name not in _TASKS:
        raise unknown_name("task", name, _TASKS, where="task")
    return _TASKS[name](num_outputs, class_weights)


def balanced_class_weights(counts: Tensor) -> Tensor:
    """``(classes,)`` weights inverse to the class counts, scaled to mean 1 over the samples counted."""
    values = torch.as_tensor(counts, dtype=torch.float32)
    return values.sum() / (len(values) * values)
