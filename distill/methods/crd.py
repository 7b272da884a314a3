"""Contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699)."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.datasets.target import CLASSIFICATION
from distill.methods.base import METHODS
from distill.methods.feature_based import FeatureMethod, FeatureOptions
from distill.training.features import Batch, FeatureStore

_TINY = 1e-7


@dataclass(frozen=True)
class CrdOptions(FeatureOptions):
    """``task_weight CE + contrast_weight L_CRD``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        student_layer, teacher_layer: dotted path of the feature; empty takes the embedding.
        task_weight: of CE.
        contrast_weight: of the contrastive loss.
        embedding: width of the space where features are compared.
        negatives: samples of other classes that each sample is told apart from, drawn with replacement; any other
            samples where these have no class.
        temperature: divides cosines.
        momentum: share of the old entry when a memory is brought up to date.
    """

    task_weight: float = 1.0
    contrast_weight: float = 0.8
    embedding: int = 128
    negatives: int = 4096
    temperature: float = 0.07
    momentum: float = 0.5


@METHODS.register("crd")
class ContrastiveDistillation(FeatureMethod):
    """The student's feature of a sample picks out the teacher's of the same sample among those of other classes."""

    name = "crd"
    Options: ClassVar[type] = CrdOptions

    def comparison(self, student_width: int, teacher_width: int) -> nn.Module:
        return ContrastiveMemory(student_width, teacher_width, self.lab.store, self.options)


class ContrastiveMemory(nn.Module):
    """Projections of both features and a memory of each for every training sample.

    The memories and the normalisers are buffers: they are saved with the projections, so that a killed
    run goes on with them.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    normalisers: Tensor
    classes: Tensor
    row: Tensor

    def __init__(self, student_width: int, teacher_width: int, store: FeatureStore, options: CrdOptions) -> None:
        super().__init__()
        self._options = options
        self.student = nn.Linear(student_width, options.embedding)
        self.teacher = nn.Linear(teacher_width, options.embedding)
        classes = self._classes(store)
        bound = 1 / math.sqrt(options.embedding / 3)
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, (2 * torch.rand(len(classes), options.embedding) - 1) * bound)
        self.register_buffer("normalisers", torch.zeros(2))
        row = torch.full((len(store.dataset),), -1)
        row[torch.from_numpy(store.splits["train"])] = torch.arange(len(classes))
        self.register_buffer("classes", classes, persistent=False)
        self.register_buffer("row", row, persistent=False)

    @staticmethod
    def _classes(store: FeatureStore) -> Tensor:
        """``(training samples,)``; where samples have no class, each is one of its own."""
        if store.dataset.task == CLASSIFICATION:
            return store.target("train")
        return torch.arange(len(store.splits["train"]))

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> dict[str, Tensor]:
        # Every process keeps the same memories: it sees the features of all.
        student, teacher = batch.gather(student), batch.gather(teacher)
        rows = self.row[batch.gather(batch.ids).to(student.device)]
        # Inside autocast the products would be rounded to bfloat16, and then exponentiated.
        with torch.autocast(student.device.type, enabled=False):
            u = functional.normalize(self.student(student), dim=1)
            v = functional.normalize(self.teacher(teacher), dim=1)
            chosen = torch.cat([rows[:, None], self.draw_negatives(rows)], dim=1)
            scores = torch.stack(
                [self._scores(u, self.teacher_memory, chosen), self._scores(v, self.student_memory, chosen)]
            )
            # Both normalisers are set by the first batch and stay.
            count = len(self.classes)
            first = scores.detach().mean(dim=(1, 2)) * count
            self.normalisers = torch.where(self.normalisers > 0, self.normalisers, first)
            losses = contrast(scores / self.normalisers[:, None, None], count)
            self.student_memory = self._updated(self.student_memory, rows, u)
            self.teacher_memory = self._updated(self.teacher_memory, rows, v)
        return {"contrast": losses.sum()}

    def draw_negatives(self, rows: Tensor) -> Tensor:
        """``(B, negatives)`` rows of training samples of other classes than those in ``rows``, ``(B,)``."""
        others = self.classes[rows][:, None] != self.classes
        # Seeded by the batch, whose order the session's seed decides: every process draws the same.
        generator = torch.Generator(rows.device).manual_seed(zlib.crc32(rows.cpu().numpy().tobytes()))
        return torch.multinomial(others.float(), self._options.negatives, replacement=True, generator=generator)

    def _scores(self, anchors: Tensor, memory: Tensor, chosen: Tensor) -> Tensor:
        """``(B, 1 + negatives)`` exponentiated similarities of anchors ``(B, d)`` with rows of a memory."""
        # All rows at once: gathering (B, 1 + negatives, d) first would take far more memory.
        return (anchors @ memory.T / self._options.temperature).exp().gather(1, chosen)

    @torch.no_grad()
    def _updated(self, memory: Tensor, rows: Tensor, embedded: Tensor) -> Tensor:
        share = self._options.momentum
        entries = functional.normalize(share * memory[rows] + (1 - share) * embedded.float(), dim=1)
        # A new tensor: the loss of this batch still needs the old one for its gradient.
        return memory.index_copy(0, rows, entries)


def contrast(scores: Tensor, samples: int) -> Tensor:
    """Noise-contrastive loss (eq. 18 of the paper, with the epsilon of its authors' code).

    ``-log(h_0 / (h_0 + m/N)) - sum_j log((m/N) / (h_j + m/N))``, averaged over the batch.

    Args:
        scores: ``(..., B, 1 + m)`` normalised scores h, the positive first. samples: N, training samples.

    Returns:
        ``(...)`` losses.
    """
    noise = (scores.shape[-1] - 1) / samples
    positive, negative = scores[..., 0], scores[..., 1:]
    found = (positive / (positive + noise + _TINY)).log()
    rejected = (noise / (negative + noise + _TINY)).log().sum(dim=-1)
    return -(found + rejected).mean(dim=-1)
