"""For a device that is not this machine: models that it builds itself, with all that it takes to judge them there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime.board.check import FP32, INPUTS, TARGET
from mst_edge.core.files import atomic_path, sha256_file
from mst_edge.core.provenance import provenance
from mst_edge.core.scoring import scoring_of
from mst_edge.stages.subject import NOT_JUDGED, DeployWatcher, Subject, variants_for
from quantize.calibration import ABOUT
from quantize.variant import Variant
from targets.board import BoardTarget
from targets.carried import app_of
from targets.pack import PackedBuild, pack
from targets.service import guide
from targets.spec import WHOLE_BF16, Build
from targets.target import gather, get_target

# What another device may differ from this one's outputs, as a share of the outputs' spread (standard deviation).
DEVICE_LIMITS = {
    "fp32": 1e-3,
    "tf32": 0.05,
    "fp16": 0.05,
    "bf16": 0.25,
    WHOLE_BF16: 0.25,
    "int8": 0.5,
    "int8-bf16": 0.5,
    "w8": 0.05,
    "w4": 0.05,
}
# Boards multiply fp32 in TF32: they are not told otherwise.
_GPU_LIMITS = {**DEVICE_LIMITS, "fp32": DEVICE_LIMITS["tf32"]}
# Samples that a bundle carries to be judged by, and the size of each of their arrays.
_MOST_SAMPLES, _MOST_BYTES = 1000, 32 << 20


def pack_for_board(subject: Subject, target: BoardTarget, watcher: DeployWatcher) -> dict[str, Any]:
    """Packs every variant that the device takes; the gate's verdict waits for what the device finds."""
    name = target.spec.name
    place = subject.place.builds(name)
    variants, not_made = variants_for(subject, target)
    made = target.prepare(variants, place)
    builds, skipped = gather(made, name, subject.name, lambda build: watcher.step(f"prepared {build.id}"))
    rows = _judging_rows(subject)
    inputs = np.load(subject.inputs, mmap_mode="r", allow_pickle=False)
    said = _said_here(subject, builds, {v.name: v for v in variants}, inputs, rows, watcher)
    evaluation = _save_evaluation(subject, rows, inputs, said["fp32"], place / "evaluation")
    packed = [_packed(subject, build, said[build.variant], said["fp32"], rows) for build in builds]
    gate = {"verdict": NOT_JUDGED, "real": subject.real, "goals": asdict(subject.goals), "checks": []}
    forecasts = dict(target.forecasts(builds, (1, *inputs.shape[1:])))
    record = {
        "target": name,
        "on_host": False,
        "summary": target.spec.summary,
        "real": subject.real,
        "scoring": scoring_of(subject.output).describe(),
        "builds": [_row(entry) for entry in packed],
        "skipped": [*not_made, *(asdict(entry) for entry in skipped)],
        "goals": gate["goals"],
        "chosen": None,
        "gate": NOT_JUDGED,
        "forecasts": forecasts,
        "found": None,
        "made_of": made_of(subject.variants),
        "judged_on": len(rows),
        "bundle": str(subject.place.bundle(name).relative_to(subject.place.path)),
    }
    count = subject.reference_count
    pack(
        subject.place.bundle(name),
        name=subject.name,
        target=name,
        output=subject.output,
        input_spec=subject.variants[0].input,
        reference_inputs=np.array(inputs[:count]),
        fp32_outputs=subject.reference.outputs[:count],
        builds=packed,
        gate=gate,
        provenance=provenance(**subject.origin),
        licence=subject.licence,
        readme=_readme(subject, target, record),
        examples=subject.examples,
        tokenizer=subject.tokenizer,
        stream=subject.stream,
        needs=target.needs,
        hop=subject.hop,
        more={
            **target.carried(),
            **evaluation,
            **_calibration(subject),
            **{f"{about}.json": json.dumps(said, indent=2) + "\n" for about, said in forecasts.items()},
        },
    )
    return record


def made_of(variants: Sequence[Variant]) -> dict[str, str]:
    """What a bundle is made of: name of each variant to the sha256 of its model."""
    return {variant.name: sha256_file(variant.model) for variant in variants}


def _judging_rows(subject: Subject) -> NDArray[np.int64]:
    """Sorted numbers of the samples that the bundle carries, drawn among all that judge: a smaller picture, not a
    different one."""
    inputs = np.load(subject.inputs, mmap_mode="r", allow_pickle=False)
    largest = max(inputs[0].nbytes, subject.reference.outputs[0].nbytes)
    count = min(len(inputs), _MOST_SAMPLES, max(1, _MOST_BYTES // largest))
    return np.sort(np.random.default_rng(0).permutation(len(inputs))[:count])


def _said_here(
    subject: Subject,
    builds: list[Build],
    variants: Mapping[str, Variant],
    inputs: NDArray[Any],
    rows: NDArray[np.int64],
    watcher: DeployWatcher,
) -> dict[str, NDArray[np.float32]]:
    """By variant, outputs of the reference inputs and then of the judging samples, by ONNX Runtime on this machine."""
    wanted = [*range(subject.reference_count), *rows.tolist()]
    runtime = get_target("cpu").runtime("onnxruntime")
    said = {}
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as scratch:
        for name in dict.fromkeys(["fp32", *(build.variant for build in builds)]):
            watcher.busy(f"reference outputs of {name}")
            variant = variants[name]
            built = runtime.build(variant, variant.precision, subject.threads, Path(scratch) / name)
            with runtime.load(built) as runner:
                said[name] = np.concatenate([runner.run(np.array(inputs[k : k + 1])) for k in wanted])
    return said


def _save_evaluation(
    subject: Subject, rows: NDArray[np.int64], inputs: NDArray[Any], fp32: NDArray[np.float32], folder: Path
) -> dict[str, Path]:
    """Writes what judges; returns where it goes in the bundle."""
    arrays = {INPUTS: np.array(inputs[rows]), FP32: fp32[subject.reference_count :]}
    if subject.truth is not None:
        arrays[TARGET] = np.asarray(subject.truth[rows])
    files = {path: folder / Path(path).name for path in arrays}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for path, array in arrays.items():
            np.save(temporary / Path(path).name, array, allow_pickle=False)
    return files


def _calibration(subject: Subject) -> dict[str, Path]:
    """The samples that ranges came from: a calibrator on the device can repeat it."""
    kept = subject.material.calibration
    return {f"calibration/{file.name}": file for file in (kept.file, kept.folder / ABOUT)}


def _packed(
    subject: Subject,
    build: Build,
    said: NDArray[np.float32],
    fp32: NDArray[np.float32],
    rows: NDArray[np.int64],
) -> PackedBuild:
    scoring, count = scoring_of(subject.output), subject.reference_count
    expected: dict[str, Any] = {"samples": len(rows), "by": "onnxruntime on the machine that packed it"}
    ours, theirs = (scoring.answers(outputs[count:]) for outputs in (said, fp32))
    expected["agreement"] = scoring.agreement(ours, theirs)
    if subject.truth is not None:
        target = np.asarray(subject.truth[rows])
        expected["metric"] = scoring.metric
        expected["accuracy"] = scoring.value(scoring.statistics(ours, target))
    tolerance = _GPU_LIMITS[build.precision] * scoring.spread(subject.reference.outputs)
    return PackedBuild(build, said[:count], tolerance, expected)


def _row(entry: PackedBuild) -> dict[str, Any]:
    build = entry.build
    return {
        "id": build.id,
        "runtime": build.runtime,
        "precision": build.precision,
        "variant": build.variant,
        "options": build.options,
        "size_bytes": build.size_bytes,
        "expected": dict(entry.expected),
    }


def _readme(subject: Subject, target: BoardTarget, record: Mapping[str, Any]) -> str:
    models = "\n".join(f"- `{row['id']}`: {row['size_bytes'] / 1e6:.2f} MB" for row in record["builds"])
    return f"""# {subject.name} for {target.spec.name}

Gate: **{record["gate"]}**: nothing here was built or measured yet, that takes the device.

{target.guide()}
Then, on the board:

{guide(subject.name, app_of(subject.output, subject.variants[0].input)).replace("python ", "python3 ")}

The models:

{models}

They are judged on {record["judged_on"]} {subject.readme}. `manifest.json` holds the sha256 of every file, what is
expected of every model and the machine that packed them. Data licence: {subject.licence}.
"""
