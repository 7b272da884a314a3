"""ONNX files that TensorRT reads with explicit precision: what it refuses, and what is changed for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_LINEAR = ("QuantizeLinear", "DequantizeLinear")


def take(model: onnx.ModelProto, out: Path) -> None:
    """Writes ``model``, which is not ``unfit``, as TensorRT reads it."""
    float_biases(model)
    onnx.checker.check_model(model)
    onnx.save(model, out)


def unfit(model: onnx.ModelProto) -> str:
    """Why TensorRT does not take a model; empty where nothing is known against it.

    With explicit precision TensorRT takes QuantizeLinear and DequantizeLinear with signed 8-bit values and zero point
    0, and none of ONNX Runtime's own operators.
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            return f"holds {node.domain}.{node.op_type}, which is ONNX Runtime's own"
        if node.op_type in ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger") or node.op_type.startswith("QLin"):
            return f"holds {node.op_type}, which TensorRT does not take"
        if node.op_type in _LINEAR and len(node.input) > 2:
            zero = numpy_helper.to_array(held[node.input[2]]) if node.input[2] in held else None
            if zero is None or zero.dtype not in (np.int8, np.int32) or zero.any():
                return "is not symmetric: TensorRT takes signed 8-bit values with zero point 0 (int8-symmetric)"
    return ""


def float_biases(model: onnx.ModelProto) -> int:
    """Replaces biases kept as 32-bit integers by their values in float; returns how many.

    ONNX Runtime's quantizer dequantizes them in the graph. TensorRT takes 8-bit inputs of DequantizeLinear alone, and
    adds biases in float whatever they are stored as.
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    changed = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in held
        and held[node.input[0]].data_type == onnx.TensorProto.INT32
    ]
    for node in changed:
        whole, scale = (numpy_helper.to_array(held[name]) for name in node.input[:2])
        value: NDArray[Any] = whole.astype(np.float64) * scale
        model.graph.initializer.append(numpy_helper.from_array(value.astype(scale.dtype), node.output[0]))
        model.graph.node.remove(node)
    read = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)
    return len(changed)


def to_bfloat16(model: onnx.ModelProto) -> None:
    """Makes bf16 of all that is fp16 in a model: its range is that of fp32, its mantissa has 7 bits in place of 10."""
    half, brain = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(_rounded(tensor))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = brain
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == half:
                attribute.t.CopyFrom(_rounded(attribute.t))
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = brain


def _rounded(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    return helper.make_tensor(tensor.name, onnx.TensorProto.BFLOAT16, tensor.dims, values.flatten())
