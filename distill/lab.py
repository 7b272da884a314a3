"""Everything a distillation method needs: data, fresh students, trained teachers, cached logits."""

from __future__ import annotations

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

from distill.frozen import Answers, Frozen, Keeper, as_logits
from distill.networks.registry import Model, NetworkChoice, SelfTaught, build_model, pretrained_parameters
from distill.tasks import Task
from distill.teachers import TeacherFile
from distill.training.allocator import freed_memory_is_reused
from distill.training.features import Batch, FeatureStore
from distill.training.phase import History, Phase, Session, is_finished, predict, run_phase
from distill.training.schedules import SCHEDULES, ScheduledOptimizer
from mst_edge.core.errors import UserError

MULTIMODAL, UNIMODAL = "multimodal", "unimodal"
_OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}


@dataclass(frozen=True)
class OptimizerChoice:
    """Optimiser of every network; ``schedule`` is constant, or cosine over the epochs that the network is trained.

    ``pretrained_lr`` is for layers that started with weights of files, where ``build`` is given no rate of its own;
    None: they learn at ``lr`` like all others.
    """

    name: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"
    pretrained_lr: float | None = None

    def build(
        self, modules: Sequence[nn.Module], lr: float | None = None, span: tuple[float, float] = (0.0, 1.0)
    ) -> ScheduledOptimizer:
        """One optimiser over the modules' learnable parameters, for the part ``span`` of its schedule."""
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        own_rate = self.pretrained_lr is not None and lr is None
        apart = {id(p) for module in modules for p in pretrained_parameters(module)} if own_rate else set()
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if id(p) not in apart]},
            {"params": [p for p in parameters if id(p) in apart], "lr": self.pretrained_lr},
        ]
        extra = {"momentum": 0.9} if self.name == "sgd" else {}
        # All parameters in one kernel: a step takes a third of the time, on CPU and GPU.
        optimizer = _OPTIMIZERS[self.name](
            [group for group in groups if group["params"]],
            lr=lr or self.lr,
            weight_decay=self.weight_decay,
            fused=True,
            **extra,
        )
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


@dataclass(frozen=True)
class FineTuning:
    """How a trained student goes on learning, in a phase of its own.

    Attributes:
        phase: its name.
        lr: of Adam at the start; it falls to zero along a cosine.
    """

    phase: str
    epochs: int
    lr: float


Step = Callable[[Batch, int], Mapping[str, Tensor]]


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
        keep_gb: the cache keeps at most so much of what frozen networks say; 0 keeps nothing.
        keeper: what frozen networks say of samples.
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
    keep_gb: float = 8.0
    histories: dict[str, History] = field(default_factory=dict)
    _trained: dict[str, Model] = field(default_factory=dict)
    keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        """A keeper belongs to one session."""
        self.keeper = Keeper(self.store, self.session, int(self.keep_gb * 1e9))

    @property
    def main_teacher(self) -> str:
        """Name of the teacher that reads all that the data has; empty where there is no teacher."""
        return next(iter(self.teachers), "")

    def borrower(self, folder: Path) -> Lab:
        """A lab for one variant of a method: its phases are kept in ``folder``, lone-trained networks come from here.

        It trains no teacher: asked for one that this lab has not finished, it raises ``TeacherNeededError``.
        """
        return replace(self, session=replace(self.session, folder=folder), lender=self.session.folder, histories={})

    def new_student(self, choice: NetworkChoice | None = None) -> Model:
        """A student with the seed's initial weights: the same for every method.

        Args:
            choice: another network than the recipe's.
        """
        torch.manual_seed(self.session.seed_for("student"))
        return self._build("student", (self.student_modality,), choice or self.student, "student")

    def new_teacher(self, name: str) -> Model:
        """A teacher with the seed's initial weights."""
        reads, choice = self.teachers[name]
        torch.manual_seed(self.session.seed_for("teacher", name))
        return self._build(name, reads, choice, teacher_key(name))

    def _build(self, name: str, reads: tuple[str, ...], choice: NetworkChoice, where: str) -> Model:
        shapes = {modality: self.store.shapes[modality] for modality in reads}
        model = build_model(name, choice, shapes, self.task.num_outputs, where=where, map_size=self.task.map_size)
        if isinstance(model.module, SelfTaught):
            try:
                model.module.require_task(self.task)
            except UserError as error:
                place = f"{where}.options.{error.where}" if error.where else f"{where}.network"
                raise UserError(error.problem, where=place, fix=error.fix) from error
        return model

    def losses(self, model: Model, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A network's logits, and what it learns from by itself: the task's loss on these as ``loss``, or an objective
        of its own."""
        if isinstance(model.module, SelfTaught):
            return model.module.own_losses(model.taken(batch.inputs), batch.target, self.task)
        logits = model(batch.inputs)
        return logits, {"loss": self.task.loss(logits, batch.target)}

    def train_alone(self, name: str, model: Model, folder: Path | None = None) -> Model:
        """Trains one network on the task alone, or by its own objective; keeps the epoch with the lowest validation
        error.

        Args:
            folder: where the phase keeps its state; the session's where absent.
        """

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            return self.losses(model, batch)[1]

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

    def fine_tune(
        self,
        student: Model,
        tuning: FineTuning,
        step: Step | None = None,
        helpers: Mapping[str, nn.Module] | None = None,
        reads: Sequence[str] = (),
    ) -> None:
        """Trains a student further; it ends with the weights of its best validation epoch, or with those that it
        came with where no epoch is better.

        Args:
            step: losses of one batch by name; on the task alone where absent.
            helpers: modules by name that learn along.
            reads: modalities that ``step`` needs beside the student's.
        """

        def alone(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            return {"loss": self.task.loss(student(batch.inputs), batch.target)}

        modules = {"student": student.module, **(helpers or {})}
        self.run(
            Phase(
                name=tuning.phase,
                epochs=tuning.epochs,
                modules=modules,
                optimizers=[OptimizerChoice(lr=tuning.lr).build(list(modules.values()))],
                step=step or alone,
                validate=lambda: self.validate(student),
                keep_best={"student": ("val_error", "val_loss")},
                reads=sorted({*student.reads, *reads}),
                start_counts=True,
            )
        )

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
        with freed_memory_is_reused():
            self.histories[phase.name] = run_phase(phase, self.store, session)

    def logits(self, model: Model, split: str) -> Tensor:
        """``(samples, ...)`` logits over a split, all of them at once: not for dense tasks on large data."""
        return torch.cat(list(predict(model, self.store, split, self.session)))

    def evaluate(self, model: Model, split: str) -> dict[str, float]:
        """Metrics on a split."""
        meter = self.task.meter()
        for logits, target in self.answered(model, split):
            meter.add(logits, target)
        return meter.result()

    def statistics(self, model: Model, split: str) -> NDArray[np.float64]:
        """``(samples, n)`` what the task's scoring needs of each sample of a split."""
        scoring = self.task.scoring
        return np.concatenate(
            [
                scoring.statistics(scoring.answers(self.task.outputs(logits).numpy()), target.numpy())
                for logits, target in self.answered(model, split)
            ]
        )

    def answered(self, model: Model, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and targets of a split, batch by batch, on the CPU."""
        ids, start = self.store.splits[split], 0
        for logits in predict(model, self.store, split, self.session):
            yield logits, self.store.targets(ids[start : start + len(logits)])
            start += len(logits)

    def validate(self, model: Model, prefix: str = "val") -> dict[str, float]:
        """Metrics on the validation split, named ``<prefix>_<metric>``."""
        return {f"{prefix}_{name}": value for name, value in self.evaluate(model, "val").items()}

    def keeps_logits(self, reads: Sequence[str]) -> bool:
        """Whether what a frozen network says of these modalities is computed once, and not in every epoch again."""
        bytes_each = 4 if self.task.map_size is None else 2
        return self.keeper.keeps(math.prod(self.task.logits_shape) * bytes_each, reads)

    def frozen_logits(self, model: Model) -> Answers:
        """``(batch, outputs)`` logits of a frozen model, as the only tensor of its answers."""
        return self.keeper.answers(
            Frozen(model.name, lambda inputs: (as_logits(model(inputs)),), model.reads, [model.module])
        )


def teacher_key(name: str) -> str:
    """Where a recipe speaks of the teacher ``name``."""
    return f"teachers.{name}" if name in (MULTIMODAL, UNIMODAL) else f"teachers.cross_modal.{name}"


def freeze(model: Model) -> Model:
    """Puts a model in eval mode and stops gradients into its weights."""
    model.module.eval().requires_grad_(False)
    return model
