"""The build that our gate chose against what a user has without it: latency side by side, and how far from the peak.

    python -m benchmarks.runtimes --run RUN... [--out FOLDER] [--seconds 6]

For every finished run: the chosen build, and the fp32 student in torch, torch.compile, ONNX Runtime and OpenVINO with
their defaults (`benchmarks/contestants.py`) and in ExecuTorch with XNNPACK. All in processes of their own, with the
recipe's number of threads, in turns; every one answers the whole test split. `x` is how many times as long as ours one
takes at p50, with its 95 % interval: below 1 it beats us. The roofline is what this CPU is measured to do in a large
convolution in the arithmetic of our build (`benchmarks/peak.py`), or what memory gives, whichever takes longer for
the student's operations and its model file; so it takes what a cache holds for slow.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestants import registered
from benchmarks.peak import Peak, measured_peak
from distill.student import Student, load_student
from mst_edge.core.files import write_json
from mst_edge.core.provenance import provenance
from mst_edge.core.scoring import Predictions, scoring_of
from mst_edge.core.stats import Interval
from mst_edge.recipe import load_recipe
from mst_edge.run_folder import RunFolder
from mst_edge.stages.distill import load_predictions
from quantize.export import export_student, with_program
from quantize.variant import Variant
from targets.gate import Goals, accuracy_limits, compare_accuracy
from targets.measure import QUICK, Measurement, measure, speedup
from targets.spec import Build, load_build

OURS = "ours"
# What our runner may add to the runtime's own call.
_MOST_OVERHEAD_US, _MOST_OVERHEAD = 20.0, 0.05


@dataclass(frozen=True)
class Row:
    """A contender beside our build; ``slower`` is how many times as long it takes."""

    name: str
    accuracy: float
    holds: bool
    p50_ms: float
    p90_ms: float
    slower: Interval


@dataclass(frozen=True)
class Result:
    """One run's result.

    Attributes:
        operations: of one inference, multiplications and additions.
        roofline: share of our p50 that the peak alone would take.
        overhead_us: of our runner, beyond the runtime's call.
    """

    title: str
    build: str
    rows: tuple[Row, ...]
    operations: float
    giga_per_s: float
    roofline: float
    overhead_us: float
    noise: str
    absent: tuple[str, ...]

    @property
    def beaten_by(self) -> list[str]:
        """Contenders within the accuracy goal that are faster beyond noise."""
        return [row.name for row in self.rows if row.holds and row.slower.high < 1]

    @property
    def overhead_holds(self) -> bool:
        """Whether the runner adds no more than it may."""
        ours = next(row for row in self.rows if row.name == OURS)
        return self.overhead_us <= max(_MOST_OVERHEAD_US, _MOST_OVERHEAD * 1e3 * ours.p50_ms)


def contest(folder: Path, peak: Callable[[int], Peak], seconds: float) -> Result:
    """Measures one run's chosen build for target ``cpu`` beside the contenders.

    Args:
        peak: of this machine, by the number of threads.
    """
    run = RunFolder(folder)
    recipe = load_recipe(run.recipe_file)
    record = next(target for target in run.result()["targets"] if target["target"] == "cpu")
    chosen = load_build(run.builds("cpu") / record["chosen"])
    student = load_student(run.distill)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mst-edge-")))
        # As in a run, where contestants find the student in torch.
        (place / "run").mkdir()
        (place / "run" / "distill").symlink_to(run.distill.resolve())
        fp32 = with_program(student, export_student(student, place / "run" / "variants" / "fp32"))
        others, absent = _contenders(stack, fp32, recipe.measure.threads, place)
        builds = [replace(chosen, id=OURS), *others]
        protocol = replace(QUICK, min_seconds=seconds)
        measured = measure(builds, run.evaluation / "inputs.npy", fp32.output, protocol)
    goals = Goals.of(record["goals"])
    rows = tuple(_row(build, measured, fp32, run, goals) for build in builds)
    ours, operations = measured[OURS][0], _operations(student, run)
    most = peak(recipe.measure.threads)
    least_s = max(operations / most.operations[_arithmetic(chosen.precision)], chosen.size_bytes / most.bytes)
    p50_s = ours.latency.p50_ms / 1e3
    return Result(
        title=recipe.name + f", {recipe.student.network}",
        build=chosen.id,
        rows=rows,
        operations=operations,
        giga_per_s=operations / p50_s / 1e9,
        roofline=least_s / p50_s,
        overhead_us=ours.runner_overhead_us,
        noise="; ".join(filter(None, (ours.latency.noise, *ours.problems))),
        absent=tuple(absent),
    )


def _contenders(stack: ExitStack, fp32: Variant, threads: int, place: Path) -> tuple[list[Build], list[str]]:
    """A build of the fp32 student by everyone who is installed, and who is not."""
    builds, absent = [], []
    contestants = stack.enter_context(registered())
    for runtime in (contestants.runtime(name) for name in contestants.spec.runtimes):
        probe = runtime.probe()
        if probe.available and runtime.precisions(fp32):
            builds.append(replace(runtime.build(fp32, "fp32", threads, place / runtime.name), id=runtime.name))
        else:
            absent.append(f"{runtime.name}: {probe.reason or 'does not take it'}")
    for build in builds:
        build.save()
    return builds, absent


def _row(
    build: Build, measured: Mapping[str, tuple[Measurement, Predictions]], fp32: Variant, run: RunFolder, goals: Goals
) -> Row:
    scoring, truth = scoring_of(fp32.output), np.load(run.evaluation / "target.npy", mmap_mode="r")
    found, said = measured[build.id]
    accuracy = compare_accuracy(said.answers, load_predictions(run).answers, truth, scoring)
    return Row(
        name=build.id,
        accuracy=accuracy.value,
        holds=all(limit.short_by <= 0 for limit in accuracy_limits(accuracy, goals.accuracy)),
        p50_ms=found.latency.p50_ms,
        p90_ms=found.latency.p90_ms,
        slower=speedup(measured[OURS][0].latency, found.latency, 50),
    )


def _operations(student: Student, run: RunFolder) -> float:
    """Multiplications and additions of one inference, counted by torch in its matrix products and convolutions."""
    sample = np.load(run.evaluation / "inputs.npy", mmap_mode="r")[:1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student.eval()(torch.from_numpy(np.array(sample)))
    return float(counter.get_total_flops())


def _arithmetic(precision: str) -> str:
    """What most of a build's operations are done in."""
    return "int8" if precision.startswith("int8") else "bf16" if precision.startswith("bf16") else "fp32"


def lines(student: Result) -> Iterator[str]:
    """Markdown of one student."""
    yield f"**{student.title}**: ours is `{student.build}`{f' ({student.noise})' if student.noise else ''}"
    yield ""
    yield "| | accuracy | p50 ms | p90 ms | x | within the accuracy goal |"
    yield "|---|---:|---:|---:|---:|---|"
    for row in student.rows:
        times = f"{row.slower.estimate:.2f} ({row.slower.low:.2f} {row.slower.high:.2f})" if row.name != OURS else "1"
        held = "yes" if row.holds else "no"
        yield f"| {row.name} | {row.accuracy:.2%} | {row.p50_ms:.3f} | {row.p90_ms:.3f} | {times} | {held} |"
    for reason in student.absent:
        yield f"| {reason} | | | | | |"
    yield ""
    yield (
        f"Roofline: {student.operations / 1e6:.1f} million operations at {student.giga_per_s:.1f} G/s, "
        f"{student.roofline:.1%} of the peak. Runner: {student.overhead_us:.1f} us beyond the runtime's call"
        f"{'' if student.overhead_holds else ', MORE THAN IT MAY'}."
    )
    beaten = student.beaten_by
    yield "Ours is the fastest within the goal, or within noise of it." if not beaten else f"BEATEN by {beaten}."
    yield ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="finished runs with target cpu")
    parser.add_argument("--out", type=Path, help="folder for runtimes.json")
    parser.add_argument("--seconds", type=float, default=6.0, help="per contender")
    said = parser.parse_args(arguments)
    peaks: dict[int, Peak] = {}

    def peak(threads: int) -> Peak:
        if threads not in peaks:
            peaks[threads] = measured_peak(threads)
            found = ", ".join(f"{name} {value / 1e9:.0f} G/s" for name, value in peaks[threads].operations.items())
            print(f"Peak of {threads} thread(s): {found}; memory {peaks[threads].bytes / 1e9:.1f} GB/s\n", flush=True)
        return peaks[threads]

    students = []
    for folder in said.run:
        students.append(contest(folder, peak, said.seconds))
        print("\n".join(lines(students[-1])), flush=True)
    if said.out is not None:
        said.out.mkdir(parents=True, exist_ok=True)
        write_json(said.out / "runtimes.json", {"students": [asdict(s) for s in students], **provenance()})


if __name__ == "__main__":
    main()
