"""From variants to a bundle per target: build, measure, check, pack."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime.engines import requirement_of
from apps.runtime.tokenizer import TOKENIZER
from distill.student import DESCRIPTION
from mst_edge.core.border import read_yaml
from mst_edge.core.provenance import provenance
from mst_edge.core.scoring import OutputSpec, Predictions, scoring_of
from mst_edge.recipe import Recipe
from mst_edge.report.tuning import said_of
from mst_edge.run_folder import RunFolder
from mst_edge.stages.board import DEVICE_LIMITS, pack_for_board
from mst_edge.stages.data import Data
from mst_edge.stages.distill import load_predictions
from mst_edge.stages.goals import goals_of, protocol_of
from mst_edge.stages.subject import NOT_JUDGED, DeployWatcher, Subject, variants_for
from mst_edge.stages.variants import PARITY_SAMPLES
from quantize.calibration import FOLDER, load_calibration
from quantize.schemes.base import Material
from quantize.variant import Variant
from targets import measure
from targets.board import BoardTarget
from targets.carried import app_of
from targets.examples import example_files
from targets.gate import Candidate, Verdict, compare_accuracy, judge
from targets.kept import REUSED
from targets.pack import PackedBuild, pack
from targets.service import guide
from targets.spec import WHOLE_BF16, Build
from targets.target import gather, get_target
from targets.tune import Tuning, tune, tuned

# Largest difference of outputs from the torch student, as a share of the outputs' spread (standard
# deviation): rounding of float32; 11 bits of mantissa in tf32 and fp16, 8 in bf16, twice where a power spectrum has
# them too; 256 levels per tensor in int8; 255 or 15 levels per block of weights in w8 and w4.
PARITY_LIMITS = {
    "fp32": 1e-3,
    "tf32": 0.05,
    "fp16": 0.05,
    "bf16": 0.25,
    WHOLE_BF16: 1.5,
    "int8": 1.5,
    "int8-bf16": 1.5,
    "w8": 0.25,
    "w4": 1.5,
}


def stage_name(target: str) -> str:
    """The stage of one target."""
    return f"deploy-{target}"


def _licence(run: RunFolder, of_data: str) -> str:
    """Licences of all that the student was made from: the data, and the weights that it started with."""
    of_weights = read_yaml(run.distill / DESCRIPTION)["network"]["options"].get("licence")
    return "; ".join(filter(None, [of_data, f"initial weights: {of_weights}" if of_weights else ""]))


def run_deploy(
    recipe: Recipe,
    data: Data,
    run: RunFolder,
    variants: list[Variant],
    target_name: str,
    watcher: DeployWatcher,
) -> dict[str, Any]:
    """Deploys a run's student to one target, see ``deploy``; marks the stage as finished."""
    test, truth = data.splits["test"], np.load(run.evaluation / "target.npy", mmap_mode="r", allow_pickle=False)
    tokenizer = run.distill / TOKENIZER

    def recorded(number: int) -> NDArray[Any]:
        return data.dataset.read(recipe.student.modality, test[number : number + 1])[0]

    subject = Subject(
        name=recipe.name,
        place=run,
        variants=variants,
        inputs=run.evaluation / "inputs.npy",
        reference=load_predictions(run),
        truth=truth,
        goals=goals_of(recipe, target_name),
        protocol=protocol_of(recipe),
        threads=recipe.measure.threads,
        licence=_licence(run, data.dataset.licence),
        origin={"recipe_sha256": recipe.sha256(), "data_sha256": data.dataset.fingerprint, "seed": recipe.seed},
        examples=example_files(variants[0].input, recorded, truth, variants[0].output.names),
        readme="test samples",
        material=Material(
            variants[0],
            load_calibration(run.variants / FOLDER),
            recipe.quantize.calibration.calibrator,
            recipe.quantize.exclude,
        ),
        tokenizer=tokenizer if tokenizer.is_file() else None,
        stream=run.stream if run.stream.is_dir() else None,
        hop=recipe.student.hop,
        runtimes=recipe.measure.runtimes,
        tune_seconds=60 * recipe.measure.tune_minutes if recipe.measure.tune else 0.0,
    )
    record = deploy(subject, target_name, watcher)
    run.finish_stage(stage_name(target_name), record)
    return record


def deploy(subject: Subject, target_name: str, watcher: DeployWatcher) -> dict[str, Any]:
    """Builds every variant for one target, measures and judges the builds, packs the chosen one.

    For a target that is not this machine it packs what can be built, measured and judged there. Where every build takes
    torch to run, nothing is packed.
    """
    target = get_target(target_name)
    if isinstance(target, BoardTarget):
        return pack_for_board(subject, target, watcher)
    target.require_here()
    variants, not_made = variants_for(subject, target)
    place, runtimes = subject.place.builds(target_name), subject.runtimes
    made = target.build_all(variants, subject.threads, place, ours=subject.ours, keep=True, runtimes=runtimes)
    builds, skipped = gather(made, target_name, subject.name, lambda build: _tell(build, watcher))
    scoring, reference, truth = scoring_of(subject.output), subject.reference, subject.truth
    candidates, verdicts, said = _judged(subject, variants, builds, watcher)
    tunings: dict[str, Tuning] = {}
    if subject.tune_seconds:
        tunings = _tune(subject, candidates, verdicts, watcher)
        if any(tuning.options for tuning in tunings.values()):
            builds = [tuned(build, tunings[build.id]) if build.id in tunings else build for build in builds]
            candidates, verdicts, said = _judged(subject, variants, builds, watcher)
    chosen = next(v.build_id for v in verdicts if v.chosen)
    confusion = None if truth is None else scoring.confusion(said[chosen].answers, truth)
    passed = any(v.chosen and v.passed for v in verdicts)
    record = {
        "target": target_name,
        "on_host": True,
        "summary": target.spec.summary,
        "threads": subject.threads,
        "scoring": scoring.describe(),
        "fp32_accuracy": None if truth is None else scoring.value(scoring.statistics(reference.answers, truth)),
        "real": subject.real,
        "builds": [_row(c, v) for c, v in zip(candidates, verdicts, strict=True)],
        "skipped": [*not_made, *(asdict(entry) for entry in skipped)],
        "tuning": [tuning.to_dict() for tuning in tunings.values()],
        "goals": asdict(subject.goals),
        "chosen": chosen,
        "gate": ("passed" if passed else "failed") if subject.real else NOT_JUDGED,
        "confusion": None if confusion is None else confusion.tolist(),
        "classes": list(subject.output.names),
        "bundle": None,
    }
    if any(build.deployable for build in builds):
        record["bundle"] = str(subject.place.bundle(target_name).relative_to(subject.place.path))
        _pack(subject, candidates, verdicts, said, record)
    return record


def _tell(build: Build, watcher: DeployWatcher) -> None:
    watcher.step(f"built {build.id}{' before: taken from the cache' if build.facts.get(REUSED) else ''}")
    for note in build.facts.get("notes", ()):
        watcher.step(f"NOTE of {build.id}: {note}")


def _judged(
    subject: Subject, variants: list[Variant], builds: list[Build], watcher: DeployWatcher
) -> tuple[list[Candidate], list[Verdict], dict[str, Predictions]]:
    """Measures builds side by side, and judges them; with what each said of the samples."""
    measured = measure.measure(builds, subject.inputs, subject.output, subject.protocol, watcher.busy)
    torch_outputs = _torch_outputs(variants, subject.reference)
    candidates = [_candidate(subject, build, *measured[build.id], torch_outputs[build.variant]) for build in builds]
    said = {build_id: predictions for build_id, (_, predictions) in measured.items()}
    return candidates, judge(candidates, subject.goals), said


def _tune(
    subject: Subject, candidates: list[Candidate], verdicts: list[Verdict], watcher: DeployWatcher
) -> dict[str, Tuning]:
    """Tunes the builds that pass, the fastest first."""
    passing = [c for c, v in zip(candidates, verdicts, strict=True) if v.passed]
    builds = [c.build for c in sorted(passing, key=lambda c: c.measurement.latency.p90_ms)]
    found = tune(builds, subject.inputs, subject.output, subject.tune_seconds, watcher.busy)
    for build_id, tuning in found.items():
        watcher.step(f"tuned {build_id}: {said_of(tuning.to_dict())}")
    return found


def _torch_outputs(variants: list[Variant], reference: Predictions) -> dict[str, NDArray[Any]]:
    """By variant, what torch says of the first test samples: the fp32 student, or what was trained as the variant."""
    own = {v.name: np.load(v.torch_outputs, allow_pickle=False) for v in variants if v.torch_outputs is not None}
    return {v.name: own.get(v.name, reference.outputs)[:PARITY_SAMPLES] for v in variants}


def _candidate(
    subject: Subject, build: Build, measurement: Any, said: Predictions, torch_outputs: NDArray[Any]
) -> Candidate:
    scoring, reference, truth = scoring_of(subject.output), subject.reference, subject.truth
    few = len(torch_outputs)
    difference = scoring.difference(said.outputs[:few], torch_outputs)
    return Candidate(
        build=build,
        measurement=measurement,
        accuracy=None if truth is None else compare_accuracy(said.answers, reference.answers, truth, scoring),
        drift=scoring.drift(said, reference),
        parity=difference / scoring.spread(reference.outputs),
        parity_limit=PARITY_LIMITS[build.precision],
        real=subject.real,
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
        "tuned": build.tuned,
        "deployable": build.deployable,
        "facts": build.facts,
        "accuracy": None if candidate.accuracy is None else asdict(candidate.accuracy),
        "drift": asdict(candidate.drift),
        "parity": candidate.parity,
        "parity_limit": candidate.parity_limit,
        "measurement": candidate.measurement.to_dict(),
        "verdict": verdict.to_dict(),
    }


def _pack(
    subject: Subject,
    candidates: list[Candidate],
    verdicts: list[Verdict],
    said: dict[str, Predictions],
    record: dict[str, Any],
) -> None:
    reference = subject.reference.outputs
    count = subject.reference_count
    inputs = np.load(subject.inputs, mmap_mode="r", allow_pickle=False)
    spread = scoring_of(subject.output).spread(reference)
    packed = [
        PackedBuild(
            build=c.build,
            reference_outputs=said[c.build.id].outputs[:count],
            tolerance=DEVICE_LIMITS[c.build.precision] * spread,
            expected={
                **_expected_accuracy(c, record),
                "drift": asdict(c.drift),
                **c.measurement.to_dict(),
            },
        )
        for c in _in_order(candidates, verdicts)
    ]
    gate = {"verdict": record["gate"], "real": subject.real, "goals": record["goals"], "checks": _checks_of(verdicts)}
    pack(
        subject.place.bundle(record["target"]),
        name=subject.name,
        target=record["target"],
        output=subject.output,
        input_spec=subject.variants[0].input,
        reference_inputs=np.array(inputs[:count]),
        fp32_outputs=reference[:count],
        builds=packed,
        gate=gate,
        provenance=provenance(**subject.origin),
        licence=subject.licence,
        readme=_readme(subject, record),
        examples=subject.examples,
        tokenizer=subject.tokenizer,
        stream=subject.stream,
        hop=subject.hop,
    )


def _expected_accuracy(candidate: Candidate, record: dict[str, Any]) -> dict[str, Any]:
    if candidate.accuracy is None:
        return {}
    accuracy = candidate.accuracy
    metric = record["scoring"]["metric"]
    interval = None if accuracy.interval is None else asdict(accuracy.interval)
    drop = asdict(accuracy.drop)
    return {"metric": metric, "accuracy": accuracy.value, "accuracy_interval": interval, "accuracy_drop": drop}


def _in_order(candidates: list[Candidate], verdicts: list[Verdict]) -> list[Candidate]:
    """The chosen build, then the fastest passing build of every other runtime."""
    chosen = next(c for c, v in zip(candidates, verdicts, strict=True) if v.chosen)
    order = [chosen]
    passing = [c for c, v in zip(candidates, verdicts, strict=True) if v.passed and c.build.deployable]
    for c in sorted(passing, key=lambda c: c.measurement.latency.p90_ms):
        if c.build.runtime not in {other.build.runtime for other in order}:
            order.append(c)
    return order


def _checks_of(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return next([asdict(check) for check in v.checks] for v in verdicts if v.chosen)


def _readme(subject: Subject, record: dict[str, Any]) -> str:
    chosen = next(row for row in record["builds"] if row["id"] == record["chosen"])
    latency, samples = chosen["measurement"]["latency"], chosen["drift"]["samples"]
    return f"""# {subject.name} for {record["target"]}

Reads one `{subject.variants[0].input.name}` sample, {_answers(subject.output)}

    pip install numpy {requirement_of(chosen["runtime"])}
    python run.py examples/*     # answers for files of this kind; these are {subject.readme}
    python run.py --self-test    # does this machine compute what it should?
{guide(subject.name, app_of(subject.output, subject.variants[0].input))}

Gate: **{record["gate"]}**. Build `{chosen["id"]}`: {_how_right(chosen)} on
{samples} {subject.readme}; latency p50 {latency["p50_ms"]:.3f} ms, p90 {latency["p90_ms"]:.3f} ms,
{latency["threads"]} thread(s), measured where it was packed. `manifest.json` holds all numbers, the machine
they were measured on, and the sha256 of every file. Data licence: {subject.licence}.
"""


def _how_right(row: dict[str, Any]) -> str:
    """Of a build, by its labels or without them."""
    if row["accuracy"] is not None:
        return f"{row['accuracy']['label']} {row['accuracy']['value']:.2%}"
    return f"{row['drift']['agreement']:.2%} of answers as the fp32 model's"


def _answers(output: OutputSpec) -> str:
    """What the student answers with, in words."""
    if output.scale:
        numbers = (f"{name} in {unit}" if unit else name for name, unit in zip(output.names, output.units, strict=True))
        return f"answers with {', '.join(numbers)}."
    where = " per pixel" if output.task == "segmentation" else ""
    return f"answers with one of {len(output.names)} labels{where}."
