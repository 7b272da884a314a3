"""Our pick against what a user gets by default from other quantization tools: accuracy, latency, tuning time.

    python -m benchmarks.quantize_peers --run RUN... --out FOLDER [--peer-env olive=/path/to/python]...

For every finished run: the same fp32 student, the same calibration samples, the same test split, and one measurement in
which all builds take turns. Ours are the fp32 student, the schemes made anew and timed, and what else the run made
(trained in int8, searched for), on every runtime of the CPU; the pick is the fastest that holds the run's accuracy
goal. Peers run as their documentation shows, with their defaults (`benchmarks/peer_tools.py`): these know nothing of
front ends. So each has a second row, where it was told which nodes to leave in float: those that we leave. Optimum,
Olive and NNCF's ONNX run on ONNX Runtime, NNCF's OpenVINO model on OpenVINO in the precision that it chooses itself.
Neural Compressor works on the torch network alone, and its result is exported by mst-edge, which is kinder than what
its users have. A tool that cannot be imported is reported as absent; one that does not install beside the others gets
an environment of its own by --peer-env. Tuning time is that of making the file; ours has all schemes and builds in it,
and the measurement that the pick is made by is stated beside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_tools import TOOLS
from distill.student import load_student
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.extras import require_modules
from mst_edge.core.files import require_unused, write_json
from mst_edge.core.machine import this_machine
from mst_edge.core.provenance import provenance
from mst_edge.core.scoring import Predictions, Scoring, scoring_of
from mst_edge.core.stats import Interval
from mst_edge.recipe import QuantizeSection, Recipe, load_recipe
from mst_edge.run_folder import RunFolder
from mst_edge.stages.deploy import PARITY_LIMITS
from mst_edge.stages.distill import load_predictions
from mst_edge.stages.goals import goals_of
from mst_edge.stages.variants import PARITY_SAMPLES
from quantize.calibration import FOLDER, load_calibration
from quantize.in_torch import Features, InTorch, fold_weights
from quantize.schemes.base import SCHEMES, Material, UnfitError
from quantize.variant import MODEL, Variant, load_variant
from targets.gate import Candidate, Goals, compare_accuracy, judge
from targets.measure import Measurement, Protocol, measure, speedup
from targets.spec import Build
from targets.target import Skipped, get_target

if TYPE_CHECKING:
    from torch import nn

TARGET, NEURAL_COMPRESSOR = "cpu", "neural-compressor"
PEERS = (*TOOLS, NEURAL_COMPRESSOR)


class NeuralCompressorDefault(InTorch):
    """Neural Compressor's ``StaticQuantConfig()``."""

    name = "neural-compressor"
    backend = "neural-compressor"
    modules = ("neural_compressor", "torchao")
    summary = "its default"

    def _rounded(
        self, network: nn.Module, features: Features, exclude: Sequence[str]
    ) -> tuple[nn.Module, dict[str, Any]]:
        import torch
        from neural_compressor.torch.export import export
        from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare

        example = (features.example,)
        graph = export(network, example, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 16)},))
        prepared = prepare(graph, StaticQuantConfig(), example_inputs=example)
        with torch.no_grad():
            for batch in features:
                prepared(batch)
        return fold_weights(convert(prepared)), {}


@dataclass(frozen=True)
class Made:
    """What a tool made of a student, or why it made nothing."""

    tool: str
    builds: tuple[Build, ...] = ()
    version: str = ""
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Student:
    """A run's student, with the samples that every tool gets."""

    recipe: Recipe
    run: RunFolder
    source: Variant
    scoring: Scoring
    truth: NDArray[Any]
    reference: Predictions

    @property
    def inputs(self) -> Path:
        """The test split as the graph takes it."""
        return self.run.evaluation / "inputs.npy"


def main(arguments: Sequence[str] | None = None) -> None:
    """Quantizes, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="folders of finished runs")
    parser.add_argument("--out", type=Path, required=True, help="a new folder; keeps builds and numbers")
    parser.add_argument("--schemes", default=",".join(QuantizeSection().schemes), help="of ours")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--peer-env", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--min-seconds", type=float, default=3.0, help="of measuring, per build")
    said = parser.parse_args(arguments)
    peers = said.peers.split(",")
    require_unused(said.out, "benchmark")
    for name in peers:
        if name not in PEERS:
            raise unknown_name("tool", name, PEERS, where="--peers")
    pythons = dict(entry.split("=", 1) for entry in said.peer_env)
    protocol = Protocol("quick", 100, said.min_seconds)
    records: list[dict[str, Any]] = []
    for path in said.run:
        student = open_student(path)
        folder = said.out / f"{len(records)}-{student.recipe.name}"
        ours = make_ours(student, said.schemes.split(","), said.threads, folder / "ours")
        others = list(make_peers(peers, pythons, student, said.threads, folder))
        records.append(compare(student, ours, others, protocol))
        print("\n".join(table(records[-1])), end="\n\n", flush=True)
    write_json(said.out / "quantize_peers.json", {"students": records, "provenance": provenance()})


def open_student(path: Path) -> Student:
    """Opens a finished run.

    Raises:
        UserError: the folder holds none.
    """
    run = RunFolder(path)
    run.result()
    source = load_variant(run.variants / "fp32")
    truth = np.load(run.evaluation / "target.npy", allow_pickle=False)
    scoring = scoring_of(source.output)
    return Student(load_recipe(run.recipe_file), run, source, scoring, truth, load_predictions(run))


def make_ours(student: Student, schemes: Sequence[str], threads: int, folder: Path) -> Made:
    """Every scheme, on every runtime; and what else the run made."""
    run, said = student.run, student.recipe.quantize
    material = Material(
        source=student.source,
        calibration=load_calibration(run.variants / FOLDER),
        calibrator=said.calibration.calibrator,
        exclude=said.exclude,
        student=load_student(run.distill),
        raw=np.load(student.inputs, mmap_mode="r", allow_pickle=False)[:PARITY_SAMPLES],
    )
    start = time.perf_counter()
    variants = [student.source, *_others(run, schemes)]
    for name in schemes:
        try:
            variants.append(SCHEMES.get(name, where="--schemes")().make(material, folder / "variants" / name))
        except UnfitError as error:
            print(f"{name}: {error.problem}", file=sys.stderr)
    made = list(get_target(TARGET).build_all(variants, threads, folder / "builds"))
    for entry in made:
        if isinstance(entry, Skipped):
            print(f"{entry.id}: {entry.reason}", file=sys.stderr)
    builds = tuple(entry for entry in made if isinstance(entry, Build))
    return Made("mst-edge", builds, seconds=time.perf_counter() - start)


def _others(run: RunFolder, schemes: Sequence[str]) -> list[Variant]:
    """The run's variants of schemes that are not made anew: some train or search, which takes the run's data."""
    kept = [load_variant(file.parent) for file in sorted(run.variants.glob("*/variant.json"))]
    return [variant for variant in kept if variant.scheme not in ("fp32", *schemes)]


def make_peers(
    names: Sequence[str], pythons: Mapping[str, str], student: Student, threads: int, folder: Path
) -> Iterator[Made]:
    """What every tool makes of the student by default, and what it makes where it is told what to leave in float."""
    for name in names:
        if name == NEURAL_COMPRESSOR:
            yield _neural_compressor(student, threads, folder / name)
            continue
        python = pythons.get(name, sys.executable)
        made = _by_program(name, name, python, (), student, threads, folder)
        yield made
        if student.source.float_nodes and not made.reason.startswith("absent"):
            yield _by_program(name, f"{name}-told", python, student.source.float_nodes, student, threads, folder)


def _by_program(
    name: str, label: str, python: str, keep: Sequence[str], student: Student, threads: int, folder: Path
) -> Made:
    samples = student.run.variants / FOLDER / "inputs.npy"
    file = "model.xml" if name == "nncf-openvino" else MODEL
    (folder / label).mkdir(parents=True)
    tool = str(Path(__file__).with_name("peer_tools.py"))
    command = [python, tool, name, str(student.source.model), str(samples), str(folder / label / file)]
    done = subprocess.run(
        [*command, json.dumps(keep)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        return Made(label, reason=f"failed: {' '.join(done.stderr.split())[-200:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    if "absent" in said:
        return Made(label, reason=f"absent: {said['absent']}")
    build = _build(label, "openvino" if file == "model.xml" else "onnxruntime", student, threads, folder / label, file)
    problem = _problem(build)
    return Made(label, () if problem else (build,), said["version"], said["seconds"], problem)


def _build(peer: str, runtime: str, student: Student, threads: int, folder: Path, file: str) -> Build:
    """A peer's file as a build, opened as its user would open it."""
    spec, options = student.source.input, dict[str, Any](threads=threads)
    if runtime == "openvino":  # its default is bf16 where the CPU has it
        options |= {"precision": "bf16" if {"bf16", "amx_bf16"} & set(this_machine().isa) else "f32"}
    version = get_target(TARGET).runtime(runtime).probe().version
    about = {"runtime_version": version, "input": {"shape": list(spec.shape), "dtype": spec.dtype}}
    build = Build(f"{runtime}-{peer}", TARGET, runtime, "int8", peer, folder, file, options, about)
    build.save()
    return build


def _problem(build: Build) -> str:
    """Why a peer's build does not run; empty if it does."""
    about = build.facts["input"]
    try:
        with get_target(TARGET).load(build) as runner:
            runner.run(np.zeros((1, *about["shape"]), about["dtype"]))
    except Exception as error:
        return f"does not run: {' '.join(str(error).split())[:200]}"
    return ""


def _neural_compressor(student: Student, threads: int, folder: Path) -> Made:
    calibration = load_calibration(student.run.variants / FOLDER)
    material = Material(student.source, calibration, student=load_student(student.run.distill))
    try:
        require_modules(*NeuralCompressorDefault.modules)
        start = time.perf_counter()
        variant = NeuralCompressorDefault().make(material, folder / "variant")
        seconds = time.perf_counter() - start
    except UserError as error:
        return Made(NEURAL_COMPRESSOR, reason=error.problem)
    from importlib import metadata

    target = get_target(TARGET)
    builds = tuple(
        target.runtime(name).build(variant, "int8", threads, folder / name)
        for name in target.spec.runtimes
        if "int8" in target.runtime(name).precisions(variant)
    )
    builds = tuple(replace(build, id=f"{build.runtime}-{NEURAL_COMPRESSOR}") for build in builds)
    return Made(NEURAL_COMPRESSOR, builds, metadata.version("neural-compressor-pt"), seconds)


def compare(student: Student, ours: Made, peers: Sequence[Made], protocol: Protocol) -> dict[str, Any]:
    """Measures all builds side by side and picks ours; a record for the table and for machines."""
    builds = [*ours.builds, *(build for peer in peers for build in peer.builds)]
    start = time.perf_counter()
    measured = measure(builds, student.inputs, student.source.output, protocol)
    seconds = (time.perf_counter() - start) * len(ours.builds) / len(builds)
    goals = Goals(accuracy=goals_of(student.recipe, TARGET).accuracy, min_int8_speedup=0.0)
    candidates = {build.id: _candidate(student, build, *measured[build.id]) for build in builds}
    verdicts = judge([candidates[build.id] for build in ours.builds], goals)
    pick = next(verdict.build_id for verdict in verdicts if verdict.chosen)
    best = candidates[pick]
    rows = [_row(best, ours, goals, best)]
    for peer in peers:
        rows += [_row(candidates[build.id], peer, goals, best) for build in peer.builds]
    return {
        "student": student.recipe.name,
        "network": student.recipe.student.network,
        "metric": student.scoring.label,
        "fp32": student.scoring.value(student.scoring.statistics(student.reference.answers, student.truth)),
        "samples": len(student.truth),
        "pick": pick,
        "pick_from_run": candidates[pick].build.variant in {file.name for file in student.run.variants.iterdir()},
        "pick_measured_s": seconds,
        "rows": rows,
        "without": [{"tool": peer.tool, "reason": peer.reason} for peer in peers if peer.reason],
        "ours": [_row(candidates[build.id], ours, goals, best) for build in ours.builds],
    }


def _candidate(student: Student, build: Build, measurement: Measurement, said: Predictions) -> Candidate:
    scoring, reference = student.scoring, student.reference
    accuracy = compare_accuracy(said.answers, reference.answers, student.truth, scoring)
    difference = scoring.difference(said.outputs[:PARITY_SAMPLES], reference.outputs[:PARITY_SAMPLES])
    parity = difference / scoring.spread(reference.outputs)
    drift = scoring.drift(said, reference)
    return Candidate(build, measurement, accuracy, drift, parity, PARITY_LIMITS[build.precision])


def _row(candidate: Candidate, made: Made, goals: Goals, pick: Candidate) -> dict[str, Any]:
    latency, picked = candidate.measurement.latency, pick.measurement.latency
    (verdict,) = judge([replace(candidate, parity=0.0)], goals)  # of peers, accuracy alone is asked
    assert candidate.accuracy is not None  # runs have labels
    return {
        "tool": made.tool,
        "version": made.version,
        "build": candidate.build.id,
        "accuracy": candidate.accuracy.value,
        "drop": [candidate.accuracy.drop.estimate, candidate.accuracy.drop.low, candidate.accuracy.drop.high],
        "p50_ms": latency.p50_ms,
        "p90_ms": latency.p90_ms,
        "times_as_fast_as_pick": {f"p{rank}": asdict(speedup(latency, picked, rank)) for rank in (50, 90)},
        "noise": latency.noise,
        "size_bytes": candidate.measurement.size_bytes,
        "seconds": made.seconds,
        "within_goal": verdict.passed,
    }


def table(record: Mapping[str, Any]) -> Iterator[str]:
    """Markdown, and who is the fastest within the accuracy goal."""
    peers = record["rows"][1:]
    title = f"{record['student']} ({record['network']}), {record['samples']} test samples, fp32 {record['fp32']:.2%}"
    yield f"| {title} | build | {record['metric']} | drop, points (95 %) | p50 ms | p90 ms | MB | made in s | in goal |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---|"
    for row in record["rows"]:
        drop, low, high = (100 * value for value in row["drop"])
        cells = [
            f"{row['tool']} {row['version']}".strip(),
            row["build"],
            f"{row['accuracy']:.2%}",
            f"{drop:+.2f} ({low:+.2f} {high:+.2f})",
            f"{row['p50_ms']:.3f}",
            f"{row['p90_ms']:.3f}",
            f"{row['size_bytes'] / 1e6:.2f}",
            f"{row['seconds']:.1f}",
            "yes" if row["within_goal"] else "no",
        ]
        yield f"| {' | '.join(cells)} |"
    for entry in record["without"]:
        yield f"| {entry['tool']} | {entry['reason'].replace('|', '/')} |  |  |  |  |  |  |  |"
    seconds, builds = record["pick_measured_s"], len(record["ours"])
    yield f"\nOur pick took {seconds:.0f} s more, in which {builds} builds were measured."
    if record["pick_from_run"]:
        yield "It was made by the run; the time that this took is not in the table."
    yield from _against_pick(peers)
    noisy = [f"{row['build']}: {row['noise']}" for row in record["rows"] if row["noise"]]
    if noisy:
        yield f"Noise: {'; '.join(noisy)}."


def _against_pick(peers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Peers that hold the goal and may be faster than our pick, and whether beyond noise (95 % intervals)."""
    faster = False
    for row in peers:
        gains = {rank: Interval(**said) for rank, said in row["times_as_fast_as_pick"].items()}
        if row["within_goal"] and max(gain.estimate for gain in gains.values()) > 1:
            beyond = any(gain.above_one for gain in gains.values())
            faster = faster or beyond
            said = ", ".join(
                f"{gain.estimate:.2f} x at {rank} ({gain.low:.2f} to {gain.high:.2f})" for rank, gain in gains.items()
            )
            yield f"{row['tool']} ({row['build']}) against our pick: speed {said}{'' if beyond else ': within noise'}."
    if not faster:
        yield "No peer that holds the accuracy goal is faster than our pick beyond noise, at p50 or p90."


if __name__ == "__main__":
    main()
