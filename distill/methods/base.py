"""What a distillation method is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from distill.lab import MULTIMODAL, Lab
from distill.networks.registry import Model
from distill.training.features import Batch
from distill.training.phase import Phase
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
    """One objective. By default one stage in which the student learns from frozen, lone-trained teachers.

    A subclass writes ``loss``; one with stages of its own, extra modules or learning teachers
    overrides ``train``. What exists only for training stays out of the returned student. ``insights``
    holds JSON-able facts for the report.
    """

    Options: ClassVar[type] = NoOptions
    name: ClassVar[str]

    def __init__(self, lab: Lab, options: Any) -> None:
        self.lab = lab
        self.options = options
        self.insights: dict[str, Any] = {}

    def teachers(self) -> Mapping[str, Model]:
        """The frozen teachers whose logits ``loss`` gets."""
        return {MULTIMODAL: self.lab.trained_teacher(MULTIMODAL)}

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Scalars by name; ``loss`` is minimised."""
        raise NotImplementedError

    def check(self) -> None:
        """Called before anything is trained.

        Raises:
            UserError: an option does not fit the lab's networks or data.
        """

    def workload(self) -> list[Workload]:
        """The phases that ``train`` will run, beside those of lone-trained teachers."""
        return [Workload(self.name, self.lab.epochs.student, trained=["student"])]

    def train(self) -> Model:
        """Trains and returns the student."""
        lab, student = self.lab, self.lab.new_student()
        tables = {key: lab.cached_logits(key, model, model.reads) for key, model in self.teachers().items()}

        def step(batch: Batch, epoch: int) -> dict[str, Tensor]:
            outputs = {key: table[batch.ids].to(lab.session.device) for key, table in tables.items()}
            return self.loss(student(batch.inputs), outputs, batch, epoch)

        lab.run(
            Phase(
                name=self.name,
                epochs=lab.epochs.student,
                modules={"student": student.module},
                optimizers=[lab.optimizer.build([student.module])],
                step=step,
                validate=lambda: lab.validate(student),
                keep_best={"student": ("val_error", "val_loss")},
                reads=student.reads,
            )
        )
        return student


METHODS: Registry[Method] = Registry("method", "distill.methods", "mst_edge.methods")
