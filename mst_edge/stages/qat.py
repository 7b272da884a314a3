"""Training for int8: by the task alone (``int8-qat``), or by the recipe's method (``int8-qad``)."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from distill.lab import FineTuning, Lab
from distill.methods.base import Method
from distill.networks.registry import Model
from distill.student import Student
from mst_edge.recipe import Recipe
from mst_edge.stages.data import Data
from mst_edge.stages.distill import deployable, make_method
from quantize.calibration import FOLDER, choose, save_calibration
from quantize.export import export_student
from quantize.schemes.base import SCHEMES, Material, Teach
from quantize.schemes.int8_trained import Int8Qad, Int8Qat


def teaching(recipe: Recipe, lab: Callable[[], Lab], student: Student) -> Teach:
    """How schemes may train the student further.

    Args:
        lab: makes the lab in which it was trained.
    """
    said = recipe.quantize.qat

    def teach(scheme: str, rounded: Student) -> dict[str, Any]:
        where, network = lab(), student.spec.network
        model = Model("student", network.network, rounded.network, (where.student_modality,), False, network.options)
        # Another calibration or other layers in float are another start: what was trained from this one goes on.
        phase = f"{scheme.replace('-', '_')}_{_digest(rounded.network)[:6]}"
        tuning = FineTuning(phase, said.epochs, said.lr)
        if scheme != Int8Qad.name:
            where.fine_tune(model, tuning)
            return {**said.model_dump(), "objective": "task"}
        make_method(recipe, where, recipe.distill.method).fine_tune(model, tuning)
        return {**said.model_dump(), "objective": recipe.distill.method}

    return teach


def _digest(network: nn.Module) -> str:
    """A hash over the names and numbers of a network."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def check_training(recipe: Recipe, data: Data, lab: Lab, methods: Mapping[str, Method]) -> None:
    """Tries on a student that has learned nothing yet whether it can be trained in int8, where the recipe asks for it.

    Raises:
        UserError: a layer cannot, or the method does not teach by logits alone.
    """
    if Int8Qad.name in recipe.quantize.schemes:
        methods[recipe.distill.method].check_fine_tuning()
    trained = [name for name in recipe.quantize.schemes if issubclass(SCHEMES.get(name), Int8Qat)]
    if not trained:
        return
    student = deployable(lab.new_student(), data, lab, {})
    ids = choose(data.dataset, data.splits["train"], 2, recipe.seed)
    samples = student.frontend.host(data.dataset.read(lab.student_modality, ids))
    with tempfile.TemporaryDirectory() as folder:
        material = Material(
            source=export_student(student, Path(folder) / "fp32"),
            calibration=save_calibration(Path(folder) / FOLDER, len(ids), samples.__getitem__),
            exclude=recipe.quantize.exclude,
            student=student,
            teach=lambda scheme, rounded: {},
            raw=samples,
        )
        SCHEMES.get(trained[0])().make(material, Path(folder) / "int8")
