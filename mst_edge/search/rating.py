"""What is found out about a candidate without training it: its size, its DisWOT score, its predicted latency."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.diswot import Readout, Score, read, score
from distill.lab import Lab
from distill.networks.registry import build_model
from distill.student import Student
from distill.training.phase import Silent
from mst_edge.core.errors import UserError
from mst_edge.recipe import Recipe, SearchSection
from mst_edge.search.latency import Bench, BlockTable, excess
from mst_edge.search.space import Candidate, Values, settled
from mst_edge.stages.data import Data, prepare
from mst_edge.stages.distill import deployable, make_lab, pick_device
from quantize.calibration import choose

_TIMED = 16  # samples of a measurement: as many as are timed in turn


@dataclass(frozen=True)
class Rating:
    """What is known of a candidate before it is trained.

    Attributes:
        problem: why it cannot be had; all else is empty then.
        mb: of its weights and constants in fp32.
        relation, semantic: parts of its score, one per initialisation; no ``semantic`` for a task without classes.
        ms: predicted p50 latency by target.
    """

    candidate: Candidate
    problem: str = ""
    parameters: int = 0
    mb: float = 0.0
    relation: tuple[float, ...] = ()
    semantic: tuple[float, ...] = ()
    ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def scores(self) -> list[float]:
        """The whole score, per initialisation."""
        return [sum(parts) for parts in zip(self.relation, self.semantic or [0.0] * len(self.relation), strict=True)]

    @property
    def score(self) -> float:
        """Mean over initialisations."""
        return statistics.mean(self.scores)

    @property
    def spread(self) -> float | None:
        """Standard deviation over initialisations."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def short_by(self, benches: Sequence[Bench]) -> float:
        """How far it misses the goals, as predicted."""
        return sum(excess(bench.goals, self.mb, self.ms[bench.target]) for bench in benches)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "candidate": self.candidate.to_dict()}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Rating:
        """What ``to_dict`` gave."""
        lists = {name: tuple(said[name]) for name in ("relation", "semantic")}
        return cls(**{**said, **lists, "candidate": Candidate.from_dict(said["candidate"])})


class Rater:
    """Labs for every size of the student's input, and the teacher's readouts, each made once.

    The teacher reads what the recipe says, whatever size the student's input has, so that all candidates are compared
    with one teacher.
    """

    def __init__(
        self,
        recipe: Recipe,
        said: SearchSection,
        benches: Sequence[Bench],
        data_root: Path | None,
        device: str,
        progress: Callable[[str], None],
    ) -> None:
        self._recipe, self._said, self._data_root, self._device = recipe, said, data_root, device
        self._data: dict[Values, Data] = {}
        self._labs: dict[Values, tuple[Data, Lab]] = {}
        self._teachers: list[tuple[NDArray[np.int64], Readout]] = []
        self._tables = [BlockTable(bench, progress) for bench in benches]
        self.progress = progress

    def data(self, features: Values = ()) -> Data:
        """Data for a size of the student's input; nothing is computed of it yet."""
        if features not in self._data:
            self._data[features] = prepare(self._sized(features), self._data_root)
        return self._data[features]

    def require_size(self, features: Values, where: str) -> None:
        """Makes sure that the student's front end takes these options.

        Raises:
            UserError: it does not.
        """
        try:
            self.data(features)
        except UserError as error:
            raise UserError(error.problem, where=where, fix=error.fix) from error

    def prepared(self, features: Values = ()) -> tuple[Data, Lab]:
        """Data and lab for a size of the student's input."""
        if features not in self._labs:
            data = self.data(features)
            lab = make_lab(self._sized(features), data, Path("search"), pick_device(self._device), Silent())
            self._labs[features] = data, lab
        return self._labs[features]

    def _sized(self, features: Values) -> Recipe:
        return settled(self._recipe, Candidate(self._recipe.student.network, (), features))

    def require(self, candidate: Candidate, where: str) -> None:
        """Builds a candidate without its weights.

        Raises:
            UserError: it cannot be built, with the place of what does not fit.
        """
        modality, task = self._recipe.student.modality, self.prepared()[1].task
        try:
            shapes = {modality: self.data(candidate.features).frontends[modality].feature_shape}
            with torch.device("meta"):
                build_model("student", candidate.choice, shapes, task.num_outputs, where=where, map_size=task.map_size)
        except UserError as error:
            raise UserError(
                f"{candidate.label}: {error.problem}", where=where, fix=error.fix or "leave it out"
            ) from error

    def rate(self, candidates: Sequence[Candidate]) -> list[Rating]:
        """Ratings of candidates; blocks of all of them are timed together."""
        ratings = [self._rate(candidate) for candidate in candidates]
        fit = [rating for rating in ratings if not rating.problem]
        students = [self.student(rating.candidate)[0] for rating in fit]
        for table in self._tables:
            for rating, ms in zip(fit, table.predict(students), strict=True):
                assert isinstance(rating.ms, dict)
                rating.ms[table.bench.target] = ms
        return ratings

    def _rate(self, candidate: Candidate) -> Rating:
        try:
            self.require(candidate, "search")
        except UserError as error:
            return Rating(candidate, problem=error.problem)
        self.progress(f"scoring {candidate.label}")
        student, _ = self.student(candidate)
        scores = [self.score(candidate, number) for number in range(self._said.initialisations)]
        return Rating(
            candidate,
            parameters=sum(weight.numel() for weight in student.network.parameters()),
            mb=sum(value.numel() * value.element_size() for value in student.state_dict().values()) / 1e6,
            relation=tuple(one.relation for one in scores),
            semantic=tuple(one.semantic for one in scores if one.semantic is not None),
        )

    def score(self, candidate: Candidate, number: int) -> Score:
        """Its score at one initialisation.

        Raises:
            UserError: channels are to be compared, and it has not as many as the teacher.
        """
        ids, teacher = self._teacher(number)
        _, lab = self.prepared(candidate.features)
        lab = _initialised(lab, number)
        student = replace(lab, student=candidate.choice).new_student()
        student.module.to(lab.session.device)
        shown = read(student, lab.task, lab.store.gather(ids, student.reads, lab.session.device))
        try:
            return score(teacher, shown, width_free=self._said.similarity == "classes")
        except ValueError as error:
            raise UserError(
                f"{candidate.label}: {error}", where="search.similarity", fix="use classes, which any widths do for"
            ) from error

    def _teacher(self, number: int) -> tuple[NDArray[np.int64], Readout]:
        """A batch of training samples, and what the teacher shows of it with fresh weights."""
        while len(self._teachers) <= number:
            data, lab = self.prepared()
            lab = _initialised(lab, len(self._teachers))
            ids = choose(data.dataset, data.splits["train"], self._said.samples, lab.session.seed)
            teacher = lab.new_teacher(lab.main_teacher)
            teacher.module.to(lab.session.device)
            shown = read(teacher, lab.task, lab.store.gather(ids, teacher.reads, lab.session.device))
            self._teachers.append((ids, shown))
        return self._teachers[number]

    def student(self, candidate: Candidate) -> tuple[Student, NDArray[Any]]:
        """The candidate as it would be deployed, with fresh weights, and samples as its graph takes them."""
        data, lab = self.prepared(candidate.features)
        student = deployable(replace(lab, student=candidate.choice).new_student(), data, lab, {})
        raw = data.dataset.read(lab.student_modality, data.splits["train"][:_TIMED])
        return student, student.frontend.host(raw)


def _initialised(lab: Lab, number: int) -> Lab:
    """The lab with the weights of another seed."""
    return replace(lab, session=replace(lab.session, seed=lab.session.seed + number))
