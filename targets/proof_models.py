"""Writes the tiny models of ``targets/proofs``, with which runtimes prove what they run: python -m targets.proof_models

One matrix product, a sum and a ReLU, in numbers that every precision holds exactly. They are files, so that a machine
without the onnx package can prove its runtimes too.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from targets.proof import FORMS, MODELS, bias, sample, weight

_OPSET = 18
_Made = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]


def write_models(folder: Path) -> None:
    """One ONNX file per form in which a variant keeps its weights."""
    for form in (form for forms in FORMS.values() for form in forms):
        onnx.save(_model(form), folder / f"{form}.onnx")


def _model(form: str) -> onnx.ModelProto:
    made: dict[str, Callable[[], _Made]] = {
        "fp16": _half,
        "int8": partial(_int8, np.uint8),
        "int8-symmetric": partial(_int8, np.int8),
    }
    nodes, constants = made.get(form, _float)()
    nodes += [helper.make_node("Add", ["product", "bias"], ["sum"]), helper.make_node("Relu", ["sum"], ["answer"])]
    (inputs, outputs), rows = weight().shape, "batch"
    graph = helper.make_graph(
        nodes,
        "proof",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, [rows, inputs])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [rows, outputs])],
        [numpy_helper.from_array(array, name) for name, array in {**constants, "bias": bias()}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    return _in_blocks(model, int(form[1:])) if form.startswith("w") else model


def _float() -> _Made:
    return [helper.make_node("MatMul", ["sample", "weight"], ["product"], name="product")], {"weight": weight()}


def _half() -> _Made:
    nodes = [
        helper.make_node("Cast", ["sample"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "weight"], ["half_product"]),
        helper.make_node("Cast", ["half_product"], ["product"], to=TensorProto.FLOAT),
    ]
    return nodes, {"weight": weight().astype(np.float16)}


def _int8(kind: type[np.integer]) -> _Made:
    nodes = [
        helper.make_node("QuantizeLinear", ["sample", "one", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "one", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "signed"], ["weight_rounded"]),
        helper.make_node("MatMul", ["rounded", "weight_rounded"], ["product"]),
    ]
    points = {"one": np.float32(1), "zero": kind(0), "signed": np.int8(0)}
    return nodes, {"weight": weight().astype(np.int8), **{name: np.asarray(value) for name, value in points.items()}}


def _in_blocks(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=len(sample()[0]), is_symmetric=True)
            quantizer.process()
    finally:
        logging.disable(logging.NOTSET)
    return quantizer.model.model


if __name__ == "__main__":
    write_models(MODELS)
