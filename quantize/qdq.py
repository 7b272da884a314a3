"""QuantizeLinear and DequantizeLinear around the operators of an ONNX graph, by ONNX Runtime's quantizer."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from mst_edge.core.machine import this_machine
from quantize.layers import WEIGHTED, quantizable_types
from quantize.ranges import Range


def quantize_with_ranges(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    out: Path,
    *,
    keep: Collection[str],
    reduce_range: bool,
    symmetric: bool = False,
) -> None:
    """Writes ``model`` in int8 to ``out``: weights signed and per channel, activations in the given ranges.

    Args:
        keep: names of the nodes that stay in float.
        reduce_range: 7-bit weights.
        symmetric: activations signed with zero point 0, which TensorRT wants; else unsigned, which x86 wants.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    known = {name: (np.float32(r.low), np.float32(r.high)) for name, r in ranges.items()}
    copy = onnx.shape_inference.infer_shapes(model)
    with _quiet():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, known),
            nodes_to_quantize=[],
            nodes_to_exclude=[*keep, *masked_softmax(model)],
            op_types_to_quantize=sorted(quantizable_types()),
            extra_options={"ActivationSymmetric": symmetric},
        )
        quantizer.quantize_model()
        quantizer.model.save_model_to_file(str(out))


def masked_softmax(model: onnx.ModelProto) -> Iterator[str]:
    """Names of nodes in whose range no score is left: a mask fills in the lowest float there is."""
    return (node.name for node in model.graph.node if node.op_type in ("Where", "Softmax"))


def needs_reduced_range() -> bool:
    """Whether weights have to be 7-bit here."""
    return this_machine().int8_can_overflow


def require_float(model: onnx.ModelProto, names: Collection[str]) -> None:
    """No node of ``names`` may read a dequantized value: a log-mel in int8 is noise."""
    dequantized = {out for node in model.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    for node in model.graph.node:
        if node.name in names and dequantized & set(node.input):
            raise RuntimeError(f"node {node.name}, which must stay in float, was quantized")


def in_float(model: onnx.ModelProto) -> Iterator[str]:
    """Names of convolutions and products whose weights are float although what they read was int8."""
    constants = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    dequantized = {out for node in model.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    for node in model.graph.node:
        if node.op_type in WEIGHTED and node.input[0] in dequantized and node.input[1] in constants:
            yield node.name


def rounded_name(model: onnx.ModelProto, tensor: str) -> str:
    """The name of a tensor's value after rounding, where it is rounded."""
    readers = {node.input[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    writers = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    reader = readers.get(tensor)
    return tensor if reader is None else writers.get(reader.output[0], tensor)


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime advises pre-processing on the root logger; our exports come folded and shape-checked."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
