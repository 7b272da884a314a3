"""What this CPU does at most: operations per second in a product of large matrices, in the arithmetic of every precision,
by the fastest runtime at hand, and bytes per second that are read and written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_ROWS, _INNER, _COLUMNS = 2048, 1024, 1024
_COPY_BYTES, _TRIES = 256 << 20, 20
_OPSET = 18


@dataclass(frozen=True)
class Peak:
    """Of so many threads of this CPU; ``operations`` per second, by arithmetic: fp32, bf16, int8."""

    operations: Mapping[str, float]
    bytes: float


def measured_peak(threads: int) -> Peak:
    """The best of some tries of some runtimes."""
    operations: dict[str, float] = {}
    rows = np.random.default_rng(0).normal(size=(_ROWS, _INNER)).astype(np.float32)
    for arithmetic, call in _products(threads):
        found = 2 * _ROWS * _INNER * _COLUMNS / _fastest_s(lambda call=call: call(rows))  # type: ignore[misc]
        operations[arithmetic] = max(found, operations.get(arithmetic, 0.0))
    source, copy = np.ones(_COPY_BYTES // 8), np.empty(_COPY_BYTES // 8)
    return Peak(operations, 2 * _COPY_BYTES / _fastest_s(lambda: np.copyto(copy, source)))


def _products(threads: int) -> Iterator[tuple[str, Callable[[NDArray[np.float32]], Any]]]:
    for arithmetic, model in (("fp32", _product()), ("int8", _product(int8=True))):
        yield arithmetic, _by_onnxruntime(model, threads)
        yield arithmetic, _by_openvino(model, threads, "f32")
    yield "bf16", _by_openvino(_product(), threads, "bf16")


def _by_onnxruntime(model: bytes, threads: int) -> Callable[[NDArray[np.float32]], Any]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(None, {"x": rows})


def _by_openvino(model: bytes, threads: int, precision: str) -> Callable[[NDArray[np.float32]], Any]:
    import openvino

    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(model, b"", "CPU", properties).create_infer_request()
    return lambda rows: request.infer([rows], share_inputs=True)


def _product(*, int8: bool = False) -> bytes:
    """``x`` times a constant matrix; with ``int8``, 8-bit values with the scales that kernels want."""
    weight = np.random.default_rng(1).integers(-100, 100, (_INNER, _COLUMNS))
    nodes, value, other = [], "x", "w"
    constants = {"w": weight.astype(np.int8 if int8 else np.float32)}
    if int8:
        constants |= {"s": np.float32(0.05), "z": np.uint8(128), "ws": np.float32(0.01), "wz": np.int8(0)}
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"]),
        ]
        value, other = "d", "dw"
    nodes.append(helper.make_node("MatMul", [value, other], ["y"]))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [_ROWS, _INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [_ROWS, _COLUMNS])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def _fastest_s(call: Callable[[], Any]) -> float:
    found = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)
