"""``--dry-run``: what a run would do, and how much time, memory and disk it would take here."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table

from distill.lab import Lab
from distill.methods.base import Workload
from distill.networks.registry import Model
from distill.training.features import Batch
from distill.training.phase import Silent
from mst_edge.recipe import Recipe
from mst_edge.search.space import Space
from mst_edge.stages.data import Data, prepare
from mst_edge.stages.distill import checked_methods, make_lab, needs_teachers, pick_device
from targets.target import get_target, require_runtimes

_STEPS = 4
# Export, quantization, loading and measuring, per build; taken long enough for small students.
_SECONDS_PER_BUILD = 6.0
# Of a search, per candidate: its scores, and the blocks that no other had before.
_SECONDS_PER_RATING = 5.0


@dataclass(frozen=True)
class Step:
    """One step of the plan."""

    name: str
    what: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The whole plan: an estimate from a few measured training steps, not a promise."""

    steps: tuple[Step, ...]
    memory_mb: float
    disk_mb: float

    @property
    def seconds(self) -> float:
        """Total time."""
        return sum(step.seconds for step in self.steps)


def print_plan(recipe: Recipe, data_root: Path | None, device: str, *, as_json: bool) -> None:
    """Prints the plan. Writes nothing but the dataset and its features into the cache."""
    plan = make_plan(recipe, data_root, device)
    if as_json:
        typer.echo(json.dumps({**asdict(plan), "seconds": plan.seconds}))
        return
    table = Table(title=f"Plan for {recipe.name} (an estimate, from a few measured steps)")
    table.add_column("step")
    table.add_column("what")
    table.add_column("time", justify="right")
    for step in plan.steps:
        table.add_row(step.name, step.what, _clock(step.seconds))
    table.add_row("total", "", _clock(plan.seconds), style="bold")
    console = Console()
    console.print(table)
    console.print(f"memory: about {plan.memory_mb:.0f} MB; disk: about {plan.disk_mb:.0f} MB", highlight=False)


def make_plan(recipe: Recipe, data_root: Path | None, device: str) -> Plan:
    """Measures a few training steps of every network and adds up.

    Raises:
        UserError: as the run itself would.
    """
    targets = [get_target(name) for name in recipe.targets]
    require_runtimes(recipe.targets, recipe.measure.runtimes, "measure.runtimes")
    for target in targets:
        target.require_here()
    started = time.perf_counter()
    data = prepare(recipe, data_root)
    lab = make_lab(recipe, data, Path("dry-run"), pick_device(device), Silent())
    prepared = time.perf_counter() - started
    methods = checked_methods(recipe, lab)
    models = {"student": lab.new_student(), **{name: lab.new_teacher(name) for name in lab.teachers}}
    costs = {name: _cost(lab, model) for name, model in models.items()}
    work: list[Workload] = []
    if needs_teachers(methods):
        phases = lab.lone_phases(lab.main_teacher)
        work += [Workload(phase, lab.epochs.student, trained=[lab.main_teacher]) for phase in phases]
    for method in methods.values():
        work += method.workload()
    steps = [Step("data", f"{len(data.dataset)} samples, split and featurised (done now)", prepared)]
    steps += _search_steps(recipe, costs, len(data.splits["train"]))
    steps += [_training_step(phase, costs, len(data.splits["train"])) for phase in work]
    for target in targets:
        if not target.spec.on_host:
            steps.append(Step(f"deploy to {target.spec.name}", "models, packed to be built there", _SECONDS_PER_BUILD))
            continue
        chosen = target.chosen_runtimes(recipe.measure.runtimes)
        names = [name for name in chosen if target.runtime(name).probe().available]
        builds = 3 * len(names)
        steps.append(
            Step(
                f"deploy to {target.spec.name}",
                f"about {builds} builds with {', '.join(names)}",
                builds * _SECONDS_PER_BUILD,
            )
        )
    return Plan(tuple(steps), _peak_memory_mb(), _disk_mb(recipe, data, models))


def _cost(lab: Lab, model: Model) -> tuple[float, float]:
    """Seconds per sample of a training step, and of a forward pass; the median of a few."""
    ids = lab.store.splits["train"][: lab.session.batch_size]
    batch: Batch = lab.store.gather(ids, model.reads, lab.session.device)
    model.module.to(lab.session.device).train()
    optimizer = lab.optimizer.build([model.module]).optimizer
    train, forward = [], []
    for _ in range(_STEPS):
        start = time.perf_counter()
        with lab.session.autocast():
            loss = lab.task.loss(model(batch.inputs), batch.target)
        middle = time.perf_counter()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if lab.session.device.type == "cuda":
            torch.cuda.synchronize()
        train.append(time.perf_counter() - start)
        forward.append(middle - start)
    # The first step pays for set-up that the others don't.
    return sorted(train[1:])[_STEPS // 2 - 1] / len(ids), sorted(forward[1:])[_STEPS // 2 - 1] / len(ids)


def _training_step(work: Workload, costs: dict[str, tuple[float, float]], samples: int) -> Step:
    per_sample = sum(costs[name][0] for name in work.trained) + sum(costs[name][1] for name in work.forward)
    who = ", ".join(dict.fromkeys([*work.trained, *work.forward]))
    return Step(work.phase, f"{work.epochs} epochs of {samples} samples: {who}", work.epochs * samples * per_sample)


def _search_steps(recipe: Recipe, costs: dict[str, tuple[float, float]], samples: int) -> list[Step]:
    """Of a search, with the recipe's own student standing for all candidates."""
    if recipe.search is None:
        return []
    said, space = recipe.search, Space(recipe.search)
    rated, proved = min(len(space), said.candidates), min(len(space), said.prove.candidates)
    per_sample = costs["student"][0] + sum(cost[1] for name, cost in costs.items() if name != "student")
    seconds = rated * _SECONDS_PER_RATING + (said.finalists + proved) * _SECONDS_PER_BUILD
    what = f"{rated} of {len(space)} candidates rated, {proved} trained for {said.prove.epochs} epochs"
    return [Step("search", what, seconds + proved * said.prove.epochs * samples * per_sample)]


def _disk_mb(recipe: Recipe, data: Data, models: dict[str, Model]) -> float:
    """Test inputs, calibration samples, weights of every phase with their optimiser, and builds."""
    spec = data.dataset.modalities[recipe.student.modality]
    sample = spec.sample_bytes * (2 if spec.dtype == "int16" else 1)
    inputs = sample * (len(data.splits["test"]) + recipe.quantize.calibration.samples)
    weights = sum(4 * model.parameters for model in models.values()) * 4
    builds = 4 * models["student"].parameters * 8
    return (inputs + weights + builds) / 1e6


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
