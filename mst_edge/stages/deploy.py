"""From variants to a bundle per target: build, measure, check, pack."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.provenance import provenance
from mst_edge.recipe import Recipe
from mst_edge.run_folder import RunFolder
from mst_edge.stages.data import Data
from mst_edge.stages.distill import LOGITS
from quantize.variant import Variant
from targets import measure
from targets.examples import example_files
from targets.gate import (
    AccuracyGoal,
    Candidate,
    Goals,
    LatencyGoal,
    Verdict,
    compare_accuracy,
    judge,
)
from targets.pack import PackedBuild, pack
from targets.spec import Build
from targets.target import Skipped, get_target

REFERENCE_SAMPLES = 8
PARITY_SAMPLES = 64
# Largest difference of logits from the torch student, as a share of the logits' spread (standard
# deviation): rounding of float32; 8 bits of mantissa in bf16; 256 levels per tensor in int8.
PARITY_LIMITS = {"fp32": 1e-3, "bf16": 0.25, "int8": 1.5}
# What another device may differ from this one's outputs, on the same scale.
DEVICE_LIMITS = {"fp32": 1e-3, "bf16": 0.25, "int8": 0.5}


class DeployWatcher(Protocol):
    """Who is told how deployment goes: what is done, and what is going on."""

    def step(self, text: str) -> None: ...

    def busy(self, text: str) -> None: ...


def goals_of(recipe: Recipe) -> Goals:
    """The recipe's goals as the gate takes them."""
    said = recipe.goals
    return Goals(
        accuracy=AccuracyGoal(**said.accuracy.model_dump()),
        latency=LatencyGoal(**said.latency.model_dump()),
        max_size_mb=said.max_size_mb,
        max_memory_mb=said.max_memory_mb,
        min_int8_speedup=said.min_int8_speedup,
    )


def protocol_of(recipe: Recipe) -> measure.Protocol:
    """The recipe's way to measure."""
    said = recipe.measure
    return measure.Protocol(said.protocol, said.min_runs, said.min_seconds)


def stage_name(target: str) -> str:
    """The stage of one target."""
    return f"deploy-{target}"


def run_deploy(
    recipe: Recipe,
    data: Data,
    run: RunFolder,
    variants: list[Variant],
    target_name: str,
    watcher: DeployWatcher,
) -> dict[str, Any]:
    """Builds every variant for one target, measures and judges the builds, packs the chosen one."""
    target = get_target(target_name)
    builds: list[Build] = []
    skipped: list[Skipped] = []
    for made in target.build_all(variants, recipe.measure.threads, run.builds(target_name)):
        if isinstance(made, Build):
            watcher.step(f"built {made.id}")
            builds.append(made)
        else:
            skipped.append(made)
    reference = np.load(run.evaluation / LOGITS, allow_pickle=False)
    labels = np.load(run.evaluation / "target.npy", allow_pickle=False)
    measured = measure.measure(builds, run.evaluation / "inputs.npy", protocol_of(recipe), watcher.busy)
    candidates = [_candidate(build, *measured[build.id], reference, labels) for build in builds]
    verdicts = judge(candidates, goals_of(recipe))
    logits = {build_id: values for build_id, (_, values) in measured.items()}
    record = {
        "target": target_name,
        "summary": target.spec.summary,
        "threads": recipe.measure.threads,
        "fp32_accuracy": float((reference.argmax(axis=1) == labels).mean()),
        "builds": [_row(c, v) for c, v in zip(candidates, verdicts, strict=True)],
        "skipped": [asdict(entry) for entry in skipped],
        "goals": asdict(goals_of(recipe)),
        "chosen": next(v.build_id for v in verdicts if v.chosen),
        "gate": "passed" if any(v.chosen and v.passed for v in verdicts) else "failed",
        "confusion": _confusion(logits, verdicts, labels, len(data.dataset.classes)),
        "bundle": str(run.bundle(target_name).relative_to(run.path)),
    }
    _pack(recipe, data, run, variants[0], candidates, verdicts, logits, record)
    run.finish_stage(stage_name(target_name), record)
    return record


def _candidate(
    build: Build,
    measurement: Any,
    logits: NDArray[np.float32],
    reference: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> Candidate:
    spread = float(reference.std())
    difference = np.abs(logits[:PARITY_SAMPLES] - reference[:PARITY_SAMPLES]).max()
    return Candidate(
        build=build,
        measurement=measurement,
        accuracy=compare_accuracy(logits, reference, labels),
        parity=float(difference) / spread,
        parity_limit=PARITY_LIMITS[build.precision],
    )


def _row(candidate: Candidate, verdict: Verdict) -> dict[str, Any]:
    build = candidate.build
    return {
        "id": build.id,
        "runtime": build.runtime,
        "runtime_version": build.facts["runtime_version"],
        "precision": build.precision,
        "variant": build.variant,
        "options": build.options,
        "accuracy": asdict(candidate.accuracy),
        "parity": candidate.parity,
        "parity_limit": candidate.parity_limit,
        "measurement": candidate.measurement.to_dict(),
        "verdict": verdict.to_dict(),
    }


def _confusion(
    logits: dict[str, NDArray[np.float32]], verdicts: list[Verdict], labels: NDArray[np.int64], classes: int
) -> list[list[int]]:
    """Rows are true classes, columns what the chosen build said."""
    chosen = next(v.build_id for v in verdicts if v.chosen)
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, logits[chosen].argmax(axis=1)), 1)
    return matrix.tolist()


def _pack(
    recipe: Recipe,
    data: Data,
    run: RunFolder,
    variant: Variant,
    candidates: list[Candidate],
    verdicts: list[Verdict],
    logits: dict[str, NDArray[np.float32]],
    record: dict[str, Any],
) -> None:
    reference = np.load(run.evaluation / LOGITS, allow_pickle=False)
    inputs = np.load(run.evaluation / "inputs.npy", mmap_mode="r", allow_pickle=False)
    target = np.load(run.evaluation / "target.npy", allow_pickle=False)
    spread = float(reference.std())
    packed = [
        PackedBuild(
            build=c.build,
            reference_outputs=logits[c.build.id][:REFERENCE_SAMPLES],
            tolerance=DEVICE_LIMITS[c.build.precision] * spread,
            expected={
                "accuracy": c.accuracy.value,
                "accuracy_drop": asdict(c.accuracy.drop),
                **c.measurement.to_dict(),
            },
        )
        for c in _in_order(candidates, verdicts)
    ]
    pack(
        run.bundle(record["target"]),
        name=recipe.name,
        target=record["target"],
        task=data.dataset.task,
        labels=data.dataset.classes,
        input_spec=variant.input,
        reference_inputs=np.array(inputs[:REFERENCE_SAMPLES]),
        builds=packed,
        gate={"verdict": record["gate"], "goals": record["goals"], "checks": _chosen_checks(verdicts)},
        provenance=provenance(recipe_sha256=recipe.sha256(), data_sha256=data.dataset.fingerprint, seed=recipe.seed),
        licence=data.dataset.licence,
        readme=_readme(recipe, record, data),
        examples=example_files(variant.input, inputs, target, data.dataset.classes),
    )


def _in_order(candidates: list[Candidate], verdicts: list[Verdict]) -> list[Candidate]:
    """The chosen build, then the fastest passing build of every other runtime."""
    chosen = next(c for c, v in zip(candidates, verdicts, strict=True) if v.chosen)
    order = [chosen]
    passing = [c for c, v in zip(candidates, verdicts, strict=True) if v.passed]
    for c in sorted(passing, key=lambda c: c.measurement.latency.p90_ms):
        if c.build.runtime not in {other.build.runtime for other in order}:
            order.append(c)
    return order


def _chosen_checks(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return next([asdict(check) for check in v.checks] for v in verdicts if v.chosen)


def _readme(recipe: Recipe, record: dict[str, Any], data: Data) -> str:
    chosen = next(row for row in record["builds"] if row["id"] == record["chosen"])
    latency = chosen["measurement"]["latency"]
    return f"""# {recipe.name} for {record["target"]}

Reads one `{recipe.student.modality}` sample, answers with one of {len(data.dataset.classes)} labels.

    pip install numpy {chosen["runtime"]}
    python run.py examples/*     # labels for wav, picture or .npy files; these are test samples
    python run.py --self-test    # does this machine compute what it should?

Gate: **{record["gate"]}**. Build `{chosen["id"]}`: accuracy {chosen["accuracy"]["value"]:.2%} on
{chosen["accuracy"]["samples"]} test samples; latency p50 {latency["p50_ms"]:.3f} ms, p90 {latency["p90_ms"]:.3f} ms,
{latency["threads"]} thread(s), measured where it was packed. `manifest.json` holds all numbers, the machine
they were measured on, and the sha256 of every file. Data licence: {data.dataset.licence}.
"""
