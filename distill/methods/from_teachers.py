"""What methods share whose student learns from frozen, lone-trained teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.frozen import Answers, reads_of
from distill.lab import FineTuning, Lab, Step
from distill.methods.base import Method, Workload
from distill.networks.registry import Model
from distill.training.features import Batch
from distill.training.phase import Phase
from mst_edge.core.errors import UserError


class FromTeachers(Method):
    """By default one stage in which the student learns by ``loss`` from the teachers' logits.

    A subclass writes ``listened`` and ``loss``; one that needs more than logits writes ``train`` with the tools below.

    Raises:
        UserError: the lab has no teacher.
    """

    def __init__(self, lab: Lab, options: Any) -> None:
        super().__init__(lab, options)
        if not lab.teachers:
            raise UserError(
                "the data has one modality and no teacher is named",
                where="teachers.unimodal",
                fix="name a network there",
            )

    @property
    def listened(self) -> Sequence[str]:
        """Names of the teachers that the student learns from."""
        raise NotImplementedError

    def teachers(self) -> Mapping[str, Model]:
        """The frozen teachers whose logits ``loss`` gets."""
        return {name: self.lab.trained_teacher(name) for name in self.listened}

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is minimised. ``epoch`` counts all epochs that the student has had."""
        raise NotImplementedError

    def workload(self) -> list[Workload]:
        return [*self.lone_teacher_work(), self.imitation_work(self.name, self.lab.epochs.student)]

    def imitation_work(self, phase: str, epochs: int) -> Workload:
        """A phase in which the student learns from the teachers' logits."""
        forward = [name for name in self.listened if not self.lab.keeps_logits(self.lab.teachers[name][0])]
        return Workload(phase, epochs, trained=["student"], forward=forward)

    def lone_teacher_work(self) -> list[Workload]:
        """The lone training of the teachers; not of the main one, which every run trains."""
        return [
            Workload(phase, self.lab.epochs.student, trained=[name])
            for name in self.listened
            if name != self.lab.main_teacher
            for phase in self.lab.lone_phases(name)
        ]

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
        return type(self).train is FromTeachers.train

    def fine_tune(self, student: Model, tuning: FineTuning) -> None:
        answers = self.answers()
        step = self._imitation(student, answers, self.lab.epochs.student)
        self.lab.fine_tune(student, tuning, step, reads=reads_of(answers.values()))

    def imitate(self, student: Model, answers: Mapping[str, Answers], epochs_before: int = 0) -> None:
        """Trains the student by ``loss``; ``epochs_before`` of its budget are already used."""
        step = self._imitation(student, answers, epochs_before)
        self.teach(student, step, reads=reads_of(answers.values()), epochs_before=epochs_before)

    def _imitation(self, student: Model, answers: Mapping[str, Answers], epochs_before: int) -> Step:
        def step(batch: Batch, epoch: int) -> dict[str, Tensor]:
            teachers = {name: answer.logits(batch) for name, answer in answers.items()}
            return self.loss(student(batch.inputs), teachers, batch, epochs_before + epoch)

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
