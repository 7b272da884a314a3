"""Which layers of a graph are int8 and which stay in float: one calibration, any assignment."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import onnx

from quantize.layers import WEIGHTED, Layer
from quantize.qdq import needs_reduced_range, quantize_with_ranges
from quantize.ranges import Calibrator, Range, find_ranges
from quantize.schemes.base import Material

# All operators that have int8 kernels, or only those with weights and products of activations.
Scope = Literal["all", "weighted"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Assignable:
    """A graph with the ranges of its tensors, ready to be written in int8 but for any of its layers.

    Attributes:
        model: in fp32.
        layers: in the order in which they run.
        kept: names of the nodes that stay in float whatever is asked: front end, answer, excluded layers.
    """

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    ranges: dict[str, Range]
    kept: tuple[str, ...]
    calibrator: Calibrator
    reduce_range: bool
    symmetric: bool = False
    scope: Scope = "all"

    @classmethod
    def of(cls, material: Material, calibrator: Calibrator = "minmax", *, symmetric: bool = False) -> Assignable:
        """Calibrates.

        Raises:
            UserError: an excluded layer that is not there, or activations that are not finite.
        """
        model = material.model()
        source, kept = material.source, material.kept(model)

        def find() -> dict[str, Range]:
            return find_ranges(model, source.input.name, material.calibration, calibrator, skip=source.float_nodes)

        ranges = material.once(("ranges", calibrator), find)
        layers = tuple(layer for layer in material.layers(model) if layer.nodes[0] not in kept)
        return cls(model, layers, ranges, kept, calibrator, needs_reduced_range(), symmetric)

    def write(self, out: Path, in_float: Collection[str] = ()) -> None:
        """Writes the graph in int8 to ``out``, the layers named ``in_float`` left as they are."""
        left = {node for layer in self.layers if layer.name in in_float for node in layer.nodes}
        if self.scope == "weighted":
            left |= {node.name for node in self.model.graph.node if node.op_type not in WEIGHTED}
        quantize_with_ranges(
            self.model,
            self.ranges,
            out,
            keep=[*self.kept, *left],
            reduce_range=self.reduce_range,
            symmetric=self.symmetric,
        )
