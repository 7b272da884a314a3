"""TransKD for semantic segmentation (Liu and others, arXiv 2202.13393): stage maps and patch embeddings.

The variant of its authors called Base. Its code's selective fusion is a ReviewKD (Chen and others, arXiv 2104.09044)
whose attention is that of selective kernels (Li and others, arXiv 1903.06586).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.datasets.target import SEGMENTATION
from distill.methods.base import METHODS
from distill.methods.single_teacher import TeacherOptions
from distill.methods.tapped import Comparison, TappedMethod
from distill.networks.registry import Model
from distill.taps import Tap
from distill.training.features import Batch
from mst_edge.core.errors import UserError

_OPTIONS = "distill.options"
_MARKED = {"stages": "stage_maps", "embeddings": "patch_embeddings"}  # attributes of networks
_POOLED = (4, 2, 1)
_LEAST_SQUEEZED = 32


@dataclass(frozen=True)
class TransKdOptions(TeacherOptions):
    """``task_weight CE + stages_weight HCL(CSF(student), teacher) + embeddings_weight sum_i w_i MSE(P_i e_i, t_i)``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        student_stages, teacher_stages: dotted paths of stage maps, the largest first, pair by pair; empty takes the
            deepest that the networks name in ``stage_maps``, as many as there are weights for embeddings.
        student_embeddings, teacher_embeddings: of what these stages begin with; empty takes ``patch_embeddings``.
        task_weight: of the labels.
        stages_weight: of the stage maps.
        embeddings_weight: of the patch embeddings, times ``embedding_weights``.
        embedding_weights: of each pair; where the networks have fewer stages, the last ones.
        width: channels in which the student's stages are fused.
    """

    student_stages: Sequence[str] = ()
    teacher_stages: Sequence[str] = ()
    student_embeddings: Sequence[str] = ()
    teacher_embeddings: Sequence[str] = ()
    task_weight: float = 1.0
    stages_weight: float = 1.0
    embeddings_weight: float = 1.0
    embedding_weights: Sequence[float] = (0.1, 0.1, 0.5, 1.0)
    width: int = 64


@METHODS.register("transkd")
class TransKd(TappedMethod):
    """The student's stages, fused from the deepest up, resemble the teacher's; so does what each stage begins with."""

    name = "transkd"
    tasks = (SEGMENTATION,)
    Options: ClassVar[type] = TransKdOptions

    def taps(self, student: Model, teacher: Model) -> tuple[Tap, Tap]:
        shapes = self.lab.store.shapes
        layers = {
            (side, kind): getattr(self.options, f"{side}_{kind}") or self._marked(model, side, kind)
            for side, model in (("student", student), ("teacher", teacher))
            for kind in ("stages", "embeddings")
        }
        count = self._pairs(layers)
        found = [
            Tap(
                model,
                [*layers[side, "stages"][-count:], *layers[side, "embeddings"][-count:]],
                shapes,
                where=f"{_OPTIONS}.{side}_stages",
            )
            for side, model in (("student", student), ("teacher", teacher))
        ]
        for tap in found:
            _require_maps(tap)
        return found[0], found[1]

    def _pairs(self, layers: Mapping[tuple[str, str], Sequence[str]]) -> int:
        """How many stages are compared: as many as the shortest list has.

        Raises:
            UserError: a list of the options is longer, or there are too few weights.
        """
        count = min(map(len, layers.values()))
        if count > len(self.options.embedding_weights):
            raise UserError(
                f"{len(self.options.embedding_weights)} weights for {count} pairs of embeddings",
                where=f"{_OPTIONS}.embedding_weights",
                fix="give one per pair",
            )
        for (side, kind), paths in layers.items():
            if getattr(self.options, f"{side}_{kind}") and len(paths) != count:
                raise UserError(
                    f"{len(paths)} {kind} of the {side}, but {count} of {_fewest(layers)}",
                    where=f"{_OPTIONS}.{side}_{kind}",
                    fix="name as many stages as embeddings, and as many of the student as of the teacher",
                )
        return count

    def _marked(self, model: Model, side: str, kind: str) -> tuple[str, ...]:
        """What the network itself calls its stages or their embeddings, as many as there are weights."""
        said = getattr(model.module, _MARKED[kind], ())
        if isinstance(said, Mapping):
            said = said.get(self.lab.student_modality, next(iter(said.values())))
        if not said:
            raise UserError(
                f"network {model.network!r} of {model.name} names no {kind}",
                where=f"{_OPTIONS}.{side}_{kind}",
                fix="name them by dotted path, the largest map first",
            )
        return tuple(said)[-len(self.options.embedding_weights) :]

    def comparison(self, student: Tap, teacher: Tap) -> Comparison:
        return StageComparison(student.feature_shapes, teacher.feature_shapes, self.options)


def _fewest(layers: Mapping[tuple[str, str], Sequence[str]]) -> str:
    side, kind = min(layers, key=lambda key: len(layers[key]))
    return f"the {side}'s {kind}"


def _require_maps(tap: Tap) -> None:
    for layer, shape in zip(tap.layers, tap.feature_shapes, strict=True):
        if len(shape) != 3:
            raise UserError(
                f"layer {layer} of {tap.model.name} gives {shape} per sample, not (channels, height, width)",
                where=_OPTIONS,
                fix="name layers that give maps",
            )


class StageComparison(Comparison):
    """Cross selective fusion of the student's stages and projections of its embeddings, against the teacher's.

    Args:
        student, teacher: shapes ``(C, H, W)`` of the stages, the largest first, then of the embeddings.
    """

    def __init__(
        self, student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]], options: TransKdOptions
    ) -> None:
        super().__init__()
        self._count = len(student) // 2
        self._weights = tuple(options.embedding_weights)[-self._count :]
        stages = [(own[0], wanted) for own, wanted in zip(student, teacher, strict=True)][: self._count]
        self.fusion = CrossSelectiveFusion([c for c, _ in stages], [shape for _, shape in stages], options.width)
        pairs = list(zip(student, teacher, strict=True))[self._count :]
        self.projections = nn.ModuleList(nn.Conv2d(own[0], wanted[0], 1) for own, wanted in pairs)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        stages, embeddings = student[: self._count], student[self._count :]
        fused = self.fusion(stages)
        apart = [hierarchical_distance(own, wanted) for own, wanted in zip(fused, teacher, strict=False)]
        aligned = [
            weight * functional.mse_loss(_sized(project(own).float(), wanted.shape[2:]), wanted)
            for weight, project, own, wanted in zip(
                self._weights, self.projections, embeddings, teacher[self._count :], strict=True
            )
        ]
        return {"stages": torch.stack(apart).sum(), "embeddings": torch.stack(aligned).sum()}


class CrossSelectiveFusion(nn.Module):
    """From the deepest stage up: each one's map and what was fused below it, weighed channel by channel.

    ``x_i = conv1x1(f_i)``; ``u_i = a x_i + (1 - a) resize(u_{i+1})`` with ``a`` from the mean of their sum over the
    positions; ``conv3x3(u_i)`` has the teacher's channels.

    Args:
        channels: of the student's stages, the largest map first. wanted: the teacher's shapes ``(C, H, W)``.
        width: channels in between.
    """

    def __init__(self, channels: Sequence[int], wanted: Sequence[tuple[int, ...]], width: int) -> None:
        super().__init__()
        self._sizes = [tuple(shape[1:]) for shape in wanted]
        self.reduce = nn.ModuleList(_convolution(c, width, 1) for c in channels)
        self.select = nn.ModuleList(SelectiveSum(width) for _ in channels[1:])
        self.widen = nn.ModuleList(_convolution(width, shape[0], 3) for shape in wanted)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the teacher's shapes, the largest first."""
        reduced = [reduce(stage) for reduce, stage in zip(self.reduce, stages, strict=True)]
        fused = [reduced[-1]]
        for x, select in zip(reduced[-2::-1], reversed(self.select), strict=True):
            fused.append(select(x, _sized(fused[-1], x.shape[2:])))
        sized = (_sized(u, size) for u, size in zip(reversed(fused), self._sizes, strict=True))
        return [widen(u).float() for widen, u in zip(self.widen, sized, strict=True)]


class SelectiveSum(nn.Module):
    """Two maps ``(B, C, H, W)`` to their sum, each channel weighed by a softmax over the two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // 16, _LEAST_SQUEEZED)
        # The published batch norm between the two has one value per sample and channel: it fails on a batch of one.
        self.squeeze = nn.Sequential(
            nn.Linear(channels, squeezed, bias=False),
            nn.LayerNorm(squeezed),
            nn.ReLU(),
            nn.Linear(squeezed, 2 * channels),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scores = self.squeeze((x + y).mean(dim=(2, 3))).unflatten(1, (2, -1))
        of_x, of_y = scores.softmax(dim=1).unbind(dim=1)
        return of_x[:, :, None, None] * x + of_y[:, :, None, None] * y


def _convolution(c_in: int, c_out: int, side: int) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, side, padding=side // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_out))


def _sized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Of height and width ``size``, by the nearest position."""
    return x if tuple(x.shape[2:]) == tuple(size) else functional.interpolate(x, tuple(size))


def hierarchical_distance(own: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of two maps ``(B, C, H, W)`` and of their means over 4 x 4, 2 x 2 and 1 x 1 parts (HCL of
    ReviewKD), weighed 1, 1/2, 1/4 and 1/8 over the sum of the weights; parts that a map is too small for are left out.
    """
    total, weights, weight = functional.mse_loss(own, wanted), 1.0, 1.0
    for side in _POOLED:
        if side < min(own.shape[2:]):
            weight /= 2
            ours, theirs = (functional.adaptive_avg_pool2d(x, side) for x in (own, wanted))
            total, weights = total + weight * functional.mse_loss(ours, theirs), weights + weight
    return total / weights
