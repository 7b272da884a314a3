"""fp16 by ONNX Runtime's converter: half the size; GPUs compute in it, CPUs mostly do not."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from quantize.schemes.base import SCHEMES, Material, Scheme


@SCHEMES.register("fp16")
class Float16(Scheme):
    """Everything but the front end and the answer in half precision; inputs and outputs keep their types."""

    name = "fp16"
    precision = "fp16"
    backend = "onnxruntime"
    uses_samples = False
    summary = "half the size; CPUs without fp16 units compute it in fp32"

    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        model, outside = material.model(), set(material.source.float_nodes)
        # The converter would pass values from one float node to the next through fp16, where a power spectrum
        # overflows: it gets to see the network alone.
        network = _network(model, outside)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            half = convert_float_to_float16(
                network, keep_io_types=True, node_block_list=list(material.kept(model)), op_block_list=["Resize"]
            )
        OnnxModel(half).topological_sort()  # its casts come last
        _put_back(model, half, outside)
        onnx.save(model, out)
        # It says which values were too small or too large for half precision.
        clipped = sum("clipped" in str(entry.message) or "truncated" in str(entry.message) for entry in said)
        return {"weights_out_of_range": clipped}


def _network(model: onnx.ModelProto, outside: Collection[str]) -> onnx.ModelProto:
    """The graph without the nodes named ``outside``, with initializers of its own."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    inside = [node for node in graph.node if node.name not in outside]
    others = [node for node in graph.node if node.name in outside]
    made = {name for node in inside for name in node.output}
    read = list(dict.fromkeys(name for node in inside for name in node.input if name))
    wanted = {name for node in others for name in node.input} | {value.name for value in graph.output}
    held = {tensor.name: tensor for tensor in graph.initializer}
    for name in [name for name in read if name in held and name in wanted]:
        own = onnx.TensorProto()
        own.CopyFrom(held[name])
        own.name = f"{name}_network"
        held[own.name] = own
        for node in inside:
            node.input[:] = [own.name if each == name else each for each in node.input]
    read = list(dict.fromkeys(name for node in inside for name in node.input if name))
    network = helper.make_graph(
        inside,
        "network",
        [values[name] for name in read if name not in made and name not in held],
        [values[name] for name in dict.fromkeys(n for node in inside for n in node.output) if name in wanted],
        [held[name] for name in read if name in held],
    )
    return helper.make_model(network, opset_imports=model.opset_import, ir_version=model.ir_version)


def _put_back(model: onnx.ModelProto, network: onnx.ModelProto, outside: Collection[str]) -> None:
    """Replaces all nodes but ``outside`` by those of ``network``."""
    others = [node for node in model.graph.node if node.name in outside]
    made = {name for node in network.graph.node for name in node.output}
    after: set[str] = set()
    for node in others:
        if made & set(node.input) or after & set(node.input):
            after.update(node.output)
    read = {name for node in others for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    first = [node for node in others if not after & set(node.output)]
    last = [node for node in others if after & set(node.output)]
    nodes = [*first, *_each_once(network.graph.node), *last]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *network.graph.initializer])


def _each_once(nodes: Collection[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The converter casts a value that a float node reads twice, twice under one name."""
    return list({node.output[0]: node for node in nodes}.values())
