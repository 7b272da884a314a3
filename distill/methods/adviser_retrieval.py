"""VideoAdviser for audio-visual retrieval: two small branches that a teacher of both modalities advises.

A reconstruction after the abstract of arXiv 2309.15494 (docs/videoadviser.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from distill.datasets.target import CLASSIFICATION
from distill.frozen import reads_of
from distill.lab import MULTIMODAL, Lab
from distill.methods.base import METHODS, Workload
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.networks.registry import Model
from distill.retrieval import hardest_triplets, mean_average_precision
from distill.training.features import Batch
from distill.training.phase import Phase
from mst_edge.core.errors import UserError, unknown_name


@dataclass(frozen=True)
class AdviserRetrievalOptions(TeacherOptions):
    """``task_weight (CE + CE) + advice_weight (KD + KD) + pair_weight`` times what pairs the two branches' logits.

    Attributes:
        teacher: ``multimodal``, or what a cross-modal teacher reads; empty takes the main one.
        partner: modality that is searched, and searches; empty takes the first that the student does not read. Its
            network is that of the cross-modal teacher.
        pairs: ``triplet``, the hardest in a batch, or ``cosine``, one minus that of each pair.
        margin: of the triplets, between unit vectors.
        task_weight, advice_weight, pair_weight: of labels, teacher and pairs.
        temperature: of KD.
    """

    partner: str = ""
    pairs: Literal["triplet", "cosine"] = "triplet"
    margin: float = 1.2
    task_weight: float = 1.0
    advice_weight: float = 1.0
    pair_weight: float = 1.0
    temperature: float = 4.0


@METHODS.register("adviser_retrieval")
class AdviserRetrieval(SingleTeacher):
    """The student and a branch for the partner modality learn to rank each other's samples by the cosine of their
    logits, ``(B, classes)``: an embedding in label space. Only the student is deployed.

    ``insights`` holds mAP on the test split, both ways.
    """

    name = "adviser_retrieval"
    tasks = (CLASSIFICATION,)
    Options: ClassVar[type] = AdviserRetrievalOptions

    def __init__(self, lab: Lab, options: Any) -> None:
        super().__init__(lab, options)
        others = [name for name in lab.teachers if name != MULTIMODAL]
        if MULTIMODAL not in lab.teachers:
            raise UserError("the data has one modality: there is nothing to search", where="distill.method")
        if options.partner and options.partner not in others:
            raise unknown_name("modality", options.partner, others, where="distill.options.partner")
        self.partner: str = options.partner or others[0]

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
        (advice,) = self.answers().values()

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            z, other = student(batch.inputs), partner(batch.inputs)
            return self.weighted(self.losses(z, other, advice.logits(batch), batch))

        def validate() -> dict[str, float]:
            scores = self._retrieved(student, partner, "val")
            return {**lab.validate(student), "val_missed": 1 - scores["mean"]}

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
                reads=reads_of([student, partner, advice]),
            )
        )
        scores = self._retrieved(student, partner, "test")
        said = ", ".join(f"{name} {value:.1%}" for name, value in scores.items())
        note = {"level": "note", "text": f"retrieval on the test split, mAP: {said}"}
        self.insights = {"retrieval_map": scores, "notes": [note]}
        return student

    def losses(self, z: Tensor, other: Tensor, advice: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``task``, ``advice`` and ``pair``, unweighted.

        Args:
            z, other: ``(B, classes)`` logits of student and partner. advice: of the teacher.
        """
        task, options = self.lab.task, self.options
        ours, theirs, target = batch.gather(z), batch.gather(other), batch.gather(batch.target)
        pair = (
            hardest_triplets(ours, theirs, target, options.margin)
            if options.pairs == "triplet"
            else 1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=1).mean()
        )
        return {
            "task": task.loss(z, batch.target) + task.loss(other, batch.target),
            "advice": task.kd(z, advice, options.temperature) + task.kd(other, advice, options.temperature),
            "pair": pair,
        }

    def _retrieved(self, student: Model, partner: Model, split: str) -> dict[str, float]:
        """mAP of both directions and their mean."""
        lab = self.lab
        asks, held = lab.logits(student, split), lab.logits(partner, split)
        target = lab.store.target(split)
        there, back = (mean_average_precision(a, b, target, target) for a, b in ((asks, held), (held, asks)))
        own = lab.student_modality
        return {
            f"{own} -> {self.partner}": there,
            f"{self.partner} -> {own}": back,
            "mean": (there + back) / 2,
        }
