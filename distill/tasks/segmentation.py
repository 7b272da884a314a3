"""One class per pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.router import EvidenceRouter, MapRouter, UniformRouter
from distill.tasks.base import Meter, Task
from distill.tasks.classification import divergence, mean_of_probabilities
from mst_edge.core.scoring import OutputSpec, count_pairs, mean_iou, overlap

_NOTHING = -100  # class number that torch's cross entropy leaves out


class Segmentation(Task):
    """One of ``num_outputs`` classes per pixel; logits ``(B, classes, H, W)``, targets ``(B, H, W)``.

    Pixels whose target is ``ignore_label`` count neither in a loss nor in a metric. They do count in
    distillation: what a teacher says there needs no label (and the published method masks nothing either).

    Args:
        map_size: height and width.
        class_weights: ``(classes,)`` weights of the training loss, mean 1 over labelled training pixels.
        ignore_label: class number of pixels without a label; among the classes, or beyond them.
    """

    certainty = ("confidence", "gives the right class {:.0%} probability")
    routers: ClassVar[Mapping[str, type[nn.Module]]] = {
        "linear": MapRouter,
        "evidence": EvidenceRouter,
        "mean": UniformRouter,
    }

    def __init__(
        self,
        num_outputs: int,
        map_size: tuple[int, int],
        class_weights: Tensor | None = None,
        ignore_label: int | None = None,
        names: Sequence[str] = (),
    ) -> None:
        classes = tuple(names or map(str, range(num_outputs)))
        super().__init__(OutputSpec("segmentation", classes, ignore_label=ignore_label), class_weights)
        self.map_size = map_size

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the batch's labelled pixels, each weighted by its class; 0 where none is labelled."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        losses, labelled = self._pixel_losses(logits, target, weights)
        return losses.sum() / labelled.sum().clamp_min(1)

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over each sample's labelled pixels; 0 for a sample without any."""
        losses, labelled = self._pixel_losses(logits, target, None)
        return losses.flatten(1).sum(dim=1) / labelled.flatten(1).sum(dim=1).clamp_min(1)

    def _pixel_losses(self, logits: Tensor, target: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(B, H, W)`` cross entropies, 0 where not labelled, and which pixels are."""
        ignored = self.output.ignore_label
        labelled = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
        known = torch.where(labelled, target, _NOTHING)
        losses = functional.cross_entropy(
            logits.float(), known, weight=weights, reduction="none", ignore_index=_NOTHING
        )
        return losses, labelled

    def sample_kd(self, learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean over all pixels of tau^2 KL(softmax(teacher / tau) || softmax(learner / tau))."""
        return divergence(learner, teacher, temperature).flatten(1).mean(dim=1)

    def ensemble(self, teachers: Tensor, weights: Tensor, temperature: float) -> Tensor:
        return mean_of_probabilities(teachers, weights, temperature)

    def meter(self) -> Meter:
        return _PixelMeter(self)


class _PixelMeter:
    """A running confusion matrix of labelled pixels, rows true, and the sum of their losses.

    It takes ``classes^2`` numbers, however many pixels there are.
    """

    def __init__(self, task: Segmentation) -> None:
        self._task = task
        self._confusion = np.zeros((task.num_outputs, task.num_outputs), dtype=np.int64)
        self._counted = np.array([k for k in range(task.num_outputs) if k != task.output.ignore_label])
        self._loss = self._confidence = 0.0

    def add(self, logits: Tensor, target: Tensor) -> None:
        losses, labelled = self._task._pixel_losses(logits, target, None)
        self._loss += float(losses.sum(dtype=torch.float64))
        self._confidence += float((-losses[labelled]).exp().sum(dtype=torch.float64))
        true, said = target[labelled], logits.argmax(dim=1)[labelled]
        self._confusion += count_pairs(true.cpu().numpy(), said.cpu().numpy(), self._task.num_outputs)

    def result(self) -> dict[str, float]:
        pixels = max(1, int(self._confusion.sum()))
        per_class = self._confusion.sum(axis=1)
        present = per_class > 0
        recalls = np.diagonal(self._confusion)[present] / per_class[present]
        miou = float(mean_iou(overlap(self._confusion, self._counted).astype(np.float64)))
        return {
            "miou": miou,
            "error": 1.0 - miou,
            "pixel_accuracy": float(np.trace(self._confusion)) / pixels,
            "mean_recall": float(recalls.mean()) if present.any() else 0.0,
            "confidence": self._confidence / pixels,
            "loss": self._loss / pixels,
        }
