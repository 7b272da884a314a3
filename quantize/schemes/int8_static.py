"""int8 with QDQ by ONNX Runtime's quantizer, activation ranges from samples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantize.choice import calibrated
from quantize.layers import WEIGHTED
from quantize.schemes.base import SCHEMES, Material, Scheme, require_types


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
        require_types(material.model(), WEIGHTED, self.name)
        assignable = calibrated(material, symmetric=self.symmetric)
        assignable.write(out)
        return {
            "calibrator": assignable.calibrator,
            "reduce_range": assignable.reduce_range,
            "ranges": {name: asdict(found) for name, found in assignable.ranges.items()},
        }


@SCHEMES.register("int8-symmetric")
class Int8Symmetric(Int8Static):
    """The same with signed activations and zero point 0: the form that TensorRT takes."""

    name = "int8-symmetric"
    folder = "int8-symmetric"
    summary = "as int8-static, zero point 0 everywhere: what TensorRT takes"
    symmetric = True
