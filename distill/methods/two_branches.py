"""What methods share that teach retrieval: the student and a branch for another modality find each other's samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from distill.datasets.target import CLASSIFICATION
from distill.frozen import reads_of
from distill.lab import MULTIMODAL, Lab
from distill.methods.base import Workload
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.networks.registry import Model
from distill.retrieval import mean_average_precision, recall_at
from distill.training.features import Batch
from distill.training.phase import Phase
from mst_edge.core.errors import UserError, unknown_name

RECALLS = (1, 5, 10)
# From the logits (B, classes) of student and partner, the batch and the epoch, to unweighted losses by name.
Objective = Callable[[Tensor, Tensor, Batch, int], dict[str, Tensor]]


@dataclass(frozen=True)
class TwoBranchOptions(TeacherOptions):
    """For two branches.

    Attributes:
        teacher: ``multimodal``, or what a cross-modal teacher reads; empty takes the main one.
        partner: modality that is searched, and searches; empty takes the first that the student does not read. Its
            network is that of the cross-modal teacher.
        embedding: what cosines compare: ``logits``, or the ``probabilities`` that these stand for.
        task_weight: of the task's loss of both.
    """

    partner: str = ""
    embedding: Literal["logits", "probabilities"] = "logits"
    task_weight: float = 1.0


class TwoBranches(SingleTeacher, ABC):
    """Student and partner learn together and rank each other's samples by the cosine of their logits or probabilities,
    ``(B, classes)``: an embedding in label space. The partner is the student's companion.

    ``insights`` holds mAP and recall on the test split, both ways.
    """

    tasks = (CLASSIFICATION,)
    Options: ClassVar[type] = TwoBranchOptions

    def __init__(self, lab: Lab, options: Any) -> None:
        super().__init__(lab, options)
        others = [name for name in lab.teachers if name != MULTIMODAL]
        if MULTIMODAL not in lab.teachers:
            raise UserError("the data has one modality: there is nothing to search", where="distill.method")
        if options.partner and options.partner not in others:
            raise unknown_name("modality", options.partner, others, where="distill.options.partner")
        self.partner: str = options.partner or others[0]

    @abstractmethod
    def objective(self) -> tuple[Objective, Sequence[str]]:
        """What both learn by, each loss weighted by the option ``<its name>_weight``, and the modalities that it needs
        in a batch."""

    def embed(self, logits: Tensor) -> Tensor:
        """``(B, classes)`` float32, what cosines compare."""
        return logits.float().softmax(dim=1) if self.options.embedding == "probabilities" else logits.float()

    def workload(self) -> list[Workload]:
        advised = self.imitation_work(self.name, self.lab.epochs.student)
        return [*self.lone_teacher_work(), replace(advised, trained=["student", self.partner])]

    @property
    def fine_tunes(self) -> bool:
        """The partner that pairs are made with is gone by then."""
        return False

    def train(self) -> Model:
        lab = self.lab
        student, partner = lab.new_student(), lab.new_teacher(self.partner)
        objective, reads = self.objective()

        def step(batch: Batch, epoch: int) -> dict[str, Tensor]:
            return self.weighted(objective(student(batch.inputs), partner(batch.inputs), batch, epoch))

        def validate() -> dict[str, float]:
            return {**lab.validate(student), "val_missed": 1 - self.retrieved(student, partner, "val")["mean"]}

        modules = {"student": student.module, "partner": partner.module}
        lab.run(
            Phase(
                name=self.name,
                epochs=lab.epochs.student,
                modules=modules,
                optimizers=[lab.optimizer.build(list(modules.values()))],
                step=step,
                validate=validate,
                keep_best=dict.fromkeys(modules, ("val_missed", "val_loss")),
                reads=sorted({*reads_of([student, partner]), *reads}),
            )
        )
        self._say(student, partner)
        self.companions = {"partner": partner}
        return student

    def retrieved(self, student: Model, partner: Model, split: str) -> dict[str, float]:
        """mAP of both directions and their mean."""
        (there, back), own = self._both_ways(student, partner, split), self.lab.student_modality
        scores = [mean_average_precision(*way) for way in (there, back)]
        return {
            f"{own} -> {self.partner}": scores[0],
            f"{self.partner} -> {own}": scores[1],
            "mean": sum(scores) / 2,
        }

    def _both_ways(self, student: Model, partner: Model, split: str) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Queries, gallery and the classes of both, for the student that asks and the partner that does."""
        lab, target = self.lab, self.lab.store.target(split)
        own, held = self.embed(lab.logits(student, split)), self.embed(lab.logits(partner, split))
        return [(own, held, target, target), (held, own, target, target)]

    def _say(self, student: Model, partner: Model) -> None:
        precision = self.retrieved(student, partner, "test")
        ways = self._both_ways(student, partner, "test")
        names = [name for name in precision if name != "mean"]
        recall = {
            name: {str(first): recall_at(*way, first) for first in RECALLS}
            for name, way in zip(names, ways, strict=True)
        }
        said = ", ".join(f"{name} {value:.1%}" for name, value in precision.items())
        first = ", ".join(f"{name} {value['1']:.1%}" for name, value in recall.items())
        note = {"level": "note", "text": f"retrieval on the test split, mAP: {said}; R@1: {first}"}
        self.insights = {"retrieval_map": precision, "retrieval_recall": recall, "notes": [note]}
