"""One phase of training: epochs over the training split, validation, best weights kept, exact resume."""

from __future__ import annotations

import contextlib
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distill.networks.registry import Model
from distill.training.checkpoint import (
    State,
    copy_state,
    load_tensors,
    optimizer_state,
    restore_optimizer,
    save_tensors,
)
from distill.training.features import Batch, FeatureStore
from distill.training.parallel import ALONE, Processes, SharedStatistics
from distill.training.schedules import ScheduledOptimizer
from mst_edge.core.errors import UserError
from mst_edge.core.files import read_json, write_json

EVAL_BATCH = 64  # more is no faster on a CPU, and takes that much more memory
_FINAL = "final.safetensors"


class Reporter(Protocol):
    """Who is told how training goes: progress bars, TensorBoard, a log."""

    def begin(self, phase: str, epochs: int, done: int) -> None:
        """A phase starts, ``done`` of its epochs already behind it."""

    def epoch(self, phase: str, epoch: int, scalars: Mapping[str, float]) -> None:
        """An epoch (0-based) ended with these mean losses and validation metrics."""


class Silent:
    """A reporter that tells nobody."""

    def begin(self, phase: str, epochs: int, done: int) -> None: ...

    def epoch(self, phase: str, epoch: int, scalars: Mapping[str, float]) -> None: ...


@dataclass(frozen=True)
class Session:
    """Where and how training runs.

    Attributes:
        folder: where phases keep their state.
        seed: of initialisation, shuffling and dropout; the data split has its own.
        batch_size: samples per step of the optimiser, over all processes and parts.
        bf16: autocast matrix products and convolutions to bfloat16.
        processes: who trains together; all of them see the same ``folder``, the first one writes.
        accumulate: parts that a batch is cut into, computed one after another, to save memory.
        checkpoint_minutes: training between two checkpoints inside an epoch; every epoch ends with one.
    """

    folder: Path
    device: torch.device
    seed: int
    batch_size: int
    bf16: bool = False
    reporter: Reporter = field(default_factory=Silent)
    processes: Processes = ALONE
    accumulate: int = 1
    checkpoint_minutes: float = 10.0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def seed_for(self, *names: object) -> int:
        """A seed that depends on the session's seed and on ``names``, and on nothing else."""
        return zlib.crc32(repr((self.seed, *names)).encode())

    def seed_noise(self, *names: object) -> None:
        """Seeds dropout and its like by ``names``, in every process differently."""
        seed = self.seed_for(*names, *([self.processes.rank] if self.processes.rank else []))
        # Not torch.manual_seed: without CUDA it takes a hundred times as long, which shows in every step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)


@dataclass
class Phase:
    """What one phase trains and how.

    Attributes:
        modules: what learns; saved, restored, and in train mode while a step runs.
        step: losses of one batch by name; ``loss`` is minimised, the rest is logged.
        validate: metrics after each epoch, with all modules in eval mode.
        keep_best: module name to the validation metrics (lower is better; later ones break ties) that
            decide which epoch's weights it ends with; modules not named here keep their last weights.
        reads: modalities that a batch must hold.
        start_counts: whether the weights that it begins with are one of the choices of ``keep_best``.
    """

    name: str
    epochs: int
    modules: Mapping[str, nn.Module]
    optimizers: Sequence[ScheduledOptimizer]
    step: Callable[[Batch, int], Mapping[str, Tensor]]
    validate: Callable[[], Mapping[str, float]]
    keep_best: Mapping[str, Sequence[str]]
    reads: Sequence[str]
    start_counts: bool = False


History = list[dict[str, float]]


def is_finished(folder: Path) -> bool:
    """Whether the phase that keeps its state in ``folder`` has ended."""
    return (folder / _FINAL).exists()


def run_phase(phase: Phase, store: FeatureStore, session: Session) -> History:
    """Trains, or continues, or loads what an earlier call finished; leaves the kept weights in the modules.

    Every step is seeded by itself, and a checkpoint says which step is next, so a run that was killed at any
    moment ends with the same weights as one that was not (bit for bit on CPU), also with another number of
    processes (up to the rounding of sums, and without dropout).

    Returns:
        One dict of scalars per epoch.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    folder = session.folder / phase.name
    final, checkpoint = folder / _FINAL, folder / "checkpoint.safetensors"
    for module in phase.modules.values():
        module.to(session.device)
    if is_finished(folder):
        groups, _ = load_tensors(final)
        _load(phase, groups)
        history: History = read_json(folder / "history.json")
        session.reporter.begin(phase.name, phase.epochs, phase.epochs)
        return history
    if checkpoint.exists():
        progress = _restore(phase, checkpoint)
    else:
        progress = _Progress()
        if phase.start_counts:
            progress.keep_best(phase, session.processes.agree(_at_start(phase)))
    training = _Training(phase, store, session, progress, checkpoint)
    session.reporter.begin(phase.name, phase.epochs, len(progress.history))
    for epoch in range(len(progress.history), phase.epochs):
        scalars = training.epoch(epoch) | session.processes.agree(phase.validate())
        progress.add(phase, scalars)
        training.save()
        session.reporter.epoch(phase.name, epoch, scalars)
    for name, (_, state) in progress.best.items():
        phase.modules[name].load_state_dict(state)
    if session.processes.first:
        write_json(folder / "history.json", progress.history)
        save_tensors(final, {name: copy_state(module) for name, module in phase.modules.items()}, {})
        checkpoint.unlink(missing_ok=True)
    session.processes.wait()  # whoever asks for this phase again must find it finished
    for module in phase.modules.values():
        module.eval()
    return progress.history


def _at_start(phase: Phase) -> Mapping[str, float]:
    for module in phase.modules.values():
        module.eval()
    return phase.validate()


@dataclass
class _Progress:
    """What is behind: whole epochs, and of the next one ``steps`` with the sums of their losses."""

    history: History = field(default_factory=list)
    best: dict[str, tuple[list[float], State]] = field(default_factory=dict)
    steps: int = 0
    samples: int = 0
    totals: dict[str, float] = field(default_factory=dict)

    def count(self, losses: Mapping[str, float], samples: int) -> None:
        """One more step."""
        self.steps, self.samples = self.steps + 1, self.samples + samples
        for name, value in losses.items():
            self.totals[name] = self.totals.get(name, 0.0) + value * samples

    def end_epoch(self) -> dict[str, float]:
        """Mean losses of the epoch."""
        means = {name: total / self.samples for name, total in self.totals.items()}
        self.steps, self.samples, self.totals = 0, 0, {}
        return means

    def add(self, phase: Phase, scalars: dict[str, float]) -> None:
        self.history.append(scalars)
        self.keep_best(phase, scalars)

    def keep_best(self, phase: Phase, scalars: Mapping[str, float]) -> None:
        """Keeps the modules' weights where these metrics are their best so far."""
        for name, metrics in phase.keep_best.items():
            score = [scalars[metric] for metric in metrics]
            if name not in self.best or score < self.best[name][0]:
                self.best[name] = (score, copy_state(phase.modules[name]))


class _Training:
    """Steps, epochs and checkpoints of one phase."""

    def __init__(
        self, phase: Phase, store: FeatureStore, session: Session, progress: _Progress, checkpoint: Path
    ) -> None:
        self._phase, self._store, self._session = phase, store, session
        self._progress, self._checkpoint = progress, checkpoint
        self._rates = [[group["lr"] for group in chosen.optimizer.param_groups] for chosen in phase.optimizers]
        self._parameters = [
            parameter
            for chosen in phase.optimizers
            for group in chosen.optimizer.param_groups
            for parameter in group["params"]
        ]
        self._losses: dict[str, Tensor] = {}
        self._samples = 0
        self._saved = time.monotonic()

    def epoch(self, epoch: int) -> dict[str, float]:
        """Trains what is left of an epoch; mean losses over all of it."""
        phase, session = self._phase, self._session
        for chosen, rates in zip(phase.optimizers, self._rates, strict=True):
            for group, rate in zip(chosen.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * chosen.factor(epoch / phase.epochs)
        for module in phase.modules.values():
            module.train()
        batches = self._store.shuffled(
            "train",
            session.batch_size,
            [session.seed_for(phase.name, "order"), epoch],
            phase.reads,
            session.device,
            processes=session.processes,
            accumulate=session.accumulate,
            skip=self._progress.steps,
        )
        for batch in batches:
            if not self._samples:
                session.seed_noise(phase.name, epoch, self._progress.steps, "noise")
            self._backward(batch, epoch)
            if batch.ends_step:
                self._step(epoch)
        for module in phase.modules.values():
            module.eval()
        return self._progress.end_epoch()

    def _backward(self, batch: Batch, epoch: int) -> None:
        """Adds one part of a batch to the gradients."""
        shared = SharedStatistics() if batch.rows else contextlib.nullcontext()
        with self._session.autocast(), shared:
            losses = self._phase.step(batch, epoch)
        (losses["loss"] * batch.weight).backward()  # type: ignore[no-untyped-call]
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + value.detach().float() * batch.weight
        self._samples += sum(batch.rows) or len(batch.ids)

    def _step(self, epoch: int) -> None:
        """One step of every optimiser, once the whole batch is in the gradients."""
        mine = torch.stack(list(self._losses.values()))
        losses = self._session.processes.average(self._parameters, mine).tolist()
        for chosen in self._phase.optimizers:
            chosen.optimizer.step()
            chosen.optimizer.zero_grad(set_to_none=True)
        self._progress.count(dict(zip(self._losses, losses, strict=True)), self._samples)
        self._losses, self._samples = {}, 0
        if not math.isfinite(self._progress.totals["loss"]):
            raise UserError(
                f"the loss is no longer finite in phase {self._phase.name}, epoch {epoch + 1}",
                where="distill.optimizer.lr",
                fix="lower the learning rate, or look for extreme values in the data",
            )
        if time.monotonic() - self._saved >= 60 * self._session.checkpoint_minutes:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint, from which any number of processes may go on."""
        if self._session.processes.first:
            _save(self._phase, self._progress, self._checkpoint)
        self._saved = time.monotonic()


def _save(phase: Phase, progress: _Progress, path: Path) -> None:
    groups = {f"module.{name}": copy_state(module) for name, module in phase.modules.items()}
    groups |= {f"optimizer.{i}": optimizer_state(chosen.optimizer) for i, chosen in enumerate(phase.optimizers)}
    groups |= {f"best.{name}": state for name, (_, state) in progress.best.items()}
    facts = {
        **{name: getattr(progress, name) for name in ("history", "steps", "samples", "totals")},
        "best": {name: value for name, (value, _) in progress.best.items()},
    }
    save_tensors(path, groups, facts)


def _restore(phase: Phase, path: Path) -> _Progress:
    groups, facts = load_tensors(path)
    _load(phase, {name.removeprefix("module."): state for name, state in groups.items()})
    for number, chosen in enumerate(phase.optimizers):
        restore_optimizer(chosen.optimizer, groups.get(f"optimizer.{number}", {}))
    best = {name: (value, groups[f"best.{name}"]) for name, value in facts["best"].items()}
    return _Progress(**{**facts, "best": best})


def _load(phase: Phase, groups: Mapping[str, State]) -> None:
    for name, module in phase.modules.items():
        module.load_state_dict(groups[name])
        module.eval()


@torch.inference_mode()
def predict(model: Model, store: FeatureStore, split: str, session: Session) -> Iterator[Tensor]:
    """``(B, ...)`` float32 logits of batch after batch of a split, in the order of its ids, on the CPU of every
    process."""
    model.module.to(session.device).eval()
    for batch in store.in_order(split, EVAL_BATCH, model.reads, session.device, processes=session.processes):
        with session.autocast():
            own = model(batch.inputs).float().cpu()
        yield batch.gather(own)
