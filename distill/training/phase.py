"""One phase of training: epochs over the training split, validation, best weights kept, exact resume."""

from __future__ import annotations

import contextlib
import math
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
from distill.training.schedules import ScheduledOptimizer
from mst_edge.core.errors import UserError
from mst_edge.core.files import read_json, write_json

EVAL_BATCH = 256
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
        bf16: autocast matrix products and convolutions to bfloat16.
    """

    folder: Path
    device: torch.device
    seed: int
    batch_size: int
    bf16: bool = False
    reporter: Reporter = field(default_factory=Silent)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def seed_for(self, *names: object) -> int:
        """A seed that depends on the session's seed and on ``names``, and on nothing else."""
        return zlib.crc32(repr((self.seed, *names)).encode())


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
    """

    name: str
    epochs: int
    modules: Mapping[str, nn.Module]
    optimizers: Sequence[ScheduledOptimizer]
    step: Callable[[Batch, int], Mapping[str, Tensor]]
    validate: Callable[[], Mapping[str, float]]
    keep_best: Mapping[str, Sequence[str]]
    reads: Sequence[str]


History = list[dict[str, float]]


def is_finished(folder: Path) -> bool:
    """Whether the phase that keeps its state in ``folder`` has ended."""
    return (folder / _FINAL).exists()


def run_phase(phase: Phase, store: FeatureStore, session: Session) -> History:
    """Trains, or continues, or loads what an earlier call finished; leaves the kept weights in the modules.

    Every epoch is seeded by itself and ends with a checkpoint, so a run that was killed at any moment
    ends with the same weights as one that was not (bit for bit on CPU).

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
    progress = _Progress()
    if checkpoint.exists():
        progress = _restore(phase, checkpoint)
    base_rates = [[group["lr"] for group in chosen.optimizer.param_groups] for chosen in phase.optimizers]
    session.reporter.begin(phase.name, phase.epochs, len(progress.history))
    for epoch in range(len(progress.history), phase.epochs):
        for chosen, rates in zip(phase.optimizers, base_rates, strict=True):
            for group, rate in zip(chosen.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * chosen.factor(epoch / phase.epochs)
        scalars = _train_epoch(phase, store, session, epoch) | dict(phase.validate())
        progress.add(phase, scalars)
        _save(phase, progress, checkpoint)
        session.reporter.epoch(phase.name, epoch, scalars)
    for name, (_, state) in progress.best.items():
        phase.modules[name].load_state_dict(state)
    write_json(folder / "history.json", progress.history)
    save_tensors(final, {name: copy_state(module) for name, module in phase.modules.items()}, {})
    checkpoint.unlink(missing_ok=True)
    for module in phase.modules.values():
        module.eval()
    return progress.history


@dataclass
class _Progress:
    history: History = field(default_factory=list)
    best: dict[str, tuple[list[float], State]] = field(default_factory=dict)

    def add(self, phase: Phase, scalars: dict[str, float]) -> None:
        self.history.append(scalars)
        for name, metrics in phase.keep_best.items():
            score = [scalars[metric] for metric in metrics]
            if name not in self.best or score < self.best[name][0]:
                self.best[name] = (score, copy_state(phase.modules[name]))


def _train_epoch(phase: Phase, store: FeatureStore, session: Session, epoch: int) -> dict[str, float]:
    torch.manual_seed(session.seed_for(phase.name, epoch, "noise"))
    for module in phase.modules.values():
        module.train()
    totals: dict[str, float] = {}
    count = 0
    seed = [session.seed_for(phase.name, "order"), epoch]
    for batch in store.shuffled("train", session.batch_size, seed, phase.reads, session.device):
        with session.autocast():
            losses = phase.step(batch, epoch)
        for chosen in phase.optimizers:
            chosen.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        for chosen in phase.optimizers:
            chosen.optimizer.step()
        size = len(batch.ids)
        count += size
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach()) * size
        if not math.isfinite(totals["loss"]):
            raise UserError(
                f"the loss is no longer finite in phase {phase.name}, epoch {epoch + 1}",
                where="distill.optimizer.lr",
                fix="lower the learning rate, or look for extreme values in the data",
            )
    for module in phase.modules.values():
        module.eval()
    return {name: total / count for name, total in totals.items()}


def _save(phase: Phase, progress: _Progress, path: Path) -> None:
    groups = {f"module.{name}": copy_state(module) for name, module in phase.modules.items()}
    groups |= {f"optimizer.{i}": optimizer_state(chosen.optimizer) for i, chosen in enumerate(phase.optimizers)}
    groups |= {f"best.{name}": state for name, (_, state) in progress.best.items()}
    facts = {"history": progress.history, "best": {name: value for name, (value, _) in progress.best.items()}}
    save_tensors(path, groups, facts)


def _restore(phase: Phase, path: Path) -> _Progress:
    groups, facts = load_tensors(path)
    _load(phase, {name.removeprefix("module."): state for name, state in groups.items()})
    for number, chosen in enumerate(phase.optimizers):
        restore_optimizer(chosen.optimizer, groups.get(f"optimizer.{number}", {}))
    best = {name: (value, groups[f"best.{name}"]) for name, value in facts["best"].items()}
    return _Progress(facts["history"], best)


def _load(phase: Phase, groups: Mapping[str, State]) -> None:
    for name, module in phase.modules.items():
        module.load_state_dict(groups[name])
        module.eval()


@torch.inference_mode()
def predict(model: Model, store: FeatureStore, split: str, session: Session) -> Tensor:
    """``(samples, outputs)`` float32 logits over a split, in the order of its ids, on the CPU."""
    return torch.cat(list(_logits(model, store, split, session)))


def _logits(model: Model, store: FeatureStore, split: str, session: Session) -> Iterator[Tensor]:
    model.module.to(session.device).eval()
    for batch in store.in_order(split, EVAL_BATCH, model.reads, session.device):
        with session.autocast():
            yield model(batch.inputs).float().cpu()
