"""Chains of matrix products to quantize, and one whose weights int8 cannot hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mst_edge.core.scoring import OutputSpec
from quantize.variant import InputSpec, Variant

WIDTH = 16


def chain(weights: list[np.ndarray], folder: Path) -> Variant:
    """Products with the given matrices, a ReLU between each two; their layers are ``network.layer0`` and so on."""
    nodes, value = [], "x"
    for number in range(len(weights)):
        last = number == len(weights) - 1
        product = "logits" if last else f"p{number}"
        nodes.append(helper.make_node("Gemm", [value, f"w{number}"], [product], name=f"product{number}"))
        if not last:
            nodes.append(helper.make_node("Relu", [product], [f"r{number}"], name=f"relu{number}"))
            value = f"r{number}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)],
    )
    folder.mkdir()
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")
    variant = Variant(
        name="fp32",
        scheme="fp32",
        precision="fp32",
        backend="numpy",
        folder=folder,
        input=InputSpec("x", "vector", (WIDTH,), "float32"),
        output=OutputSpec("classification", tuple(f"c{n}" for n in range(WIDTH))),
        opset=18,
        modules={f"product{n}": f"network.layer{n}" for n in range(len(weights))},
    )
    variant.save()
    return variant


def matrices(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32) for _ in range(count)]


def samples(count: int, seed: int = 1) -> np.ndarray:
    """Input 0 is always zero."""
    drawn = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
    drawn[:, 0] = 0
    return drawn


def blamed_chain(guilty: int, folder: Path) -> Variant:
    """A network with one layer whose weights int8 cannot hold: a huge one, of a value that is always zero, leaves the
    others of its column no levels."""
    weights = matrices(4)
    for before in weights[:guilty]:  # what enters as zero stays zero
        before[0, :], before[:, 0] = 0, 0
    weights[guilty][0, :] = 300.0
    return chain(weights, folder)
