"""Relational knowledge distillation (Park and others, CVPR 2019, arXiv 1904.05068)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.methods.base import METHODS
from distill.methods.feature_based import FeatureMethod, FeatureOptions
from distill.training.features import Batch

_TINY = 1e-12


@dataclass(frozen=True)
class RkdOptions(FeatureOptions):
    """``task_weight CE + distance_weight L_D + angle_weight L_A``; the paper's weights for classification.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        student_layer, teacher_layer: dotted path of the feature; empty takes the embedding.
        task_weight: of CE.
        distance_weight, angle_weight: of the two relations.
        angle_samples: how many samples of a batch form triplets; their number grows with its cube.
    """

    task_weight: float = 1.0
    distance_weight: float = 25.0
    angle_weight: float = 50.0
    angle_samples: int = 64


@METHODS.register("rkd")
class RelationalDistillation(FeatureMethod):
    """The student's features lie to one another as the teacher's do: same distances and angles, up to scale."""

    name = "rkd"
    Options: ClassVar[type] = RkdOptions

    def comparison(self, student_width: int, teacher_width: int) -> nn.Module:
        return Relations(self.options.angle_samples)


class Relations(nn.Module):
    """Both relational losses; the widths of the two features may differ."""

    def __init__(self, angle_samples: int) -> None:
        super().__init__()
        self._angle_samples = angle_samples

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> dict[str, Tensor]:
        student, teacher, some = batch.gather(student), batch.gather(teacher), self._angle_samples
        return {
            "distance": functional.smooth_l1_loss(distances(student), distances(teacher)),
            "angle": functional.smooth_l1_loss(angles(student[:some]), angles(teacher[:some])),
        }


def distances(features: Tensor) -> Tensor:
    """``(B, B)`` Euclidean distances of ``(B, d)`` features, divided by their mean over distinct pairs (eq. 5)."""
    count = len(features)
    apart = _squared_distances(_gram(features)).clamp_min(_TINY).sqrt()
    apart = apart * (1 - torch.eye(count, device=features.device))
    return apart / apart.sum() * (count * (count - 1))


def angles(features: Tensor) -> Tensor:
    """``(B, B, B)`` cosines of ``(B, d)`` features (eq. 7): entry ``[j, i, k]`` is that of the angle at j from i to k.

    0 where two of the three coincide: there is no angle.
    """
    gram = _gram(features)
    squared = _squared_distances(gram)
    # Below this the rounding of the products is larger than the distance.
    smallest = (1e-5 * squared.mean()).clamp_min(_TINY)
    lengths, apart = squared.clamp_min(smallest).sqrt(), squared > smallest
    # (f_i - f_j)(f_k - f_j) without a tensor of all differences: B^3 numbers instead of B^2 d.
    products = gram[None] - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
    cosines = products / (lengths[:, :, None] * lengths[:, None, :])
    return cosines * (apart[:, :, None] & apart[:, None, :])


def _gram(features: Tensor) -> Tensor:
    """``(B, B)`` inner products about the batch's mean, which no relation depends on."""
    centred = features - features.mean(dim=0)
    # Inside autocast the products would be rounded to bfloat16.
    with torch.autocast(features.device.type, enabled=False):
        return centred @ centred.T


def _squared_distances(gram: Tensor) -> Tensor:
    return gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
