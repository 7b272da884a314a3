"""int8 with QDQ by ONNX Runtime's quantizer, activation ranges from samples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantize.qdq import needs_reduced_range, quantize_with_ranges
from quantize.ranges import find_ranges
from quantize.schemes.base import SCHEMES, Material, Scheme, require_types

_HEADS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@SCHEMES.register("int8-static")
class Int8Static(Scheme):
    """Weights signed per channel, activations unsigned per tensor, which x86 kernels want.

    The front end stays in float, and so do the last step to physical units and the softmax of attention with its mask.
    An embedding table becomes int8, one scale for all of it.
    """

    name = "int8-static"
    folder = "int8"
    precision = "int8"
    backend = "onnxruntime"
    summary = "int8 weights and activations; ranges from samples by minmax, percentile, entropy or mse"
    symmetric = False

    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        model = material.model()
        require_types(model, _HEADS, self.name)
        float_nodes = material.source.float_nodes
        ranges = find_ranges(model, material.source.input.name, material.calibration, material.calibrator, float_nodes)
        reduce_range = needs_reduced_range()
        quantize_with_ranges(
            model,
            ranges,
            out,
            keep=material.kept(model),
            reduce_range=reduce_range,
            symmetric=self.symmetric,
        )
        return {
            "calibrator": material.calibrator,
            "reduce_range": reduce_range,
            "ranges": {name: asdict(found) for name, found in ranges.items()},
        }


@SCHEMES.register("int8-symmetric")
class Int8Symmetric(Int8Static):
    """The same with signed activations and zero point 0: the form that TensorRT takes."""

    name = "int8-symmetric"
    folder = "int8-symmetric"
    summary = "as int8-static, zero point 0 everywhere: what TensorRT takes"
    symmetric = True
