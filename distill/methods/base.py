"""What a distillation method is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from distill.datasets.target import TASKS
from distill.lab import FineTuning, Lab
from distill.networks.registry import Model
from mst_edge.core.errors import UserError
from mst_edge.core.registry import Registry


@dataclass(frozen=True)
class NoOptions:
    """For a method without options."""


@dataclass(frozen=True)
class Workload:
    """What one phase costs, for the plan of a dry run: per sample and epoch, which models are trained
    (forward and backward) and which only run forward, by name (``student``, or a teacher's)."""

    phase: str
    epochs: int
    trained: Sequence[str] = ()
    forward: Sequence[str] = ()


class Method:
    """One objective: trains a student with what a lab offers. Most methods are a ``SingleTeacher``.

    What exists only for training stays out of the returned student. ``insights`` holds JSON-able facts
    for the report. ``companions`` holds what learned beside the student to be deployed with it: networks of one
    modality each, by the name of the folder in which each becomes a run of its own.

    Class attributes:
        tasks: which tasks the method can do; all of them where it knows only the task's own losses.
    """

    Options: ClassVar[type] = NoOptions
    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = TASKS

    def __init__(self, lab: Lab, options: Any) -> None:
        self.lab = lab
        self.options = options
        self.insights: dict[str, Any] = {}
        self.companions: dict[str, Model] = {}

    def check(self) -> None:
        """Called before anything is trained; by default looks whether the task is one that the method can do, and
        whether the plan can be made.

        Raises:
            UserError: the task is none of the method's, or an option does not fit the lab's networks or data.
        """
        if self.lab.task.name not in self.tasks:
            raise UserError(
                f"{self.name} cannot do {self.lab.task.name}, only {', '.join(self.tasks)}",
                where="distill.method or distill.compare",
                fix="choose another method; docs/methods.md says which can",
            )
        self.workload()

    def workload(self) -> list[Workload]:
        """The phases that ``train`` will run, beside that of the lone-trained main teacher."""
        return [Workload(self.name, self.lab.epochs.student, trained=["student"])]

    def train(self) -> Model:
        """Trains and returns the student."""
        raise NotImplementedError

    @property
    def fine_tunes(self) -> bool:
        """Whether the method can teach a trained student further by its logits, whatever its layers are."""
        return False

    def check_fine_tuning(self) -> None:
        """Called before anything is trained.

        Raises:
            UserError: the method cannot teach a student by its logits alone.
        """
        if not self.fine_tunes:
            raise UserError(
                f"int8-qad learns from a teacher by the student's logits alone, which {self.name} cannot do",
                where="quantize.schemes",
                fix="take int8-qat, which needs no teacher, or another method; docs/methods.md says which can",
            )

    def fine_tune(self, student: Model, tuning: FineTuning) -> None:
        """Teaches a trained student further by the objective of the method's last stage.

        What ``train`` left is loaded: teachers, masks and router, each as it ended.
        """
        raise NotImplementedError


METHODS: Registry[Method] = Registry("method", "distill.methods", "mst_edge.methods")
