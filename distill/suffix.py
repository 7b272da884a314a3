"""Splits a frozen network at layers: what depends on a layer's output, and what does not.

Masks are trained on top of frozen teachers. Everything below a masked layer gives the same values for a
sample every time, so it is computed once, and only the part above it runs again for each mask and epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from distill.networks.registry import Model

Tensors = tuple[Tensor, ...]

# Each of these gives f(m * h) = m * f(h) for a mask m > 0 that is constant over a channel's positions.
_FUNCTIONS: set[Any] = {
    torch.relu,
    functional.relu,
    functional.max_pool1d,
    functional.max_pool2d,
    functional.avg_pool1d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool1d,
    functional.adaptive_avg_pool2d,
}
_METHODS = {"relu"}
_MODULES = (
    nn.ReLU,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.Identity,
    nn.Dropout,  # in eval mode, as frozen networks are
)


@dataclass(frozen=True)
class _Cut:
    """What the part above a layer needs of all that is kept, the body first, and that part."""

    needs: tuple[int, ...]
    after: fx.GraphModule


class SplitModel:
    """A model as ``after(part(kept))`` with ``layers, kept = before(inputs)``, at layers that share one pass.

    Above a layer, the *body* is what a mask multiplies: the layer's output, or, where masks may slide, what
    operations that commute with a mask made of it (ReLU, pooling, a mean over positions), which is smaller.
    """

    def __init__(self, before: fx.GraphModule, cuts: Sequence[_Cut], multimodal: bool, reads: tuple[str, ...]) -> None:
        self._before, self._cuts = before, cuts
        self._multimodal, self._reads = multimodal, reads

    def before(self, inputs: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
        """The layers' outputs, and all that the parts above them need, each ``(batch, ...)``."""
        argument: Any = {name: inputs[name] for name in self._reads} if self._multimodal else inputs[self._reads[0]]
        tensors = self._before(argument)
        return tensors[: len(self._cuts)], tensors[len(self._cuts) :]

    def part(self, kept: Tensors, cut: int = 0) -> Tensors:
        """What ``after`` takes, of what ``before`` said to keep: the body, then whatever else bypasses the layer."""
        return tuple(kept[index] for index in self._cuts[cut].needs)

    def after(self, part: Tensors, cut: int = 0) -> Tensor:
        """Logits from a ``part``, its body possibly changed."""
        return self._cuts[cut].after(*part)


def split_at(model: Model, *layers: str, slide: bool = False) -> SplitModel | None:
    """Splits ``model`` at the layers with these dotted paths; None where its code cannot be traced.

    A network whose forward pass branches on values, or that calls a layer more than once, cannot.

    Args:
        slide: let each body be as far above its layer as a mask > 0 may slide.
    """
    try:
        graph = _Tracer(layers).trace(model.module)
    except Exception:
        # torch.fx raises whatever the untraceable code does; the caller runs the whole network instead.
        return None
    places: list[tuple[fx.Node, list[fx.Node]]] = []
    for layer in layers:
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target == layer]
        if len(calls) != 1:
            return None
        body = _slide(calls[0], model.module) if slide else calls[0]
        above = _dependents(body)
        bypass = [n for n in graph.nodes if n not in above and n is not body and above & set(n.users)]
        places.append((calls[0], [body, *bypass]))
    kept = list(dict.fromkeys(node for _, nodes in places for node in nodes))
    cuts = [_Cut(tuple(map(kept.index, nodes)), _module(model, _suffix(graph, nodes))) for _, nodes in places]
    before = _module(model, _prefix(graph, [*(layer for layer, _ in places), *kept]))
    return SplitModel(before, cuts, model.multimodal, model.reads)


def _module(model: Model, graph: fx.Graph) -> fx.GraphModule:
    return fx.GraphModule(model.module, graph).eval()


class _Tracer(fx.Tracer):
    """Keeps the chosen layers whole, so that each appears as one call."""

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self._layers = layers

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._layers or super().is_leaf_module(m, module_qualified_name)


def _slide(node: fx.Node, root: nn.Module) -> fx.Node:
    """The last node above ``node`` that a mask on it may be moved to without changing the logits."""
    while len(node.users) == 1:
        (user,) = node.users
        if not _commutes(user, node, root):
            break
        node = user
    return node


def _commutes(user: fx.Node, node: fx.Node, root: nn.Module) -> bool:
    if user.args[:1] != (node,) or len(user.all_input_nodes) != 1:
        return False
    if user.op == "call_function":
        return user.target in _FUNCTIONS
    if user.op == "call_module":
        return isinstance(root.get_submodule(str(user.target)), _MODULES)
    return user.op == "call_method" and (user.target in _METHODS or _is_mean_over_positions(user))


def _is_mean_over_positions(user: fx.Node) -> bool:
    dims = user.kwargs.get("dim", user.args[1] if len(user.args) > 1 else None)
    dims = (dims,) if isinstance(dims, int) else dims
    return user.target == "mean" and bool(dims) and all(isinstance(d, int) and d >= 2 for d in dims)  # type: ignore[union-attr]


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


def _suffix(graph: fx.Graph, inputs: list[fx.Node]) -> fx.Graph:
    above = _dependents(inputs[0])
    copy = fx.Graph()
    names = {node: copy.placeholder(f"kept_{index}") for index, node in enumerate(inputs)}
    for node in graph.nodes:
        if node in above:
            names[node] = copy.node_copy(node, lambda n: names[n])
    return copy


def has_one_row_per_sample(tensors: tuple[Any, ...], samples: int) -> bool:
    """Whether every entry is a tensor whose first axis is the batch."""
    return all(isinstance(tensor, torch.Tensor) and tensor.ndim > 0 and len(tensor) == samples for tensor in tensors)
