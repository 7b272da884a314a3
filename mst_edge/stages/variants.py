"""From the student to variants: fp32 ONNX, and every scheme that the recipe asks for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.lab import Lab
from distill.student import load_student, student_outputs
from mst_edge.core.scoring import collect, scoring_of
from mst_edge.recipe import Recipe
from mst_edge.run_folder import RunFolder
from mst_edge.stages.data import Data, save_evaluation
from mst_edge.stages.distill import save_predictions
from mst_edge.stages.qat import make_trained_int8, trained_schemes
from quantize import calibration
from quantize.export import export_student
from quantize.int8_static import Int8Options, quantize_int8
from quantize.variant import Variant, load_variant

STAGE = "variants"
_BATCH, _DENSE_BATCH = 256, 4
PARITY_SAMPLES = 64


def run_variants(recipe: Recipe, data: Data, run: RunFolder, lab: Callable[[], Lab]) -> dict[str, Any]:
    """Exports and quantizes; keeps test inputs and the fp32 student's answers beside.

    Args:
        lab: makes the lab in which the student was trained, for schemes that train it further.
    """
    student = load_student(run.distill)
    modality = recipe.student.modality
    save_evaluation(run, data, modality, student.frontend)
    inputs = np.load(run.evaluation / "inputs.npy", mmap_mode="r", allow_pickle=False)
    few = _DENSE_BATCH if student.spec.map_size else _BATCH
    save_predictions(run, collect(student_outputs(student, inputs, few), scoring_of(student.spec.output)))
    made = [export_student(student, run.variants / "fp32")]
    chosen = recipe.quantize.calibration
    ids = calibration.choose(data.dataset, data.splits["train"], chosen.samples, recipe.seed)
    samples_file = run.variants / calibration.CALIBRATION
    calibration.save(samples_file, ids, student.frontend.host(data.dataset.read(modality, ids)))
    samples = calibration.load(samples_file)
    options = Int8Options(chosen.calibrator)
    if "int8-static" in recipe.quantize.schemes:
        made.append(quantize_int8(made[0], samples, run.variants / "int8", options))
    if trained := trained_schemes(recipe):
        few_inputs = inputs[:PARITY_SAMPLES]
        with tempfile.TemporaryDirectory() as folder:
            start = quantize_int8(made[0], samples, Path(folder) / "int8", options)
            made += [
                make_trained_int8(scheme, recipe, lab(), student, (made[0], start), few_inputs, run.variants / scheme)
                for scheme in trained
            ]
    record = {"variants": [_row(variant) for variant in made], "calibration_samples": len(ids)}
    run.finish_stage(STAGE, record)
    return record


def load_variants(run: RunFolder, record: dict[str, Any]) -> list[Variant]:
    """The variants that the stage made."""
    return [load_variant(run.variants / row["name"]) for row in record["variants"]]


def _row(variant: Variant) -> dict[str, Any]:
    return {
        "name": variant.name,
        "scheme": variant.scheme,
        "backend": variant.backend,
        "opset": variant.opset,
        "size_bytes": variant.model.stat().st_size,
        "float_nodes": len(variant.float_nodes),
        "facts": variant.facts,
    }
