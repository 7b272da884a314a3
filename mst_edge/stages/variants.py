"""From the student to variants: fp32 ONNX, and every scheme that the recipe asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.lab import Lab
from distill.student import Student, load_student, student_outputs
from mst_edge.core.scoring import collect, scoring_of
from mst_edge.recipe import Recipe
from mst_edge.run_folder import RunFolder
from mst_edge.stages.data import Data, save_evaluation
from mst_edge.stages.distill import save_predictions
from mst_edge.stages.goals import goals_of
from mst_edge.stages.mixed import Judge, measurable, search_for
from mst_edge.stages.qat import teaching
from mst_edge.stages.sensitivity import report_sensitivity
from quantize.api import make_variants
from quantize.calibration import FOLDER, Calibration, choose, save_calibration
from quantize.export import export_student, with_program
from quantize.mixed import Search
from quantize.schemes.base import Material
from quantize.step import export_step, is_streaming
from quantize.variant import Variant, load_variant

STAGE, TUNING, SEARCH = "variants", "tuning", "search"
PARITY_SAMPLES = 64
_BATCH, _DENSE_BATCH = 256, 4
_STREAMED = 8  # clips on which the model of one frame is compared with the student


def run_variants(
    recipe: Recipe, data: Data, run: RunFolder, lab: Callable[[], Lab], say: Callable[[str], None]
) -> dict[str, Any]:
    """Exports and quantizes; keeps test inputs and the fp32 student's answers beside.

    Args:
        lab: makes the lab in which the student was trained, for schemes that train it further.
        say: is told what is done.
    """
    student = load_student(run.distill)
    modality = recipe.student.modality
    save_evaluation(run, data, modality, student.frontend)
    inputs = np.load(run.evaluation / "inputs.npy", mmap_mode="r", allow_pickle=False)
    few = _DENSE_BATCH if student.spec.map_size else min(_BATCH, student.spec.modality.block_rows)
    save_predictions(run, collect(student_outputs(student, inputs, few), scoring_of(student.spec.output)))
    said = recipe.quantize
    ids = choose(data.dataset, data.splits["train"], said.calibration.samples, recipe.seed)
    material = Material(
        source=with_program(student, export_student(student, run.variants / "fp32")),
        calibration=_keep(run.variants / FOLDER, data, student, ids),
        calibrator=said.calibration.calibrator,
        exclude=said.exclude,
        student=student,
        teach=teaching(recipe, lab, student),
        raw=inputs[:PARITY_SAMPLES],
    )
    judged = choose(data.dataset, data.splits["val"], said.mixed.samples, recipe.seed)
    samples = _keep(run.variants / TUNING, data, student, judged)

    def search(target: str) -> Search:
        judge = Judge(samples, goals_of(recipe, target), recipe.measure.threads)
        return search_for(material.source, judge, said.mixed, target, run.variants / SEARCH / target, say)

    made, skipped = make_variants(
        material, said.schemes, run.variants, dict.fromkeys(measurable(recipe.targets), search)
    )
    record = {
        "variants": [variant_row(variant) for variant in [material.source, *made]],
        "skipped": skipped,
        "calibration_samples": len(ids),
        "sensitivity": report_sensitivity(material, samples.inputs, run.variants) if said.sensitivity else None,
        "stream": asdict(export_step(student, run.stream, inputs[:_STREAMED])) if is_streaming(student) else None,
    }
    run.finish_stage(STAGE, record)
    return record


def _keep(folder: Path, data: Data, student: Student, ids: NDArray[np.int64]) -> Calibration:
    """Samples as the graph takes them, with what is right."""
    modality = student.spec.modality.name

    def read(portion: slice) -> NDArray[Any]:
        return student.frontend.host(data.dataset.read(modality, ids[portion]))

    target = np.asarray(data.dataset.target[ids])
    return save_calibration(folder, len(ids), read, target=target, about={"ids": ids.tolist()})


def load_variants(run: RunFolder, record: dict[str, Any]) -> list[Variant]:
    """The variants that the stage made."""
    return [load_variant(run.variants / row["name"]) for row in record["variants"]]


def variant_row(variant: Variant) -> dict[str, Any]:
    """What a result says of a variant."""
    return {
        "name": variant.name,
        "scheme": variant.scheme,
        "precision": variant.precision,
        "backend": variant.backend,
        "target": variant.target,
        "opset": variant.opset,
        "size_bytes": variant.model.stat().st_size,
        "float_nodes": len(variant.float_nodes),
        "facts": {key: value for key, value in variant.facts.items() if key != "ranges"},
    }
