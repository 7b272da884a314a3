"""Everything a distillation method needs: data, fresh students, trained teachers, cached logits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from distill.networks.registry import Model, NetworkChoice, build_model
from distill.suffix import SplitModel, has_one_row_per_sample, row_bytes, split_at
from distill.tasks import Task
from distill.teachers import TeacherFile
from distill.training.features import Batch, FeatureStore
from distill.training.phase import History, Phase, Session, is_finished, predict, run_phase
from distill.training.schedules import SCHEDULES, ScheduledOptimizer

MULTIMODAL, UNIMODAL = "multimodal", "unimodal"
_MOST_KEPT_BYTES = 256 << 20
_OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


Below = tuple[SplitModel, list[Tensor]]


@dataclass(frozen=True)
class FrozenLogits:
    """Logits of something that no longer learns, for batches of training or validation samples.

    Attributes:
        reads: modalities that a batch must hold; none where the logits are kept.
    """

    reads: tuple[str, ...]
    _compute: Callable[[Batch], Tensor]
    _context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """``(B, ...)`` float32."""
        with self._context():
            return self._compute(batch).float()


@dataclass(frozen=True)
class OptimizerChoice:
    """Optimiser of every network; ``schedule`` is constant, or cosine over the epochs that the network is trained."""

    name: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"

    def build(
        self, modules: Sequence[nn.Module], lr: float | None = None, span: tuple[float, float] = (0.0, 1.0)
    ) -> ScheduledOptimizer:
        """One optimiser over the modules' learnable parameters, for the part ``span`` of its schedule."""
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        extra = {"momentum": 0.9} if self.name == "sgd" else {}
        optimizer = _OPTIMIZERS[self.name](parameters, lr=lr or self.lr, weight_decay=self.weight_decay, **extra)
        return ScheduledOptimizer(optimizer, SCHEDULES[self.schedule], span)


@dataclass(frozen=True)
class Epochs:
    """Budget. Every method's student sees ``collaborate + distill`` epochs, whatever its stages."""

    collaborate: int = 20
    masks: int = 10
    distill: int = 20

    @property
    def student(self) -> int:
        """Epochs that a student of any method is trained for."""
        return self.collaborate + self.distill

    @property
    def share_of_collaboration(self) -> float:
        """The part of a student's epochs that collaboration takes, in [0, 1]."""
        return self.collaborate / self.student

    def part_of_student(self, share: float) -> int:
        """Epochs of a stage that takes ``share`` of a student's: at least one, and not all of them."""
        return min(max(1, round(share * self.student)), self.student - 1)


class TeacherNeededError(Exception):
    """A method asked for a teacher that a lab may not train itself."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass
class Lab:
    """One data split, one seed, one student modality; trains what methods ask for, each thing once.

    Attributes:
        teachers: name to the modalities a teacher reads and its network: ``multimodal`` and one
            cross-modal teacher per other modality, named after it; or, where the data has one modality,
            ``unimodal``, an ordinary larger teacher. The first is the main one, which every run trains.
        pretrained: teachers that are loaded in place of being trained, by name.
        lender: the folder whose lone-trained networks are used, where that is not the session's own.
    """

    store: FeatureStore
    task: Task
    session: Session
    student_modality: str
    student: NetworkChoice
    teachers: Mapping[str, tuple[tuple[str, ...], NetworkChoice]]
    optimizer: OptimizerChoice
    epochs: Epochs
    pretrained: Mapping[str, TeacherFile] = field(default_factory=dict)
    lender: Path | None = None
    histories: dict[str, History] = field(default_factory=dict)
    _trained: dict[str, Model] = field(default_factory=dict)
    _logits: dict[str, Tensor] = field(default_factory=dict)

    @property
    def main_teacher(self) -> str:
        """Name of the teacher that reads all that the data has; empty where there is no teacher."""
        return next(iter(self.teachers), "")

    def borrower(self, folder: Path) -> Lab:
        """A lab for one variant of a method: its phases are kept in ``folder``, lone-trained networks come from here.

        It trains no teacher: asked for one that this lab has not finished, it raises ``TeacherNeededError``.
        """
        return replace(
            self, session=replace(self.session, folder=folder), lender=self.session.folder, histories={}, _logits={}
        )

    def new_student(self) -> Model:
        """A student with the seed's initial weights: the same for every method."""
        torch.manual_seed(self.session.seed_for("student"))
        return self._build("student", (self.student_modality,), self.student, "student")

    def new_teacher(self, name: str) -> Model:
        """A teacher with the seed's initial weights."""
        reads, choice = self.teachers[name]
        torch.manual_seed(self.session.seed_for("teacher", name))
        return self._build(name, reads, choice, teacher_key(name))

    def _build(self, name: str, reads: tuple[str, ...], choice: NetworkChoice, where: str) -> Model:
        shapes = {modality: self.store.shapes[modality] for modality in reads}
        return build_model(name, choice, shapes, self.task.num_outputs, where=where, map_size=self.task.map_size)

    def train_alone(self, name: str, model: Model, folder: Path | None = None) -> Model:
        """Trains one network on the task alone; keeps the epoch with the lowest validation loss.

        Args:
            folder: where the phase keeps its state; the session's where absent.
        """

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            return {"loss": self.task.loss(model(batch.inputs), batch.target)}

        self.run(
            Phase(
                name=name,
                epochs=self.epochs.student,
                modules={name: model.module},
                optimizers=[self.optimizer.build([model.module])],
                step=step,
                validate=lambda: self.validate(model),
                keep_best={name: ("val_error", "val_loss")},
                reads=model.reads,
            ),
            folder,
        )
        return model

    def trained_teacher(self, name: str) -> Model:
        """The teacher ``name`` trained alone on the task, frozen; loaded or trained at the first call.

        Raises:
            TeacherNeededError: this lab borrows its teachers, and ``name`` is not finished.
            UserError: the weights that the recipe names do not fit the network.
        """
        if name not in self._trained and name in self.pretrained:
            where = f"{teacher_key(name)}.weights"
            self._trained[name] = freeze(self.pretrained[name].load_into(self.new_teacher(name), where))
        if name not in self._trained:
            phase = f"lone_{name}"
            if self.lender is not None and not is_finished(self.lender / phase):
                raise TeacherNeededError(name)
            self._trained[name] = freeze(self.train_alone(phase, self.new_teacher(name), self.lender))
        return self._trained[name]

    def lone_teachers(self) -> dict[str, Model]:
        """Teachers that were trained alone so far, by name; not those that came trained."""
        return {name: self._trained[name] for name in self.teachers if name in self._trained.keys() - self.pretrained}

    def lone_phases(self, name: str) -> list[str]:
        """The phase in which the teacher ``name`` is trained alone; none where it comes trained."""
        return [] if name in self.pretrained else [f"lone_{name}"]

    def learning_teacher(self, name: str) -> Model:
        """A copy of the lone-trained teacher ``name`` that may go on learning."""
        model = self.new_teacher(name)
        model.module.load_state_dict(self.trained_teacher(name).module.state_dict())
        return model

    def lone_student(self) -> Model:
        """The student trained alone on the task."""
        if "student" not in self._trained:
            self._trained["student"] = self.train_alone("lone_student", self.new_student(), self.lender)
        return self._trained["student"]

    def run(self, phase: Phase, folder: Path | None = None) -> None:
        """Runs a phase and keeps its history; its state lies in ``folder``, or in the session's."""
        session = self.session if folder is None else replace(self.session, folder=folder)
        self.histories[phase.name] = run_phase(phase, self.store, session)

    def logits(self, model: Model, split: str) -> Tensor:
        """``(samples, ...)`` logits over a split, all of them at once: not for dense tasks on large data."""
        return torch.cat(list(predict(model, self.store, split, self.session)))

    def evaluate(self, model: Model, split: str) -> dict[str, float]:
        """Metrics on a split."""
        meter = self.task.meter()
        for logits, target in self._answered(model, split):
            meter.add(logits, target)
        return meter.result()

    def statistics(self, model: Model, split: str) -> NDArray[np.float64]:
        """``(samples, n)`` what the task's scoring needs of each sample of a split."""
        scoring = self.task.scoring
        return np.concatenate(
            [
                scoring.statistics(scoring.answers(self.task.outputs(logits).numpy()), target.numpy())
                for logits, target in self._answered(model, split)
            ]
        )

    def _answered(self, model: Model, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and targets of a split, batch by batch, on the CPU."""
        ids, start = self.store.splits[split], 0
        for logits in predict(model, self.store, split, self.session):
            yield logits, self.store.targets(ids[start : start + len(logits)])
            start += len(logits)

    def validate(self, model: Model, prefix: str = "val") -> dict[str, float]:
        """Metrics on the validation split, named ``<prefix>_<metric>``."""
        return {f"{prefix}_{name}": value for name, value in self.evaluate(model, "val").items()}

    def cached_logits(
        self, key: str, compute: Callable[[Mapping[str, Tensor]], Tensor], reads: Sequence[str]
    ) -> Tensor:
        """``(all samples, ...)`` of a frozen function on train and validation samples, computed once.

        Rows of test samples are NaN: no method may look at them. Dense logits are kept in float16.
        """
        if key not in self._logits:
            self._logits[key] = self._fill(compute, reads)
        return self._logits[key]

    @torch.no_grad()
    def _fill(self, compute: Callable[[Mapping[str, Tensor]], Tensor], reads: Sequence[str]) -> Tensor:
        shape = (len(self.store.dataset), *self.task.logits_shape)
        table = torch.full(shape, float("nan"), dtype=self._kept_type)
        for split in ("train", "val"):
            for batch in self.store.in_order(split, 256, reads, self.session.device):
                with self.session.autocast():
                    table[batch.ids] = compute(batch.inputs).to(self._kept_type).cpu()
        return table

    @property
    def _kept_type(self) -> torch.dtype:
        """Of tables of logits: a rounding of 2^-11 is far below what teachers know of a pixel."""
        return torch.float32 if self.task.map_size is None else torch.float16

    @property
    def keeps_logits(self) -> bool:
        """Whether frozen logits are computed once, and not in every epoch again."""
        return self.can_keep(math.prod(self.task.logits_shape) * self._kept_type.itemsize)

    def frozen_logits(
        self, key: str, compute: Callable[[Mapping[str, Tensor]], Tensor], reads: Sequence[str]
    ) -> FrozenLogits:
        """A frozen function's logits batch by batch: from a table where that takes 256 MB or less, else computed
        again each time. ``key`` names it."""
        if self.keeps_logits:
            table = self.cached_logits(key, compute, reads)
            return FrozenLogits((), lambda batch: table[batch.ids].to(self.session.device))
        return FrozenLogits(tuple(reads), lambda batch: compute(batch.inputs), self.session.autocast)

    @torch.no_grad()
    def keep_below(self, model: Model, layer: str) -> Below | None:
        """Splits a frozen model at a layer and computes what lies below it once for every sample.

        Returns:
            The split model and, per tensor, ``(all samples, ...)``; rows of test samples are zero. None
            where the model cannot be split, or where keeping it would take more than 256 MB.
        """
        split = split_at(model, layer)
        tables = None if split is None else self.keep(split.before, model.reads)
        return None if split is None or tables is None else (split, tables)

    @torch.no_grad()
    def keep(
        self, compute: Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]], reads: Sequence[str]
    ) -> list[Tensor] | None:
        """What a frozen function gives for train and validation samples, computed once.

        Returns:
            Per tensor, ``(all samples, ...)``; rows of test samples are zero. None where an output has
            not one row per sample, or where keeping them would take more than 256 MB.
        """
        tables: list[Tensor] = []
        for part in ("train", "val"):
            for batch in self.store.in_order(part, 256, reads, self.session.device):
                with self.session.autocast():
                    rows = compute(batch.inputs)
                if not has_one_row_per_sample(rows, len(batch.ids)):
                    return None
                if not tables:
                    if not self.can_keep(row_bytes(rows)):
                        return None
                    tables = [row.new_zeros(len(self.store.dataset), *row.shape[1:], device="cpu") for row in rows]
                for table, row in zip(tables, rows, strict=True):
                    table[batch.ids] = row.cpu()
        return tables

    def can_keep(self, bytes_per_sample: int) -> bool:
        """Whether ``keep`` would keep that much of every sample."""
        return bytes_per_sample * len(self.store.dataset) <= _MOST_KEPT_BYTES


def teacher_key(name: str) -> str:
    """Where a recipe speaks of the teacher ``name``."""
    return f"teachers.{name}" if name in (MULTIMODAL, UNIMODAL) else f"teachers.cross_modal.{name}"


def freeze(model: Model) -> Model:
    """Puts a model in eval mode and stops gradients into its weights."""
    model.module.eval().requires_grad_(False)
    return model
