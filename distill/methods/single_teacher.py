"""What methods share that learn from one frozen, lone-trained teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.frozen import Answers, reads_of
from distill.lab import FineTuning, Lab, Step
from distill.methods.base import Method, Workload
from distill.networks.registry import Model
from distill.training.features import Batch
from distill.training.phase import Phase
from mst_edge.core.errors import UserError, unknown_name


@dataclass(frozen=True)
class TeacherOptions:
    """For a method that learns from one lone-trained teacher.

    Attributes:
        teacher: ``multimodal``, the modality that a cross-modal teacher reads, or ``unimodal``; empty takes the
            main one, ``multimodal`` unless the data has one modality.
    """

    teacher: str = ""


class SingleTeacher(Method):
    """By default one stage in which the student learns by ``loss`` from the teacher's logits.

    A subclass writes ``loss``; one that needs more than logits writes ``train`` with the tools below.

    Attributes:
        teacher: name of the teacher that the options choose.

    Raises:
        UserError: the lab has no such teacher, or none at all.
    """

    Options: ClassVar[type] = TeacherOptions

    def __init__(self, lab: Lab, options: Any) -> None:
        super().__init__(lab, options)
        if not lab.teachers:
            raise UserError(
                "the data has one modality and no teacher is named",
                where="teachers.unimodal",
                fix="name a network there",
            )
        self.teacher: str = options.teacher or lab.main_teacher
        if self.teacher not in lab.teachers:
            raise unknown_name("teacher", self.teacher, lab.teachers, where="distill.options.teacher")

    def teachers(self) -> Mapping[str, Model]:
        """The frozen teachers whose logits ``loss`` gets."""
        return {self.teacher: self.lab.trained_teacher(self.teacher)}

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is minimised."""
        raise NotImplementedError

    def workload(self) -> list[Workload]:
        return [*self.lone_teacher_work(), self.imitation_work(self.name, self.lab.epochs.student)]

    def imitation_work(self, phase: str, epochs: int) -> Workload:
        """A phase in which the student learns from the teacher's logits."""
        reads, _ = self.lab.teachers[self.teacher]
        forward = [] if self.lab.keeps_logits(reads) else [self.teacher]
        return Workload(phase, epochs, trained=["student"], forward=forward)

    def lone_teacher_work(self) -> list[Workload]:
        """The lone training of the chosen teacher; none for the main one, which every run trains."""
        if self.teacher == self.lab.main_teacher:
            return []
        phases = self.lab.lone_phases(self.teacher)
        return [Workload(phase, self.lab.epochs.student, trained=[self.teacher]) for phase in phases]

    def weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds ``loss``: the sum of all losses, each times the option ``<its name>_weight``."""
        total = torch.stack([getattr(self.options, f"{name}_weight") * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses}

    def seed_helpers(self) -> None:
        """Seeds the initial weights of what is made next, by the session's seed and the method's name."""
        torch.manual_seed(self.lab.session.seed_for(self.name, "helpers"))

    def train(self) -> Model:
        student = self.lab.new_student()
        self.imitate(student, self.answers())
        return student

    @property
    def fine_tunes(self) -> bool:
        """Where ``loss`` is all that the method has."""
        return type(self).train is SingleTeacher.train

    def fine_tune(self, student: Model, tuning: FineTuning) -> None:
        answers = self.answers()
        step = self._imitation(student, answers)
        self.lab.fine_tune(student, tuning, step, reads=reads_of(answers.values()))

    def imitate(self, student: Model, answers: Mapping[str, Answers], epochs_before: int = 0) -> None:
        """Trains the student by ``loss``; ``epochs_before`` of its budget are already used."""
        step = self._imitation(student, answers)
        self.teach(student, step, reads=reads_of(answers.values()), epochs_before=epochs_before)

    def _imitation(self, student: Model, answers: Mapping[str, Answers]) -> Step:
        def step(batch: Batch, epoch: int) -> dict[str, Tensor]:
            teachers = {name: answer.logits(batch) for name, answer in answers.items()}
            return self.loss(student(batch.inputs), teachers, batch, epoch)

        return step

    def answers(self) -> Mapping[str, Answers]:
        """By teacher, its ``(B, ...)`` logits for the samples of a batch, computed once where they do not change."""
        return {name: self.lab.frozen_logits(model) for name, model in self.teachers().items()}

    def teach(
        self,
        student: Model,
        step: Step,
        helpers: Mapping[str, nn.Module] | None = None,
        reads: Sequence[str] = (),
        epochs_before: int = 0,
    ) -> None:
        """Runs the phase named after the method, which ends with the student's best weights.

        Args:
            helpers: modules by name that learn along or hold state, and exist for training only.
            reads: modalities that ``step`` needs beside the student's.
            epochs_before: epochs of its budget that the student has had in earlier phases.
        """
        lab, helpers = self.lab, helpers or {}
        budget = lab.epochs.student
        lab.run(
            Phase(
                name=self.name,
                epochs=budget - epochs_before,
                modules={"student": student.module, **helpers},
                optimizers=[
                    lab.optimizer.build([student.module, *helpers.values()], span=(epochs_before / budget, 1.0))
                ],
                step=step,
                validate=lambda: lab.validate(student),
                keep_best={"student": ("val_error", "val_loss")},
                reads=sorted({*student.reads, *reads}),
            )
        )
