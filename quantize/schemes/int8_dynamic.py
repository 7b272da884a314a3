"""int8 without samples, by ONNX Runtime: activation ranges are found anew for every input."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from quantize.qdq import needs_reduced_range
from quantize.schemes.base import SCHEMES, Material, Scheme, require_types

# Dynamic convolutions run without a fast kernel: several times slower than float.
_PRODUCTS = ("MatMul", "Gemm")
_TYPES = (*_PRODUCTS, "Gather")  # of a constant: a table of embeddings


@SCHEMES.register("int8-dynamic")
class Int8Dynamic(Scheme):
    """Matrix products with signed weights per channel, what a transformer or an MLP is made of, and tables."""

    name = "int8-dynamic"
    precision = "int8"
    backend = "onnxruntime"
    uses_samples = False
    summary = "int8 matrix products and tables of embeddings, activation ranges per input; convolutions stay in float"

    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        model = material.model()
        require_types(model, _PRODUCTS, self.name)
        reduce_range = needs_reduced_range()
        logging.disable(logging.WARNING)  # it advises pre-processing on the root logger
        try:
            quantize_dynamic(
                model,
                out,
                op_types_to_quantize=list(_TYPES),
                per_channel=True,
                reduce_range=reduce_range,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(material.kept(model)),
                # A product of two activations has no weights to make small.
                extra_options={"MatMulConstBOnly": True},
            )
        finally:
            logging.disable(logging.NOTSET)
        return {"reduce_range": reduce_range}
