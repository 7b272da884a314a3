"""What methods share that compare whole outputs of layers, position by position, with those of a frozen teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from distill.methods.base import Workload
from distill.methods.single_teacher import SingleTeacher
from distill.networks.registry import Model
from distill.taps import Tap, frozen_outputs, recomputes_outputs
from distill.training.features import Batch


class Comparison(nn.Module):
    """What is compared, with everything that learns along: for training only."""

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Outputs ``(B, C, ...)`` of both taps' layers, in float32, to losses by name."""
        raise NotImplementedError


class TappedMethod(SingleTeacher, ABC):
    """The task loss plus what a ``Comparison`` says of the two networks' layers, weighted by the options."""

    @abstractmethod
    def taps(self, student: Model, teacher: Model) -> tuple[Tap, Tap]:
        """Where the two networks are read.

        Raises:
            UserError: they have no such layers, or ones that do not compare.
        """

    @abstractmethod
    def comparison(self, student: Tap, teacher: Tap) -> Comparison:
        """A fresh one."""

    def workload(self) -> list[Workload]:
        _, teacher = self.taps(self.lab.new_student(), self.lab.new_teacher(self.teacher))
        forward = [self.teacher] if recomputes_outputs(self.lab, teacher) else []
        return [
            *self.lone_teacher_work(),
            Workload(self.name, self.lab.epochs.student, trained=["student"], forward=forward),
        ]

    def train(self) -> Model:
        lab, student = self.lab, self.lab.new_student()
        tap, teacher_tap = self.taps(student, lab.trained_teacher(self.teacher))
        frozen = frozen_outputs(lab, teacher_tap)
        self.seed_helpers()
        comparison = self.comparison(tap, teacher_tap).to(lab.session.device)

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            logits, outputs = tap(batch.inputs)
            said, wanted = ([output.float() for output in side] for side in (outputs, frozen(batch)))
            return self.weighted({"task": lab.task.loss(logits, batch.target), **comparison(said, wanted, batch)})

        self.teach(student, step, {"comparison": comparison}, frozen.reads)
        return student
