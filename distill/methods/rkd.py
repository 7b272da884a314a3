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


@dataclass(frozen=True)
class RkdOptions(FeatureOptions):
    """``task_weight CE + distance_weight L_D + angle_weight L_A``; the paper's weights for classification.

    Attributes:
        teacher: ``multimodal``, or the modality that a cross-modal teacher reads.
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
        some = self._angle_samples
        return {
            "distance": functional.smooth_l1_loss(distances(student), distances(teacher)),
            "angle": functional.smooth_l1_loss(angles(student[:some]), angles(teacher[:some])),
        }


def distances(features: Tensor) -> Tensor:
    """``(B, B)`` Euclidean distances of ``(B, d)`` features, divided by their mean over distinct pairs (eq. 5)."""
    apart = _differences(features).square().sum(dim=2).clamp_min(1e-12).sqrt()
    apart = apart * (1 - torch.eye(len(features), device=features.device))
    return apart / apart.sum().clamp_min(1e-12) * (len(features) * (len(features) - 1))


def angles(features: Tensor) -> Tensor:
    """``(B, B, B)`` cosines: entry ``[j, i, k]`` is that of the angle at sample j between samples i and k (eq. 7)."""
    # Inside autocast the products would be rounded to bfloat16.
    with torch.autocast(features.device.type, enabled=False):
        directions = functional.normalize(_differences(features.float()), dim=2)
        return directions @ directions.transpose(1, 2)


def _differences(features: Tensor) -> Tensor:
    """``(B, B, d)``: entry ``[j, i]`` leads from sample j to sample i."""
    return features[None] - features[:, None]
