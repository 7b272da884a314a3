"""What this CPU does at most: operations per second in a large convolution, in the arithmetic of every precision, by
the fastest runtime at hand, and bytes per second that are read and written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_CHANNELS, _SIDE, _KERNEL = 512, 14, 3
_OPERATIONS = 2 * (_SIDE * _CHANNELS * _KERNEL) ** 2
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
    maps = np.random.default_rng(0).normal(size=(1, _CHANNELS, _SIDE, _SIDE)).astype(np.float32)
    for arithmetic, call in _convolutions(threads):
        found = _OPERATIONS / _fastest_s(lambda call=call: call(maps))  # type: ignore[misc]
        operations[arithmetic] = max(found, operations.get(arithmetic, 0.0))
    source, copy = np.ones(_COPY_BYTES // 8), np.empty(_COPY_BYTES // 8)
    return Peak(operations, 2 * _COPY_BYTES / _fastest_s(lambda: np.copyto(copy, source)))


def _convolutions(threads: int) -> Iterator[tuple[str, Callable[[NDArray[np.float32]], Any]]]:
    for arithmetic, model in (("fp32", _convolution()), ("int8", _convolution(int8=True))):
        yield arithmetic, _by_onnxruntime(model, threads)
        yield arithmetic, _by_openvino(model, threads, "f32")
    yield "bf16", _by_openvino(_convolution(), threads, "bf16")


def _by_onnxruntime(model: bytes, threads: int) -> Callable[[NDArray[np.float32]], Any]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return lambda maps: session.run(None, {"x": maps})


def _by_openvino(model: bytes, threads: int, precision: str) -> Callable[[NDArray[np.float32]], Any]:
    import openvino

    properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", properties).create_infer_request()
    return lambda maps: request.infer(maps, share_inputs=True)


def _convolution(*, int8: bool = False) -> bytes:
    """3 x 3, 512 to 512 channels, over 14 x 14; with ``int8``, 8 bits in and out, as in the middle of a network."""
    shape = (_CHANNELS, _CHANNELS, _KERNEL, _KERNEL)
    weight = np.random.default_rng(1).integers(-100, 100, shape)
    constants: dict[str, Any] = {"w": weight.astype(np.int8 if int8 else np.float32)}
    padding: dict[str, Any] = {"pads": [_KERNEL // 2] * 4}
    if int8:
        steps = {"s": np.float32(0.05), "z": np.uint8(128), "big": np.float32(50.0)}
        per_channel = {"ws": np.full(_CHANNELS, 0.01, np.float32), "wz": np.zeros(_CHANNELS, np.int8)}
        constants |= {**steps, **per_channel}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
            helper.make_node("Conv", ["d", "dw"], ["c"], **padding),
            helper.make_node("QuantizeLinear", ["c", "big", "z"], ["qc"]),
            helper.make_node("DequantizeLinear", ["qc", "big", "z"], ["y"]),
        ]
    else:
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **padding)]
    sizes = [1, _CHANNELS, _SIDE, _SIDE]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
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
