"""From variants to a bundle per target: build, measure, check, pack."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apps.runtime.tokenizer import TOKENIZER
from mst_edge.core.provenance import provenance
from mst_edge.core.scoring import OutputSpec, Predictions, Scoring, scoring_of
from mst_edge.recipe import Recipe
from mst_edge.run_folder import RunFolder
from mst_edge.stages.data import Data
from mst_edge.stages.distill import load_predictions
from mst_edge.stages.goals import goals_of, protocol_of
from mst_edge.stages.variants import PARITY_SAMPLES
from quantize.variant import Variant
from targets import measure
from targets.examples import example_files
from targets.gate import Candidate, Verdict, compare_accuracy, judge
from targets.pack import PackedBuild, pack
from targets.spec import Build
from targets.target import Skipped, get_target

REFERENCE_SAMPLES = 8
# Reference outputs of a bundle: label maps are large.
_MOST_REFERENCE_BYTES = 4 << 20
# Largest difference of outputs from the torch student, as a share of the outputs' spread (standard
# deviation): rounding of float32; 11 bits of mantissa in fp16, 8 in bf16; 256 levels per tensor in int8; 255 or 15
# levels per block of weights in w8 and w4.
PARITY_LIMITS = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.25, "int8": 1.5, "int8-bf16": 1.5, "w8": 0.25, "w4": 1.5}
# What another device may differ from this one's outputs, on the same scale.
DEVICE_LIMITS = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.25, "int8": 0.5, "int8-bf16": 0.5, "w8": 0.05, "w4": 0.05}


class DeployWatcher(Protocol):
    """Who is told how deployment goes: what is done, and what is going on."""

    def step(self, text: str) -> None: ...

    def busy(self, text: str) -> None: ...


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
    output = variants[0].output
    scoring, reference = scoring_of(output), load_predictions(run)
    truth = np.load(run.evaluation / "target.npy", mmap_mode="r", allow_pickle=False)
    measured = measure.measure(builds, run.evaluation / "inputs.npy", output, protocol_of(recipe), watcher.busy)
    torch_outputs = _torch_outputs(variants, reference)
    candidates = [
        _candidate(build, *measured[build.id], reference, truth, scoring, torch_outputs[build.variant])
        for build in builds
    ]
    verdicts = judge(candidates, goals_of(recipe))
    said = {build_id: predictions for build_id, (_, predictions) in measured.items()}
    chosen = next(v.build_id for v in verdicts if v.chosen)
    confusion = scoring.confusion(said[chosen].answers, truth)
    record = {
        "target": target_name,
        "summary": target.spec.summary,
        "threads": recipe.measure.threads,
        "scoring": scoring.describe(),
        "fp32_accuracy": scoring.value(scoring.statistics(reference.answers, truth)),
        "builds": [_row(c, v) for c, v in zip(candidates, verdicts, strict=True)],
        "skipped": [asdict(entry) for entry in skipped],
        "goals": asdict(goals_of(recipe)),
        "chosen": chosen,
        "gate": "passed" if any(v.chosen and v.passed for v in verdicts) else "failed",
        "confusion": None if confusion is None else confusion.tolist(),
        "bundle": str(run.bundle(target_name).relative_to(run.path)),
    }
    _pack(recipe, data, run, variants[0], candidates, verdicts, said, record)
    run.finish_stage(stage_name(target_name), record)
    return record


def _torch_outputs(variants: list[Variant], reference: Predictions) -> dict[str, NDArray[Any]]:
    """By variant, what torch says of the first test samples: the fp32 student, or what was trained as the variant."""
    own = {v.name: np.load(v.torch_outputs, allow_pickle=False) for v in variants if v.torch_outputs is not None}
    return {v.name: own.get(v.name, reference.outputs)[:PARITY_SAMPLES] for v in variants}


def _candidate(
    build: Build,
    measurement: Any,
    said: Predictions,
    reference: Predictions,
    truth: NDArray[Any],
    scoring: Scoring,
    torch_outputs: NDArray[Any],
) -> Candidate:
    difference = scoring.difference(said.outputs[:PARITY_SAMPLES], torch_outputs)
    return Candidate(
        build=build,
        measurement=measurement,
        accuracy=compare_accuracy(said.answers, reference.answers, truth, scoring),
        parity=difference / scoring.spread(reference.outputs),
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


def _pack(
    recipe: Recipe,
    data: Data,
    run: RunFolder,
    variant: Variant,
    candidates: list[Candidate],
    verdicts: list[Verdict],
    said: dict[str, Predictions],
    record: dict[str, Any],
) -> None:
    reference = load_predictions(run).outputs
    count = max(1, min(REFERENCE_SAMPLES, _MOST_REFERENCE_BYTES // reference[0].nbytes))
    inputs = np.load(run.evaluation / "inputs.npy", mmap_mode="r", allow_pickle=False)
    truth = np.load(run.evaluation / "target.npy", mmap_mode="r", allow_pickle=False)
    spread = scoring_of(variant.output).spread(reference)
    tokenizer = run.distill / TOKENIZER
    test = data.splits["test"]

    def recorded(number: int) -> NDArray[Any]:
        return data.dataset.read(recipe.student.modality, test[number : number + 1])[0]

    packed = [
        PackedBuild(
            build=c.build,
            reference_outputs=said[c.build.id].outputs[:count],
            tolerance=DEVICE_LIMITS[c.build.precision] * spread,
            expected={
                "metric": record["scoring"]["metric"],
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
        output=variant.output,
        input_spec=variant.input,
        reference_inputs=np.array(inputs[:count]),
        builds=packed,
        gate={"verdict": record["gate"], "goals": record["goals"], "checks": _chosen_checks(verdicts)},
        provenance=provenance(recipe_sha256=recipe.sha256(), data_sha256=data.dataset.fingerprint, seed=recipe.seed),
        licence=data.dataset.licence,
        readme=_readme(recipe, record, data, variant.output),
        examples=example_files(variant.input, recorded, truth, variant.output.names),
        tokenizer=tokenizer if tokenizer.is_file() else None,
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


def _readme(recipe: Recipe, record: dict[str, Any], data: Data, output: OutputSpec) -> str:
    chosen = next(row for row in record["builds"] if row["id"] == record["chosen"])
    latency = chosen["measurement"]["latency"]
    return f"""# {recipe.name} for {record["target"]}

Reads one `{recipe.student.modality}` sample, {_answers(output)}

    pip install numpy {chosen["runtime"]}
    python run.py examples/*     # answers for files of this kind; these are test samples
    python run.py --self-test    # does this machine compute what it should?

Gate: **{record["gate"]}**. Build `{chosen["id"]}`: {chosen["accuracy"]["label"]} {chosen["accuracy"]["value"]:.2%} on
{chosen["accuracy"]["samples"]} test samples; latency p50 {latency["p50_ms"]:.3f} ms, p90 {latency["p90_ms"]:.3f} ms,
{latency["threads"]} thread(s), measured where it was packed. `manifest.json` holds all numbers, the machine
they were measured on, and the sha256 of every file. Data licence: {data.dataset.licence}.
"""


def _answers(output: OutputSpec) -> str:
    """What the student answers with, in words."""
    if output.scale:
        numbers = (f"{name} in {unit}" if unit else name for name, unit in zip(output.names, output.units, strict=True))
        return f"answers with {', '.join(numbers)}."
    where = " per pixel" if output.task == "segmentation" else ""
    return f"answers with one of {len(output.names)} labels{where}."
