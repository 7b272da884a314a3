"""Layers of an ONNX graph: what is quantized, excluded and blamed as one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from mst_edge.core.errors import UserError, unknown_name

# Operators that carry a network's weights, or multiply activations with one another.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Layer:
    """A convolution, matrix product or table of embeddings, and what follows it up to the next one.

    Attributes:
        name: dotted path of the torch module that it was, where that is known; else the name of its node.
        op: type of its first node.
        nodes: names of its nodes, the first one first.
        output: tensor that it ends with.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    output: str


def quantizable_types() -> frozenset[str]:
    """Operator types that ONNX Runtime can quantize statically."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return frozenset({*QDQRegistry, *QLinearOpsRegistry})


def layers_of(model: onnx.ModelProto, modules: Mapping[str, str], float_nodes: Collection[str] = ()) -> list[Layer]:
    """Layers in the order in which they run; ``float_nodes`` belong to none.

    A node that is no head belongs to the layer that feeds it and starts last, or to the first one if none does.

    Args:
        modules: node name to dotted path of the torch module that it comes from.
    """
    tables = {tensor.name for tensor in model.graph.initializer if tensor.data_type in _FLOATS}
    heads: list[onnx.NodeProto] = []
    members: list[list[onnx.NodeProto]] = []
    before: list[onnx.NodeProto] = []
    owner: dict[str, int] = {}  # tensor to number of its layer
    for node in model.graph.node:
        if node.name in float_nodes:
            continue
        if node.op_type in WEIGHTED or (node.op_type == "Gather" and node.input[0] in tables):
            number = len(heads)
            heads.append(node)
            members.append([])
        else:
            number = max((owner[name] for name in node.input if name in owner), default=-1)
        if number < 0:
            before.append(node)
        else:
            members[number].append(node)
            owner.update(dict.fromkeys(node.output, number))
    names = _names(heads, modules)
    found = [
        Layer(name, head.op_type, tuple(node.name for node in nodes), nodes[-1].output[0])
        for name, head, nodes in zip(names, heads, members, strict=True)
    ]
    if found:
        found[0] = replace(found[0], nodes=(*found[0].nodes, *(node.name for node in before)))
    return found


def _names(heads: Sequence[onnx.NodeProto], modules: Mapping[str, str]) -> list[str]:
    """A module's path where it has one head, else the path with the node's name."""
    paths = [modules.get(node.name, "") for node in heads]
    return [
        path if path and paths.count(path) == 1 else f"{path}.{node.name}" if path else node.name
        for node, path in zip(heads, paths, strict=True)
    ]


def nodes_of(layers: Sequence[Layer], names: Iterable[str], where: str) -> tuple[str, ...]:
    """Nodes of the layers called ``names``; a name stands for all layers below it (``network.blocks.0``).

    Raises:
        UserError: a name that no layer has.
    """
    found: list[str] = []
    for name in names:
        of_name = [layer for layer in layers if layer.name == name or layer.name.startswith(f"{name}.")]
        if not of_name:
            raise unknown_name("layer", name, [layer.name for layer in layers], where=where)
        found += [node for layer in of_name for node in layer.nodes]
    return tuple(dict.fromkeys(found))


def require_named_nodes(model: onnx.ModelProto, where: object) -> None:
    """Layers are told apart by the names of their nodes.

    Raises:
        UserError: two nodes share a name, or one has none.
    """
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            raise UserError(f"node {node.name!r} ({node.op_type}) has no name of its own", where=where)
        seen.add(node.name)
