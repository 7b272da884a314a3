"""int8 for the layers where it pays on the target, float for the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mst_edge.core.errors import UserError
from quantize.layers import WEIGHTED
from quantize.mixed import BEST, search_assignment
from quantize.schemes.base import SCHEMES, Material, Scheme, require_types


@SCHEMES.register("int8-mixed")
class Int8Mixed(Scheme):
    """The fastest assignment of int8 and float to layers that meets the accuracy goal, as measured on the target."""

    name = "int8-mixed"
    folder = "mixed"
    precision = "int8"
    backend = "onnxruntime"
    per_target = True
    summary = "int8 or float per layer, whichever the target runs fastest within the accuracy goal; searched for"

    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        require_types(material.model(), WEIGHTED, self.name)
        search = material.search
        if search is None:
            raise UserError(
                f"{self.name} measures on a target, which takes a run with its data",
                where="quantize.schemes",
                fix="name the scheme in a recipe, or take int8-static",
            )
        record = search_assignment(material, search)
        shutil.copyfile(search.folder / BEST, out)
        return {key: record[key] for key in ("ended", "layers", "seconds", "chosen", "front")}
