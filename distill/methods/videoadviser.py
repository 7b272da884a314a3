"""VideoAdviser (Wang and others, arXiv 2309.15494): a number consolidated inside the teacher teaches the student.

A reconstruction: the order of the steps is published, equations and weights are not (docs/videoadviser.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from distill.datasets.target import CLASSIFICATION, REGRESSION
from distill.frozen import Answers, Frozen, as_logits
from distill.lab import Lab, Step
from distill.methods.base import METHODS, Workload
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.networks.registry import Model
from distill.networks.video_prompts import VideoPrompts
from distill.step_distill import Distance, distance_of
from distill.tasks import Regression
from distill.tasks.ordinal import expected_number
from distill.training.features import Batch
from mst_edge.core.errors import UserError


@dataclass(frozen=True)
class VideoAdviserOptions(TeacherOptions):
    """``task_weight |r_S - y| + advice_weight (r_S - sg[r_T])^2`` in the label's unit; with classes, CE and KD.

    What happens inside the teacher (step 1) is said by the options of its network, ``video_prompts``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        mode: ``two_stage`` trains the teacher, freezes it and keeps what it says in the cache; ``joint`` trains
            both together, by one optimiser.
        signal: what the student learns from: the teacher's ``number``, or the ``mean`` that its class head expects,
            which leaves out what the number learned. Classes have no such choice.
        distance: between the student's number and the signal: ``mse``, ``l1`` or ``huber``.
        task_weight: of the labels.
        advice_weight: of the teacher's signal (w_2).
        temperature: of KD, where the task is classification.
    """

    mode: Literal["two_stage", "joint"] = "two_stage"
    signal: Literal["number", "mean"] = "number"
    distance: Distance = "mse"
    task_weight: float = 1.0
    advice_weight: float = 1.0
    temperature: float = 4.0


@METHODS.register("videoadviser")
class VideoAdviser(SingleTeacher):
    """Step 2 of step distillation; step 1 is the objective of the teacher's network, wherever that is trained."""

    name = "videoadviser"
    tasks = (REGRESSION, CLASSIFICATION)
    Options: ClassVar[type] = VideoAdviserOptions

    def __init__(self, lab: Lab, options: Any) -> None:
        super().__init__(lab, options)
        self._learns_along = options.mode == "joint"

    def check(self) -> None:
        super().check()
        if self.options.signal == "mean" and self.lab.task.name != REGRESSION:
            raise UserError("classes have no mean", where="distill.options.signal", fix="leave it out")
        if self.options.signal == "mean":
            _class_head(self.lab.new_teacher(self.teacher))

    def workload(self) -> list[Workload]:
        if not self._learns_along:
            return super().workload()
        return [Workload(self.name, self.lab.epochs.student, trained=["student", self.teacher])]

    def train(self) -> Model:
        return self._train_together() if self._learns_along else super().train()

    @property
    def fine_tunes(self) -> bool:
        """With a frozen teacher: one that learned along is gone with its optimiser."""
        return not self._learns_along

    def answers(self) -> Mapping[str, Answers]:
        """The consolidated signal, kept in the cache."""
        teacher = self.lab.trained_teacher(self.teacher)
        if self.options.signal == "number":
            return {self.teacher: self.lab.frozen_logits(teacher)}
        frozen = Frozen(
            f"{teacher.name}, mean of its classes",
            lambda inputs: (as_logits(self._mean(teacher, inputs)),),
            teacher.reads,
            [teacher.module],
            {name: values.tolist() for name, values in self.lab.task.answer_state().items()},
        )
        return {self.teacher: self.lab.keeper.answers(frozen)}

    def _mean(self, teacher: Model, inputs: Mapping[str, Tensor]) -> Tensor:
        """``(B, 1)`` what the class head expects, standardised."""
        task = self.lab.task
        assert isinstance(task, Regression)
        classes, _ = _class_head(teacher).advise(teacher.taken(inputs))
        return task.standardised(expected_number(classes, torch.tensor(task.output.ordinal, device=classes.device)))

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        return self._advised(student, teachers[self.teacher], batch.target)

    def _advised(self, student: Tensor, signal: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses of the student's logits; the teacher's ``signal`` gets no gradient."""
        task, options = self.lab.task, self.options
        if task.name == CLASSIFICATION:
            losses = {
                "task": task.loss(student, target),
                "advice": task.kd(student, signal.detach(), options.temperature),
            }
        else:
            number = task.outputs(student)
            losses = {
                "task": functional.l1_loss(number, target),
                "advice": distance_of(number, task.outputs(signal), options.distance),
            }
        return self.weighted(losses)

    def _train_together(self) -> Model:
        student, teacher = self.lab.new_student(), self.lab.new_teacher(self.teacher)
        self.teach(student, self._joint_step(student, teacher), {"teacher": teacher.module}, teacher.reads)
        return student

    def _joint_step(self, student: Model, teacher: Model) -> Step:
        """``L_T + L_S``: the student's part gives the teacher no gradient."""

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            said, own = self.lab.losses(teacher, batch)
            if self.options.signal == "mean":
                with torch.no_grad():
                    said = self._mean(teacher, batch.inputs)
            losses = self._advised(student(batch.inputs), said, batch.target)
            teachers = {f"teacher_{name}": value for name, value in own.items()}
            return {**losses, **teachers, "loss": losses["loss"] + own["loss"]}

        return step


def _class_head(teacher: Model) -> VideoPrompts:
    """The network that says class logits beside its number.

    Raises:
        UserError: the teacher's network has none.
    """
    if not isinstance(teacher.module, VideoPrompts):
        raise UserError(
            f"teacher {teacher.name!r} is a {teacher.network}, which has no classes behind its number",
            where="distill.options.signal",
            fix="use signal: number, or the network video_prompts",
        )
    return teacher.module
