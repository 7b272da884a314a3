"""What an int8 ONNX file consists of: constants, ranges, and the steps between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor

from mst_edge.core.errors import UserError
from quantize.qat.operators import MOVES, OPERATORS, Attributes
from quantize.variant import Variant

# Where an operator takes what is learned; all other constants are what they are: positions, sizes, statistics.
_LEARNED_INPUTS: Mapping[str, Sequence[int]] = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "Gather": (0,),
    "Gemm": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "Mul": (0, 1),
}
_BITS = {torch.uint8: (0, 255), torch.int8: (-128, 127)}
_REDUCED_HIGH, _SYMMETRIC_HIGH = 64, 127


@dataclass(frozen=True)
class Grid:
    """The levels that a range has: what does not learn of it.

    Attributes:
        scale: ``(1,)`` or ``(channels,)``, as calibrated.
        axis: of the channels; None where there is one step for all.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    axis: int | None


@dataclass(frozen=True)
class Constant:
    """Numbers that the network computes with.

    Attributes:
        start: in float32.
        learns: whether training changes them.
        initializer: name in the file.
        scale: name of the range on which the file holds them as integers of 8 bits; empty otherwise.
        bias_scale: name of the initializer with the steps of a bias of 32 bits; empty otherwise.
        added_to: names of the two ranges whose product a bias's steps are.
    """

    start: Tensor
    learns: bool
    initializer: str
    scale: str = ""
    bias_scale: str = ""
    added_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One value from others: by rounding it to a range, or by an operator.

    Attributes:
        node: its name in the file.
        scale: name of the range; empty for an operator.
    """

    node: str
    inputs: tuple[str, ...]
    output: str
    scale: str = ""
    operator: str = ""
    attributes: Attributes = field(default_factory=dict)

    def compute(self, inputs: Sequence[Any]) -> Tensor:
        """An operator's answer.

        Raises:
            UserError: it is asked for a variety that is not known.
        """
        try:
            return OPERATORS[self.operator](self.attributes, *inputs)
        except NotImplementedError as error:
            raise untrainable(self.node, f"{self.operator} with {error}") from None


@dataclass(frozen=True)
class Network:
    """The part of the file between the front end and the answer.

    Attributes:
        input, output: values at its two ends.
        sizes: integer constants, on the CPU.
        same: the file's other names for values: what is dequantized, or rounded again, is what was rounded.
    """

    input: str
    output: str
    steps: Sequence[Step]
    constants: Mapping[str, Constant]
    grids: Mapping[str, Grid]
    learned_grids: frozenset[str]
    sizes: Mapping[str, Tensor]
    same: Mapping[str, str]


def untrainable(node: str, what: str) -> UserError:
    """The error for a layer that cannot be trained with int8's rounding."""
    return UserError(
        f"layer {node} cannot be trained in int8: {what}",
        where="quantize.schemes",
        fix="take int8-static, or another student.network",
    )


def read_network(exact: Variant, int8: Path, fixed: Collection[str], *, as_stored: bool = False) -> Network:
    """Reads an int8 file.

    Args:
        exact: the fp32 variant that it was made from, whose weights the constants start with where both files name
            them alike; the others start with what the integers say.
        fixed: names of initializers of ``exact`` that do not learn.
        as_stored: all constants start with what the integers say.

    Raises:
        UserError: a layer that cannot be trained.
    """
    starts = {} if as_stored else {tensor.name: tensor for tensor in onnx.load(exact.model).graph.initializer}
    return _Reader(starts, onnx.load(int8).graph, fixed).read(exact)


class _Reader:
    """Goes through the nodes once, in their order."""

    def __init__(self, exact: Mapping[str, onnx.TensorProto], graph: onnx.GraphProto, fixed: Collection[str]) -> None:
        self._graph, self._fixed = graph, fixed
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._exact = exact
        self._same: dict[str, str] = {}  # value to the one that it equals
        self._on: dict[str, str] = {}  # value to the range that it is already rounded to
        self._constants: dict[str, Constant] = {}
        self._sizes: dict[str, Tensor] = {}
        self._grids: dict[str, Grid] = {}
        self._learned_grids: set[str] = set()
        self._steps: list[Step] = []

    def read(self, exact: Variant) -> Network:
        start, end = self._ends(exact)
        nodes = self._between(start, end)
        self._dequantized = {node.output[0]: node for node in nodes if node.op_type == "DequantizeLinear"}
        for node in nodes:
            if node.op_type == "QuantizeLinear":
                self._round(node)
            elif node.op_type == "DequantizeLinear":
                if node.input[0] not in self._stored:
                    self._same[node.output[0]] = self._value(node.input[0])
            else:
                self._operate(node)
        return Network(
            start,
            self._value(end),
            self._steps,
            self._constants,
            self._grids,
            frozenset(self._learned_grids),
            self._sizes,
            self._same,
        )

    def _ends(self, exact: Variant) -> tuple[str, str]:
        """The features, which the front end gives, and the logits, which the answer reads."""
        graph, answer = self._graph, set(exact.answer_nodes)
        front_end = set(exact.float_nodes) - answer
        raw = {value.name for value in graph.input}
        given = raw | {name for node in graph.node if node.name in front_end for name in node.output}
        network = [node for node in graph.node if node.name not in front_end | answer]
        computed = {name for node in network for name in node.output}
        starts = {name for node in network for name in node.input if name in given}
        ends = {name for node in graph.node if node.name in answer for name in node.input if name in computed}
        ends = ends or {graph.output[0].name}
        if len(starts) != 1 or len(ends) != 1:
            raise untrainable(graph.name, f"it has {len(starts)} inputs and {len(ends)} outputs, not one of each")
        return starts.pop(), ends.pop()

    def _between(self, start: str, end: str) -> list[NodeProto]:
        """The nodes that the logits need, in order."""
        needed, nodes = {end}, []
        for node in reversed(self._graph.node):
            if needed & set(node.output) and start not in node.output:
                nodes.append(node)
                needed |= set(node.input) - {start}
        return nodes[::-1]

    def _value(self, name: str) -> str:
        return self._same.get(name, name)

    def _round(self, node: NodeProto) -> None:
        value, scale = self._value(node.input[0]), node.input[1]
        if value in self._stored:
            raise untrainable(node.name, "a constant is rounded as the graph runs")
        self._learned_grids.add(self._grid(node))
        if self._on.get(value) == scale:
            self._same[node.output[0]] = value
        else:
            self._steps.append(Step(node.name, (value,), node.output[0], scale=scale))
            self._on[node.output[0]] = scale

    def _grid(self, node: NodeProto) -> str:
        """Notes the range of a Q or DQ node; returns its name."""
        name, zero_point = node.input[1], self._number(node.input[2])
        scale = self._number(name)
        low, high = _BITS[zero_point.dtype]
        if node.op_type == "DequantizeLinear" and zero_point.dtype == torch.int8:
            high = self._high(self._number(node.input[0]))
            low = -high
        axis = None if scale.numel() == 1 else _attributes(node).get("axis", 1) % self._number(node.input[0]).ndim
        self._grids.setdefault(name, Grid(scale.reshape(-1), zero_point.reshape(-1), low, high, axis))
        return name

    @staticmethod
    def _high(levels: Tensor) -> int:
        """The largest level of weights: 7 bits where the quantizer used no more."""
        return _REDUCED_HIGH if int(levels.abs().max()) <= _REDUCED_HIGH else _SYMMETRIC_HIGH

    def _operate(self, node: NodeProto) -> None:
        if node.op_type not in OPERATORS:
            raise untrainable(node.name, f"there is no gradient for {node.op_type}")
        if len([name for name in node.output if name]) > 1:
            raise untrainable(node.name, f"{node.op_type} with more than one output")
        inputs = tuple(self._input(node, place) for place in range(len(node.input)))
        self._steps.append(Step(node.name, inputs, node.output[0], operator=node.op_type, attributes=_attributes(node)))
        if node.op_type in MOVES and inputs[0] in self._on:
            self._on[node.output[0]] = self._on[inputs[0]]

    def _input(self, node: NodeProto, place: int) -> str:
        """The value that a node reads; notes it where it is a constant."""
        name = node.input[place]
        source = self._dequantized.get(name)
        if source is not None and source.input[0] in self._stored:
            if name not in self._constants:
                self._constants[name] = self._integers(node, place, source)
        elif name in self._stored and name not in self._constants and name not in self._sizes:
            number = self._number(name)
            if number.is_floating_point():
                self._constants[name] = Constant(number, self._learns(node, place, name, number), name)
            else:
                self._sizes[name] = number
        return self._value(name)

    def _integers(self, node: NodeProto, place: int, source: NodeProto) -> Constant:
        """A constant that the file holds as integers."""
        stored, scale = source.input[0], source.input[1]
        levels, name = self._number(stored), source.input[0].removesuffix("_quantized")
        start = self._float(name, source)
        learns = self._learns(node, place, name, start)
        if levels.dtype == torch.int32:
            factors = [self._dequantized.get(value) for value in node.input[:2]]
            products = tuple(factor.input[1] for factor in factors if factor is not None)
            if len(products) != 2:
                raise untrainable(node.name, "its bias is an integer, its input is not")
            return Constant(start, learns, stored, bias_scale=scale, added_to=products)
        self._grid(source)
        if learns:
            self._learned_grids.add(scale)
        self._on[source.output[0]] = scale
        return Constant(start, learns, stored, scale=scale)

    def _float(self, name: str, source: NodeProto) -> Tensor:
        """What the integers stand for; the numbers that they were made from, where the float file has them."""
        levels, scale, zero_point = (self._number(value).double() for value in source.input[:3])
        shape = [1] * levels.ndim
        if scale.numel() > 1:
            shape[_attributes(source).get("axis", 1)] = -1
        said = ((levels - zero_point.reshape(shape)) * scale.reshape(shape)).float()
        exact = self._exact.get(name)
        if exact is None or tuple(exact.dims) != tuple(levels.shape):
            return said
        return torch.from_numpy(numpy_helper.to_array(exact).copy())

    def _learns(self, node: NodeProto, place: int, name: str, number: Tensor) -> bool:
        return place in _LEARNED_INPUTS.get(node.op_type, ()) and number.numel() > 1 and name not in self._fixed

    def _number(self, name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(self._stored[name]).copy())


def _attributes(node: NodeProto) -> dict[str, Any]:
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in said.items()}
