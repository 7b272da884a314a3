"""Times the three stages of MST-Distill, ours against a plain rendering of the published algorithm.

Both run in one process on the same data, taking turns: an epoch of ours, then a few steps of the rendering. Ours is
what a run does, checkpoints included, validated on 32 samples; of the rendering only its training steps are timed.
Peak memory is that of a process of its own per side. Networks are those of the AV-MNIST benchmark, with an image
student.

    python -m benchmarks.distill_speed

On a machine that others use, ``--clock cpu`` counts the seconds that one thread of this process computes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.runtime.bundle import memory_mb
from benchmarks.plain_mst import PlainMst
from distill.datasets.arrays import DatasetFile, ModalityFile, open_arrays, save_arrays
from distill.datasets.spec import Kind
from distill.frontends import frontend_options, make_frontend
from distill.lab import Epochs, Lab, OptimizerChoice, freeze
from distill.methods.mst import MstDistill
from distill.mst_options import MstOptions
from distill.networks.registry import NetworkChoice
from distill.tasks import Classification
from distill.training.allocator import reuse_freed_memory
from distill.training.features import Batch, FeatureStore
from distill.training.phase import Session, Silent

# Measured with the published code on 2 CPU cores, where a lone LeNet-5 trains at LONE samples/s.
PUBLISHED: Mapping[int, float] = {1: 13.6, 2: 4.8, 3: 4.8}
LONE = 3600.0
_VALIDATION = 32
Networks = Mapping[str, tuple[Sequence[str], str]]
NETWORKS: Networks = {
    "student": (("image",), "lenet5"),
    "multimodal": (("image", "audio"), "avmnist_teacher"),
    "audio": (("audio",), "avmnist_audio_cnn"),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        samples: training samples of ours in stages 1, 2 and 3.
        repeats: epochs of ours per stage, and turns of the rendering.
        steps: batches of the rendering per turn.
        side: height and width of the spectrogram; the benchmark's is 112.
    """

    samples: Sequence[int] = (640, 640, 2560)
    batch_size: int = 64
    repeats: int = 5
    steps: int = 1
    side: int = 112
    bf16: bool = False
    threads: int = 2
    clock: str = "wall"
    networks: Networks = field(default_factory=lambda: NETWORKS)

    def now(self) -> float:
        """Seconds by the chosen clock."""
        return time.process_time() if self.clock == "cpu" else time.perf_counter()


@dataclass(frozen=True)
class Turn:
    """One turn of both sides, in samples/s."""

    ours: float
    plain: float


def make_store(folder: Path, plan: Plan) -> FeatureStore:
    """Noise around one picture per class, in both modalities; written once."""
    if not folder.exists():
        _write(folder, plan)
    dataset = open_arrays(folder)
    fronts = {name: make_frontend(spec, frontend_options(spec.kind)()) for name, spec in dataset.modalities.items()}
    order = np.random.default_rng(1).permutation(len(dataset))
    return FeatureStore(dataset, {"train": order[: max(plan.samples)], "val": order[max(plan.samples) :]}, fronts)


def _write(folder: Path, plan: Plan) -> None:
    rng = np.random.default_rng(0)
    count = max(plan.samples) + _VALIDATION
    target = np.arange(count) % 10
    arrays = {"target": target}
    for name, side in (("image", 28), ("audio", plan.side)):
        means = rng.integers(64, 192, (10, side, side))
        noise = rng.integers(-60, 60, (count, side, side), dtype=np.int16)
        arrays[name] = np.clip(means[target] + noise, 0, 255).astype(np.uint8)
    about = DatasetFile(
        name="speed",
        classes=[str(digit) for digit in range(10)],
        modalities={name: ModalityFile(kind=Kind.IMAGE) for name in ("image", "audio")},
    )
    save_arrays(folder, arrays, about)


def first(store: FeatureStore, samples: int) -> FeatureStore:
    """The same features, the first ``samples`` of training."""
    some = copy.copy(store)
    some.splits = {**store.splits, "train": store.splits["train"][:samples]}
    return some


class TakesTurns(Silent):
    """After every epoch of ours, the rendering gets a turn; the first epoch of a phase warms up."""

    def __init__(self, samples: int, plain: Callable[[], float], now: Callable[[], float]) -> None:
        self._samples, self._plain, self._now = samples, plain, now
        self.turns: list[Turn] = []
        self._last = 0.0
        self.first_s = 0.0

    def begin(self, phase: str, epochs: int, done: int) -> None:
        self._last = self._now()

    def epoch(self, phase: str, epoch: int, scalars: Mapping[str, float]) -> None:
        seconds = self._now() - self._last
        if epoch == 0:
            self.first_s = seconds
            self._plain()
        else:
            self.turns.append(Turn(self._samples / seconds, self._plain()))
        self._last = self._now()


class Ours:
    """MST-Distill of this project on the benchmark's networks."""

    def __init__(self, store: FeatureStore, folder: Path, plan: Plan) -> None:
        self._store, self._folder, self._plan = store, folder, plan

    def stage(self, number: int, reporter: Silent) -> None:
        """Runs one stage, in a folder of its own, from fresh networks."""
        plan = self._plan
        store = first(self._store, plan.samples[number - 1])
        device = torch.device("cpu")
        session = Session(self._folder / f"stage{number}", device, 0, plan.batch_size, plan.bf16, reporter)
        networks = {name: (tuple(reads), NetworkChoice(network)) for name, (reads, network) in plan.networks.items()}
        _, own = networks.pop("student")
        lab = Lab(
            store=store,
            task=Classification(10),
            session=session,
            student_modality="image",
            student=own,
            teachers=networks,
            optimizer=OptimizerChoice(lr=1e-4, schedule="constant"),
            epochs=Epochs(*([plan.repeats + 1] * 3)),
        )
        method = MstDistill(lab, MstOptions())
        teachers = {name: lab.new_teacher(name) for name in networks}
        student = lab.new_student()
        if number == 1:
            method._collaborate(student, teachers)
            return
        for teacher in teachers.values():
            freeze(teacher)
        if number == 2:
            method._specialise(student, teachers)
        else:
            method._distill(student, method._fresh(teachers))


class Plain:
    """The rendering on the same samples."""

    def __init__(self, store: FeatureStore, plan: Plan, stage: int) -> None:
        torch.manual_seed(0)
        self._mst = PlainMst(store.shapes, 10, plan.networks, stage)
        self._store, self._plan, self._stage = store, plan, stage
        self._batches = self._endless()

    def turn(self) -> float:
        """A few steps; samples/s of what is counted, the step itself."""
        seconds = 0.0
        for _ in range(self._plan.steps):
            batch = next(self._batches)
            reuse_freed_memory(False)  # what our own training sets for its time is not for the rendering
            start = self._plan.now()
            self._mst.step(self._stage, batch.inputs, batch.target)
            seconds += self._plan.now() - start
            reuse_freed_memory(True)
        return self._plan.steps * self._plan.batch_size / seconds

    def _endless(self) -> Iterator[Batch]:
        order = ("train", self._plan.batch_size, [0], ("audio", "image"), torch.device("cpu"))
        while True:
            yield from self._store.shuffled(*order)


@dataclass(frozen=True)
class Result:
    """One stage: turns, seconds that ours spends once before its second epoch, and peak memory per side in MB."""

    stage: int
    turns: Sequence[Turn]
    once_s: float
    memory_mb: tuple[float, float]

    def row(self, machine: float) -> str:
        """A line of the table; ``machine`` is this machine's speed over that of the published figures."""
        ours, plain = (
            statistics.median(values) for values in zip(*((t.ours, t.plain) for t in self.turns), strict=True)
        )
        ratios = sorted(turn.ours / turn.plain for turn in self.turns)
        expected = PUBLISHED[self.stage] * machine
        own, other = self.memory_mb
        cells = [
            str(self.stage),
            f"{ours:,.1f}",
            f"{plain:,.1f}",
            f"**{statistics.median(ratios):,.1f}** ({ratios[0]:,.1f} to {ratios[-1]:,.1f})",
            f"{plain / expected:.2f}",
            f"{self.once_s:.1f} s",
            f"{own:,.0f} MB",
            f"{other:,.0f} MB",
            f"1/{other / own:.1f}",
        ]
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| stage | ours, samples/s | plain, samples/s | ratio (least to most) | plain / published here | ours, once "
    "| ours, peak | plain, peak | memory |\n|---|---|---|---|---|---|---|---|---|"
)


def measure(plan: Plan, folder: Path, stages: Sequence[int]) -> Iterator[Result]:
    """Times every stage, both sides in turns, then each side's memory in a process of its own."""
    store = make_store(folder / "data", plan)
    for stage in stages:
        watch = TakesTurns(plan.samples[stage - 1], Plain(store, plan, stage).turn, plan.now)
        Ours(store, folder / "timed", plan).stage(stage, watch)
        epoch_s = plan.samples[stage - 1] / statistics.median(turn.ours for turn in watch.turns)
        memory = tuple(_memory_mb(plan, folder, stage, side) for side in ("ours", "plain"))
        yield Result(stage, watch.turns, max(0.0, watch.first_s - epoch_s), (memory[0], memory[1]))


def lone_speed(plan: Plan) -> float:
    """Samples/s of a LeNet-5 that trains alone, as the published code lays it out: the median of a few turns."""
    shapes, data = {"image": (1, 28, 28)}, torch.randn(plan.batch_size, 1, 28, 28)
    alone = PlainMst(shapes, 10, {"student": plan.networks["student"]}, 1)
    target = torch.arange(plan.batch_size) % 10
    speeds = []
    for _ in range(plan.repeats + 1):
        start = plan.now()
        for _ in range(10):
            alone.collaborate({"image": data}, target)
        speeds.append(10 * plan.batch_size / (plan.now() - start))
    return statistics.median(speeds[1:])


def _memory_mb(plan: Plan, folder: Path, stage: int, side: str) -> float:
    request = json.dumps(
        {"plan": asdict(replace(plan, repeats=1)), "folder": str(folder), "stage": stage, "side": side}
    )
    command = [sys.executable, "-m", "benchmarks.distill_speed", "--one-side", request]
    # A cache of its own: what ours computes once counts too.
    environment = {**os.environ, "MST_EDGE_CACHE": str(folder / f"cache-{side}-{stage}")}
    here = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here, env=environment)
    return float(done.stdout.split()[-1])


def _one_side(request: Mapping[str, Any]) -> None:
    """Two epochs of ours, or two steps of the rendering; prints this process's peak memory in MB."""
    plan, folder = Plan(**request["plan"]), Path(request["folder"])
    torch.set_num_threads(plan.threads)
    store = make_store(folder / "data", plan)
    if request["side"] == "ours":
        Ours(store, folder / "alone", plan).stage(request["stage"], Silent())
    else:
        plain = Plain(store, plan, request["stage"])
        plain.turn()
        plain.turn()
    # Not getrusage: what that tells of a child begins with the parent's peak.
    print(memory_mb()["peak"])


def main(arguments: Sequence[str] | None = None, networks: Networks = NETWORKS) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="1,2,3", help="which to time")
    parser.add_argument("--samples", default="640,640,2560", help="training samples of ours in stages 1, 2 and 3")
    parser.add_argument("--repeats", type=int, default=5, help="turns per stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--side", type=int, default=112, help="height and width of the spectrogram")
    parser.add_argument("--threads", type=int, default=2, help="with --clock cpu: 1")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours")
    parser.add_argument("--one-side", help=argparse.SUPPRESS)
    said = parser.parse_args(arguments)
    if said.one_side:
        _one_side(json.loads(said.one_side))
        return
    samples = tuple(int(count) for count in said.samples.split(","))
    plan = Plan(
        samples=samples,
        batch_size=said.batch_size,
        repeats=said.repeats,
        side=said.side,
        bf16=said.precision == "bf16",
        threads=1 if said.clock == "cpu" else said.threads,
        clock=said.clock,
        networks=networks,
    )
    torch.set_num_threads(plan.threads)
    lone = lone_speed(plan)
    print(f"lone LeNet-5: {lone:,.0f} samples/s, {lone / LONE:.2f} of the machine of the published figures")
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is read that an earlier measurement kept.
        os.environ["MST_EDGE_CACHE"] = str(Path(folder) / "cache")
        print(HEAD)
        for result in measure(plan, Path(folder), [int(stage) for stage in said.stages.split(",")]):
            print(result.row(lone / LONE), flush=True)


if __name__ == "__main__":
    main()
