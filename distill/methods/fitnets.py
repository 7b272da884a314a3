"""FitNets: hints from inside the teacher (Romero and others, ICLR 2015, arXiv 1412.6550)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.methods.base import METHODS, Workload
from distill.methods.kd import KdOptions, KnowledgeDistillation
from distill.networks.registry import Model
from distill.taps import Tap, frozen_features, maskable_layers, recomputes
from distill.training.features import Batch
from distill.training.phase import Phase
from mst_edge.core.errors import UserError

_STUDENT, _TEACHER = "distill.options.student_layers", "distill.options.teacher_layers"


@dataclass(frozen=True)
class FitNetsOptions(KdOptions):
    """Hints first, then ``(1 - alpha) CE + alpha KD``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        temperature, alpha: of the second stage, as in ``kd``.
        hint_share: share of the student's epochs that the hints take, at least one epoch and not all.
            The benchmark spends as many epochs on hints as on KD, beside the budget of other methods;
            here they are part of it.
        student_layers, teacher_layers: dotted paths, pair by pair; empty pairs the networks' first two
            maskable layers. Maps are averaged over their positions.
    """

    hint_share: float = 0.3
    student_layers: Sequence[str] = ()
    teacher_layers: Sequence[str] = ()


@METHODS.register("fitnets")
class FitNets(KnowledgeDistillation):
    """Layers of the student learn to predict layers of the teacher; then the student learns by plain KD."""

    name = "fitnets"
    Options: ClassVar[type] = FitNetsOptions

    @property
    def hint_epochs(self) -> int:
        """Epochs of the first stage."""
        return self.lab.epochs.part_of_student(self.options.hint_share)

    def workload(self) -> list[Workload]:
        _, teacher_tap = self._taps(self.lab.new_student(), self.lab.new_teacher(self.teacher))
        forward = [self.teacher] if recomputes(self.lab, teacher_tap) else []
        hints = self.hint_epochs
        return [
            *self.lone_teacher_work(),
            Workload("fitnets_hints", hints, trained=["student"], forward=forward),
            self.imitation_work("fitnets", self.lab.epochs.student - hints),
        ]

    def train(self) -> Model:
        student, answers = self.lab.new_student(), self.answers()
        self._learn_hints(student)
        self.imitate(student, answers, self.hint_epochs)
        return student

    def _learn_hints(self, student: Model) -> None:
        """Trains what lies below the guided layers; nothing above them gets a gradient."""
        lab = self.lab
        student_tap, teacher_tap = self._taps(student, lab.trained_teacher(self.teacher))
        frozen = frozen_features(lab, teacher_tap)
        self.seed_helpers()
        widths = zip(student_tap.widths, teacher_tap.widths, strict=True)
        regressors = nn.ModuleList(nn.Linear(guided, hint) for guided, hint in widths)
        reads = sorted({*student.reads, *frozen.reads})

        def hint_loss(batch: Batch) -> Tensor:
            return hint_distance(regressors, student_tap.features(batch.inputs), frozen(batch))

        @torch.no_grad()
        def validate() -> dict[str, float]:
            total = 0.0
            for batch in lab.store.in_order("val", 256, reads, lab.session.device):
                total += float(hint_loss(batch)) * len(batch.ids)
            return {"val_hint": total / len(lab.store.splits["val"])}

        lab.run(
            Phase(
                name="fitnets_hints",
                epochs=self.hint_epochs,
                modules={"student": student.module, "regressors": regressors},
                optimizers=[
                    lab.optimizer.build([student.module, regressors], span=(0.0, self.hint_epochs / lab.epochs.student))
                ],
                step=lambda batch, _epoch: {"loss": hint_loss(batch)},
                validate=validate,
                keep_best={"student": ("val_hint",)},
                reads=reads,
            )
        )

    def _taps(self, student: Model, teacher: Model) -> tuple[Tap, Tap]:
        """The guided layers and the hints, pair by pair."""
        guided = self.options.student_layers or maskable_layers(student, where=_STUDENT)[:2]
        hints = self.options.teacher_layers or maskable_layers(teacher, where=_TEACHER)[: len(guided)]
        if not self.options.student_layers:
            guided = guided[: len(hints)]
        if len(guided) != len(hints):
            raise UserError(
                f"{len(guided)} layers of the student cannot be paired with {len(hints)} of the teacher",
                where=_TEACHER,
                fix="name as many layers in student_layers as in teacher_layers",
            )
        shapes = self.lab.store.shapes
        return Tap(student, guided, shapes, where=_STUDENT), Tap(teacher, hints, shapes, where=_TEACHER)


def hint_distance(regressors: nn.ModuleList, guided: Sequence[Tensor], hints: Sequence[Tensor]) -> Tensor:
    """Sum over pairs of the mean squared error of the regressed guided layer (eq. 3, mean in place of half the sum).

    Args:
        guided, hints: ``(B, C)`` features of student and teacher, pair by pair.
    """
    errors = [
        functional.mse_loss(regressor(feature).float(), hint)
        for regressor, feature, hint in zip(regressors, guided, hints, strict=True)
    ]
    return torch.stack(errors).sum()
