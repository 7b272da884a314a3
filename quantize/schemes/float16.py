"""fp16 by ONNX Runtime's converter: half the size; GPUs compute in it, CPUs mostly do not."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from quantize.schemes.base import SCHEMES, Material, Scheme


@SCHEMES.register("fp16")
class Float16(Scheme):
    """Everything but the front end and the answer in half precision; inputs and outputs keep their types."""

    name = "fp16"
    precision = "fp16"
    backend = "onnxruntime"
    uses_samples = False
    summary = "half the size; CPUs without fp16 units compute it in fp32"

    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = material.model()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            half = convert_float_to_float16(
                model, keep_io_types=True, node_block_list=list(material.kept(model)), op_block_list=["Resize"]
            )
        _name_apart(half)
        onnx.save(half, out)
        # It says which values were too small or too large for half precision.
        clipped = sum("clipped" in str(entry.message) or "truncated" in str(entry.message) for entry in said)
        return {"weights_out_of_range": clipped}


def _name_apart(model: onnx.ModelProto) -> None:
    """The converter gives the casts after a node of several outputs one name, which ONNX Runtime refuses to load."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        seen[node.name] += 1
        if seen[node.name] > 1:
            node.name = f"{node.name}_{seen[node.name]}"
