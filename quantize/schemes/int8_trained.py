"""int8 that the student was trained for: the graph of int8-static, its weights and ranges learned under rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mst_edge.core.errors import UserError
from quantize.schemes.base import SCHEMES, Material
from quantize.schemes.int8_static import Int8Static


@SCHEMES.register("int8-qat")
class Int8Qat(Int8Static):
    """Quantization-aware training: the student goes on learning the task, rounded as int8 rounds."""

    name = "int8-qat"
    folder = "int8-qat"
    backend = "torch"
    summary = "as int8-static, then trained with int8's rounding on the task; weights and ranges learn"

    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        """Calibrates, trains and writes.

        Raises:
            UserError: there is nothing to train with, or a layer that cannot be trained.
        """
        from quantize.qat.export import write_int8
        from quantize.qat.twin import fake_quantized

        student, teach, raw = material.student, material.teach, material.raw
        if student is None or teach is None or raw is None:
            raise UserError(
                f"{self.name} trains the student, which takes a run with its data",
                where="quantize.schemes",
                fix="name the scheme in a recipe, or take int8-static",
            )
        facts = super()._write(material, out)
        del facts["ranges"]  # they are where training starts
        rounded = fake_quantized(student, material.source, out)
        facts |= teach(self.name, rounded)
        found = write_int8(rounded, raw, out)
        return {**facts, "parity_mean_steps": found.mean_steps, "parity_max_steps": found.max_steps}


@SCHEMES.register("int8-qad")
class Int8Qad(Int8Qat):
    """Quantization-aware distillation: the student goes on learning from the recipe's teachers."""

    name = "int8-qad"
    folder = "int8-qad"
    summary = "as int8-qat, by the recipe's method and its teachers"
