"""Tables of embeddings in eight bits: what is looked up is a row of integers and its scale, multiplied in float."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_LEVELS = 127


def round_tables(model: onnx.ModelProto, keep: Collection[str]) -> int:
    """Replaces float tables ``(rows, width)`` that are looked up by row with int8 and one scale per row, in place.

    Symmetric rounding of each row by its largest value. Plain operators, so every runtime has them.

    Args:
        keep: names of the nodes that stay as they are; a table that one of them reads does, too.

    Returns:
        How many tables were rounded.
    """
    graph = model.graph
    floats = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2}
    readers: dict[str, list[onnx.NodeProto]] = {name: [] for name in floats}
    for node in graph.node:
        for name in {*node.input} & readers.keys():
            readers[name].append(node)
    found = {name: nodes for name, nodes in readers.items() if nodes and all(_looks_up(n, name, keep) for n in nodes)}
    for name in found:
        codes, scales = rounded_rows(numpy_helper.to_array(floats[name]))
        graph.initializer.remove(floats[name])
        graph.initializer.extend(
            [numpy_helper.from_array(codes, f"{name}_rounded"), numpy_helper.from_array(scales, f"{name}_scale")]
        )
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.extend(_from_integers(node) if node.op_type == "Gather" and node.input[0] in found else [node])
    return len(found)


def rounded_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 ``(rows, width)`` and scales ``(rows, 1)``; a row of zeros stays one."""
    scales = np.abs(table).max(axis=1, keepdims=True) / _LEVELS
    return np.rint(table / np.where(scales, scales, 1)).astype(np.int8), scales.astype(np.float32)


def _looks_up(node: onnx.NodeProto, table: str, keep: Collection[str]) -> bool:
    by_row = all(attribute.name != "axis" or attribute.i == 0 for attribute in node.attribute)
    return node.op_type == "Gather" and node.input[0] == table and by_row and node.name not in keep


def _from_integers(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    table, ids = node.input
    (out,) = node.output
    parts = [f"{out}_{part}" for part in ("rounded", "number", "scale")]
    return [
        helper.make_node("Gather", [f"{table}_rounded", ids], [parts[0]], name=node.name),
        helper.make_node("Cast", [parts[0]], [parts[1]], name=f"{node.name}_cast", to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{table}_scale", ids], [parts[2]], name=f"{node.name}_scale"),
        helper.make_node("Mul", [parts[1], parts[2]], [out], name=f"{node.name}_scaled"),
    ]
