"""ONNX files as strangers send them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Small random weights."""
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def tensor(name: str, dims: list[int | str | None], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A graph's input or output."""
    return helper.make_tensor_value_info(name, kind, dims)


def classifier(
    batch: int | str | None = "batch",
    height: int | str | None = 8,
    *,
    opset: int = 18,
    softmax: bool = False,
    seed: int = 0,
    **initializers: np.ndarray,
) -> onnx.ModelProto:
    """Pictures ``x`` ``(batch, 3, height, 8)`` to five classes; its nodes have no names."""
    tensors = {"w1": weights(6, 3, 3, 3, seed=seed), "w2": weights(5, 6, seed=seed + 1)} | initializers
    axes = {"axes": [2, 3]} if opset < 13 else {}
    squeezed = ["pooled"] if opset < 13 else ["pooled", "axes"]
    tensors |= {"bias": np.zeros(5, np.float32)} if opset < 11 else {}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["pooled"]),
        helper.make_node("Squeeze", squeezed, ["features"], **axes),
        helper.make_node("Gemm", ["features", "w2", *(["bias"] if opset < 11 else [])], ["logits"], transB=1),
    ]
    last = "logits"
    if softmax:
        last = "probabilities"
        nodes.append(helper.make_node("Softmax", ["logits"], [last], axis=1))
    constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    if opset >= 13:
        constants.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    graph = helper.make_graph(
        nodes, "stranger", [tensor("x", [batch, 3, height, 8])], [tensor(last, [batch, 5])], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def one_node(
    node: onnx.NodeProto, inputs: list, outputs: list, initializers: list = (), opset: int = 18, **more: object
) -> onnx.ModelProto:
    """A graph of one node."""
    graph = helper.make_graph([node], "stranger", inputs, outputs, list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in more.pop("domains", ()))]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def with_external_weight(folder: Path, location: str, content: bytes | None, name: str = "model.onnx") -> Path:
    """A file whose weight ``w2`` lies at ``location``; ``content`` is written into ``folder/location``."""
    model = classifier()
    (weight,) = [entry for entry in model.graph.initializer if entry.name == "w2"]
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        weight.external_data.add(key=key, value=value)
    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (folder / location).write_bytes(content)
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Writes it as it is, checked by nobody."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def pictures(count: int, height: int = 8, seed: int = 0) -> np.ndarray:
    """Samples for ``classifier``."""
    return np.random.default_rng(seed).normal(size=(count, 3, height, 8)).astype(np.float32)
