"""Splits a frozen network at a layer: what depends on the layer's output, and what does not.

Masks are trained on top of frozen teachers. Everything below a masked layer gives the same values for a
sample every time, so it is computed once, and only the part above it runs again for each mask and epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from distill.networks.registry import Model


class SplitModel:
    """A model as ``after(before(inputs))``; ``before`` returns the layer's output first.

    Attributes:
        before: features by modality to the tensors that ``after`` needs, each ``(batch, ...)``.
        after: those tensors to logits.
    """

    def __init__(self, before: fx.GraphModule, after: fx.GraphModule, multimodal: bool, reads: tuple[str, ...]) -> None:
        self._before, self._after = before, after
        self._multimodal, self._reads = multimodal, reads

    def before(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The layer's output, then whatever else bypasses the layer."""
        argument: Any = {name: inputs[name] for name in self._reads} if self._multimodal else inputs[self._reads[0]]
        return self._before(argument)

    def after(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """Logits from what ``before`` returned, its first tensor possibly changed."""
        return self._after(*tensors)


def split_at(model: Model, layer: str) -> SplitModel | None:
    """Splits ``model`` at the layer with this dotted path; None where its code cannot be traced.

    A network whose forward pass branches on values, or that calls the layer more than once, cannot.
    """
    try:
        graph = _Tracer(layer).trace(model.module)
    except Exception:
        # torch.fx raises whatever the untraceable code does; the caller runs the whole network instead.
        return None
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
    if len(calls) != 1:
        return None
    cut = calls[0]
    above = _dependents(cut)
    bypass = [node for node in graph.nodes if node not in above and node is not cut and above & set(node.users)]
    # Only tensors of one row per sample can be kept per sample: constants must be recomputed above.
    if any(node.op == "get_attr" for node in bypass):
        return None
    before = fx.GraphModule(model.module, _prefix(graph, [cut, *bypass]))
    after = fx.GraphModule(model.module, _suffix(graph, [cut, *bypass], above))
    return SplitModel(before.eval(), after.eval(), model.multimodal, model.reads)


class _Tracer(fx.Tracer):
    """Keeps the chosen layer whole, so that it appears as one call."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self._layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self._layer or super().is_leaf_module(m, module_qualified_name)


def _dependents(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(node.users)
    while waiting:
        user = waiting.pop()
        if user not in found:
            found.add(user)
            waiting += list(user.users)
    return found


def _prefix(graph: fx.Graph, outputs: list[fx.Node]) -> fx.Graph:
    needed: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    copy = fx.Graph()
    names: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed or node.op == "placeholder":
            names[node] = copy.node_copy(node, lambda n: names[n])
    copy.output(tuple(names[node] for node in outputs))
    return copy


def _suffix(graph: fx.Graph, inputs: list[fx.Node], above: set[fx.Node]) -> fx.Graph:
    copy = fx.Graph()
    names = {node: copy.placeholder(f"kept_{index}") for index, node in enumerate(inputs)}
    for node in graph.nodes:
        if node in above:
            names[node] = copy.node_copy(node, lambda n: names[n])
    return copy


def row_bytes(tensors: tuple[Tensor, ...]) -> int:
    """Bytes per sample of what ``before`` returned."""
    return sum(tensor[0].numel() * tensor.element_size() for tensor in tensors)


def has_one_row_per_sample(tensors: tuple[Any, ...], samples: int) -> bool:
    """Whether every entry is a tensor whose first axis is the batch."""
    return all(isinstance(tensor, torch.Tensor) and tensor.ndim > 0 and len(tensor) == samples for tensor in tensors)
