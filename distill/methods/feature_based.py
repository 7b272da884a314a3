"""What methods share that compare one feature of the student with one of a frozen teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from distill.methods.base import Workload
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.networks.registry import Model
from distill.taps import Tap, embedding_tap, frozen_features, pooled, recomputes
from distill.training.features import Batch


@dataclass(frozen=True)
class FeatureOptions(TeacherOptions):
    """Which teacher, and which of its features and the student's are compared.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        student_layer, teacher_layer: dotted path of the feature; empty takes what ``embed`` returns, or
            the network's last maskable layer. Maps are averaged over their positions.
    """

    student_layer: str = ""
    teacher_layer: str = ""


class FeatureMethod(SingleTeacher, ABC):
    """The task loss plus what ``comparison`` says of the two features, weighted by the options."""

    Options: ClassVar[type] = FeatureOptions

    @abstractmethod
    def comparison(self, student_width: int, teacher_width: int) -> nn.Module:
        """A module for training only: features ``(B, student_width)`` and ``(B, teacher_width)`` and the batch
        to losses by name."""

    def student_tap(self, student: Model) -> Tap:
        """Where the student's feature is read."""
        return embedding_tap(self.lab, student, self.options.student_layer, where="distill.options.student_layer")

    def teacher_tap(self, teacher: Model) -> Tap:
        """Where the teacher's feature is read."""
        return embedding_tap(self.lab, teacher, self.options.teacher_layer, where="distill.options.teacher_layer")

    def check(self) -> None:
        super().check()
        self.student_tap(self.lab.new_student())

    def workload(self) -> list[Workload]:
        recomputed = recomputes(self.lab, self.teacher_tap(self.lab.new_teacher(self.teacher)))
        forward = [self.teacher] if recomputed else []
        return [
            *self.lone_teacher_work(),
            Workload(self.name, self.lab.epochs.student, trained=["student"], forward=forward),
        ]

    def train(self) -> Model:
        student = self.lab.new_student()
        student_tap = self.student_tap(student)
        teacher_tap = self.teacher_tap(self.lab.trained_teacher(self.teacher))
        frozen = frozen_features(self.lab, teacher_tap)
        self.seed_helpers()
        comparison = self.comparison(student_tap.widths[0], teacher_tap.widths[0]).to(self.lab.session.device)

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            logits, (feature,) = student_tap(batch.inputs)
            (wanted,) = frozen(batch)
            task = self.lab.task.loss(logits, batch.target)
            return self.weighted({"task": task, **comparison(pooled(feature), wanted, batch)})

        # A checkpoint holds tensors: a comparison without any has nothing to save.
        helpers = {"comparison": comparison} if comparison.state_dict() else {}
        self.teach(student, step, helpers, frozen.reads)
        return student
