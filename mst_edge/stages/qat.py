"""int8 variants that are trained: with the task alone (``int8-qat``), or by the recipe's method (``int8-qad``)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.lab import FineTuning, Lab
from distill.methods.base import Method
from distill.networks.registry import Model
from distill.student import Student, student_outputs
from mst_edge.recipe import Recipe
from mst_edge.stages.data import Data
from mst_edge.stages.distill import deployable, make_method
from quantize.calibration import choose, save_calibration
from quantize.export import export_student
from quantize.qat.export import export_int8
from quantize.qat.twin import fake_quantized
from quantize.schemes.base import Material
from quantize.schemes.int8_static import Int8Static
from quantize.variant import Variant

DISTILLED = "int8-qad"
TRAINED = ("int8-qat", DISTILLED)


def trained_schemes(recipe: Recipe) -> list[str]:
    """Those of the recipe's schemes that need training data and a lab."""
    return [scheme for scheme in recipe.quantize.schemes if scheme in TRAINED]


def untrained_schemes(recipe: Recipe) -> list[str]:
    """Those of the recipe's schemes that take the student as it is."""
    return [scheme for scheme in recipe.quantize.schemes if scheme not in TRAINED]


def check_trained_schemes(recipe: Recipe, data: Data, lab: Lab, methods: Mapping[str, Method]) -> None:
    """Tries on a student that has learned nothing yet whether its layers can be trained in int8.

    Raises:
        UserError: they cannot, or the method does not teach by logits alone.
    """
    schemes = trained_schemes(recipe)
    if DISTILLED in schemes:
        methods[recipe.distill.method].check_fine_tuning()
    if schemes:
        student = deployable(lab.new_student(), data, lab, {})
        ids = choose(data.dataset, data.splits["train"], 2, recipe.seed)
        samples = np.array(student.frontend.host(data.dataset.read(lab.student_modality, ids)))
        with tempfile.TemporaryDirectory() as folder:
            exact = export_student(student, Path(folder) / "fp32")
            calibration = save_calibration(Path(folder) / "calibration", len(samples), samples.__getitem__)
            int8 = Int8Static().make(Material(exact, calibration), Path(folder) / "int8")
            list(student_outputs(fake_quantized(student, exact, int8), samples))


def make_trained_int8(
    scheme: str,
    recipe: Recipe,
    lab: Lab,
    student: Student,
    material: Material,
    raw: NDArray[Any],
    folder: Path,
) -> Variant:
    """Trains the student with the rounding of an int8 variant and writes what it learned, ranges included.

    Args:
        material: fp32, and what the int8 that training starts with is made of.
        raw: the first test samples, as the graph takes them: the file must compute of them what torch does.

    Raises:
        UserError: a layer cannot be trained, or the loss is no longer finite.
    """
    with tempfile.TemporaryDirectory() as scratch:
        int8 = Int8Static().make(material, Path(scratch) / "int8")
        return _trained(scheme, recipe, lab, student, (material.source, int8), raw, folder)


def _trained(
    scheme: str,
    recipe: Recipe,
    lab: Lab,
    student: Student,
    variants: tuple[Variant, Variant],
    raw: NDArray[Any],
    folder: Path,
) -> Variant:
    exact, int8 = variants
    said, network = recipe.quantize.qat, student.spec.network
    rounded = fake_quantized(student, exact, int8)
    model = Model("student", network.network, rounded.network, (lab.student_modality,), False, network.options)
    tuning = FineTuning(scheme.replace("-", "_"), said.epochs, said.lr)
    if scheme == DISTILLED:
        make_method(recipe, lab, recipe.distill.method).fine_tune(model, tuning)
    else:
        lab.fine_tune(model, tuning)
    facts = {**said.model_dump(), "objective": recipe.distill.method if scheme == DISTILLED else "task"}
    return export_int8(rounded, int8, raw, folder, scheme, facts)
