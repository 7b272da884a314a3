"""The mean of several teachers (You and others, KDD 2017; the Romanian DistilBERTs, arXiv 2112.12650), and how loyal
the student is to each (Xu and others, EMNLP 2021, arXiv 2109.03228)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.lab import Lab
from distill.methods.base import METHODS
from distill.methods.from_teachers import FromTeachers
from distill.networks.registry import Model
from distill.tasks.base import Meter
from distill.training.features import Batch
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.scoring import Predictions, collect

_WHERE = "distill.options"
MEAN = "mean of the teachers"


@dataclass(frozen=True)
class MultiTeacherOptions:
    """``(1 - alpha) CE + alpha KD`` from the weighted mean of the teachers' softened probabilities.

    Attributes:
        teachers: ``multimodal`` and modalities that cross-modal teachers read; empty takes all.
        weights: of teachers by name, 1 where not said; only their ratios matter.
        temperature: softens all teachers before they are averaged, and the student.
        alpha: share of KD in the loss, in [0, 1].
    """

    teachers: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 4.0
    alpha: float = 0.5


@METHODS.register("multi_teacher")
class MultiTeacher(FromTeachers):
    """The student imitates what several lone-trained teachers say on average. Of numbers it is the mean number.

    ``insights`` holds the loyalty of the student to each of them and to their mean, on the test split.
    """

    name = "multi_teacher"
    Options: ClassVar[type] = MultiTeacherOptions

    def __init__(self, lab: Lab, options: Any) -> None:
        """Checks the options against the lab's teachers.

        Raises:
            UserError: an unknown teacher, one named twice, fewer than two, or weights that make no mean.
        """
        super().__init__(lab, options)
        self._listened = tuple(options.teachers or lab.teachers)
        for name in self._listened:
            if name not in lab.teachers:
                raise unknown_name("teacher", name, lab.teachers, where=f"{_WHERE}.teachers")
        if len(self._listened) < 2 or len(set(self._listened)) < len(self._listened):
            raise UserError(
                f"a mean needs two distinct teachers or more, received {', '.join(self._listened)}",
                where=f"{_WHERE}.teachers",
                fix=f"name some of {', '.join(lab.teachers)}" if len(lab.teachers) > 1 else "use kd",
            )
        for name, weight in options.weights.items():
            if name not in self._listened:
                raise unknown_name("teacher", name, self._listened, where=f"{_WHERE}.weights")
            if not 0 < weight < float("inf"):
                raise UserError(
                    f"weights must be above 0, received {weight}",
                    where=f"{_WHERE}.weights.{name}",
                    fix="leave out teachers that should not count by teachers: [...]",
                )

    @property
    def listened(self) -> Sequence[str]:
        return self._listened

    @property
    def weights(self) -> Tensor:
        """``(teachers,)`` in the order of ``listened``; they sum to 1."""
        said = torch.tensor([float(self.options.weights.get(name, 1.0)) for name in self.listened])
        return said / said.sum()

    def loss(self, student: Tensor, teachers: Mapping[str, Tensor], batch: Batch, epoch: int) -> dict[str, Tensor]:
        task, options = self.lab.task, self.options
        said = torch.stack([teachers[name] for name in self.listened], dim=1)
        mean = task.ensemble(said, self.weights.to(said.device), options.temperature)
        losses = {"task": task.loss(student, batch.target), "kd": task.kd(student, mean, options.temperature)}
        return {"loss": (1 - options.alpha) * losses["task"] + options.alpha * losses["kd"], **losses}

    def train(self) -> Model:
        student = super().train()
        rows = list(self._loyalties(student))
        self.insights = {"loyalty": rows, "notes": [{"level": "note", "text": self._note(rows)}]}
        return student

    @property
    def fine_tunes(self) -> bool:
        return True

    def _loyalties(self, student: Model) -> Iterator[dict[str, Any]]:
        """Of the student to each teacher and to their mean, with the headline metric of these."""
        lab, scoring = self.lab, self.lab.task.scoring
        own, _ = self._said(lab.answered(student, "test"))
        teachers, weights = self.teachers(), [*self.weights.tolist(), 1.0]
        spoken = [*(lab.answered(model, "test") for model in teachers.values()), self._mean(list(teachers.values()))]
        for name, weight, answered in zip([*teachers, MEAN], weights, spoken, strict=True):
            said, meter = self._said(answered)
            loyalty = scoring.loyalty(own, said, self._ranges())
            yield {"name": name, "weight": weight, scoring.metric: meter.result()[scoring.metric], **loyalty}

    def _mean(self, teachers: Sequence[Model]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits of all teachers' mean, unsoftened, and targets of the test split, batch by batch."""
        for batch in zip(*(self.lab.answered(teacher, "test") for teacher in teachers), strict=True):
            logits = torch.stack([z for z, _ in batch], dim=1)
            yield self.lab.task.ensemble(logits, self.weights, 1.0), batch[0][1]

    def _said(self, answered: Iterable[tuple[Tensor, Tensor]]) -> tuple[Predictions, Meter]:
        """Answers as scoring wants them, and a meter of all of them."""
        task, meter = self.lab.task, self.lab.task.meter()

        def outputs() -> Iterator[NDArray[np.float32]]:
            for logits, target in answered:
                meter.add(logits, target)
                yield task.outputs(logits).numpy()

        return collect(outputs(), task.scoring), meter

    def _ranges(self) -> NDArray[np.float64]:
        """``(names,)`` of the training labels, where these are numbers."""
        store = self.lab.store
        labels = store.dataset.target[store.splits["train"]] if not store.dataset.classes else np.zeros((1, 1))
        return np.ptp(labels.astype(np.float64), axis=0)

    def _note(self, rows: Sequence[Mapping[str, Any]]) -> str:
        metric, label = self.lab.task.scoring.metric, self.lab.task.scoring.label
        said = ", ".join(f"{row['name']} {_loyalty_words(row)} ({label} {row[metric]:.1%})" for row in rows)
        return f"loyalty of the {self.name} student on the test split, whatever the labels say, to: {said}"


def _loyalty_words(row: Mapping[str, Any]) -> str:
    """``label 81.0% probability 0.74`` or ``regression 0.93``."""
    words = [f"label {row['label']:.1%}"] if "label" in row else []
    return " ".join([*words, *(f"{kind} {row[kind]:.2f}" for kind in ("probability", "regression") if kind in row)])
