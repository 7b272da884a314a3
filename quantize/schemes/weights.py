"""Weights alone as integers, arithmetic in float: matrix products, in blocks of 32, and tables of embeddings.

Products are ONNX Runtime's. Tables have eight bits in both schemes: what a token starts as passes through everything
behind it.
"""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any, ClassVar

import onnx

from quantize.schemes.base import SCHEMES, Material, Scheme, UnfitError
from quantize.tables import round_tables

_BLOCK = 32


@SCHEMES.register("int8-weights")
class Int8Weights(Scheme):
    """Matrix products with constant weights, and tables; for models that are large rather than slow."""

    name = "int8-weights"
    precision = "w8"
    backend = "onnxruntime"
    uses_samples = False
    summary = "8-bit weights of matrix products and tables of embeddings, arithmetic in float"
    bits: ClassVar[int] = 8

    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        model = material.model()
        kept = material.kept(model)
        tables = round_tables(model, kept)
        logging.disable(logging.WARNING)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                quantizer = MatMulNBitsQuantizer(
                    model,
                    bits=self.bits,
                    block_size=_BLOCK,
                    is_symmetric=True,
                    nodes_to_exclude=list(kept),
                )
                quantizer.process()
        finally:
            logging.disable(logging.NOTSET)
        made = quantizer.model.model
        count = sum(node.op_type == "MatMulNBits" for node in made.graph.node)
        if not (count or tables):
            raise UnfitError(
                f"{self.name} quantizes matrix products with constant weights, and tables: the model has none"
            )
        onnx.save(made, out)
        return {"bits": self.bits, "block_size": _BLOCK, "products": count, "tables": tables}


@SCHEMES.register("int4-weights")
class Int4Weights(Int8Weights):
    """Products in 4 bits."""

    name = "int4-weights"
    folder = "int4-weights"
    precision = "w4"
    summary = "4-bit weights of matrix products, 8-bit tables of embeddings, arithmetic in float"
    bits = 4
