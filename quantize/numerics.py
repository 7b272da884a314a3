"""Layer by layer: what torch computes in fp32 and with int8's rounding, and what each build computes on its runtime."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from distill.student import Student
from mst_edge.core.errors import UserError
from quantize.export import trace
from quantize.layers import Layer, layers_of
from quantize.qat.twin import Twin, fake_quantized
from quantize.qdq import rounded_name
from quantize.sensitivity import sqnr_db
from quantize.variant import MODEL, Variant

# SQNR below which a layer of a build no longer computes what it should: rounding of float32, 11 bits of mantissa,
# 8 bits. int8 is held to torch with the same rounding, from which kernels differ by single steps of 256.
LIMITS_DB = {
    "fp32": 60.0,
    "tf32": 35.0,
    "fp16": 35.0,
    "bf16": 15.0,
    "bf16-whole": 15.0,
    "int8": 25.0,
    "int8-bf16": 15.0,
    "w8": 25.0,
    "w4": 5.0,
}
_TWICE_DB = 6.0
ROUNDED = "torch with the same rounding"


@dataclass(frozen=True)
class Built:
    """A way to run a variant.

    Attributes:
        name: of the build.
        run: answers of the one output of a variant that was cut short, on the samples.
    """

    name: str
    variant: Variant
    precision: str
    run: Callable[[Variant], NDArray[np.float32]]


@dataclass(frozen=True)
class LayerNumerics:
    """One layer: SQNR of its output in dB, by build.

    Attributes:
        exact_db: against torch in fp32.
        rounded_db: against torch with int8's rounding, where there is such a thing.
        rounding_db: of torch with int8's rounding against torch in fp32.
    """

    name: str
    op: str
    exact_db: dict[str, float] = field(default_factory=dict)
    rounded_db: dict[str, float] = field(default_factory=dict)
    rounding_db: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Numerics:
    """The report.

    Attributes:
        layers: in the order in which they run.
        limits_db: of each build, below which a layer diverges.
        diverges: by build, the first layer that does; None where none does.
        held_to: by build, what its layers were held to.
        notes: by variant, why it could not be rounded in torch.
    """

    layers: tuple[LayerNumerics, ...]
    limits_db: dict[str, float]
    diverges: dict[str, str | None]
    held_to: dict[str, str]
    notes: dict[str, str]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def compare_layers(
    student: Student, source: Variant, builds: Sequence[Built], raw: NDArray[Any], progress: Callable[[str], None]
) -> Numerics:
    """Compares the output of every layer in every build with torch's.

    A build is run once per layer, cut off after it: what lies before is compiled as in the whole.

    Args:
        source: the fp32 variant of ``student``.
        raw: ``(samples, *shape)`` real samples, two or more.
    """
    exact_model = onnx.load(source.model)
    layers = layers_of(exact_model, source.modules, source.float_nodes)
    exact = torch_values(student, raw, [layer.output for layer in layers])
    rounded: dict[str, Mapping[str, NDArray[Any]]] = {}
    notes: dict[str, str] = {}
    for variant in {build.variant.name: build.variant for build in builds if not build.variant.is_float}.values():
        try:
            rounded[variant.name] = rounded_values(student, source, variant, raw, layers)
        except UserError as error:
            notes[variant.name] = error.problem
    rows = [LayerNumerics(layer.name, layer.op) for layer in layers]
    for build in builds:
        progress(f"layers of {build.name}")
        for layer, row, said in zip(layers, rows, _layer_outputs(build, layers), strict=True):
            row.exact_db[build.name] = sqnr_db(exact[layer.output], said)
            if build.variant.name in rounded:
                wanted = rounded[build.variant.name][layer.output]
                row.rounded_db[build.name] = sqnr_db(wanted, said)
                row.rounding_db[build.name] = sqnr_db(exact[layer.output], wanted)
    limits = {build.name: LIMITS_DB[build.precision] for build in builds}
    return Numerics(
        layers=tuple(rows),
        limits_db=limits,
        diverges={name: first_divergence(rows, name, limit) for name, limit in limits.items()},
        held_to={build.name: ROUNDED if build.variant.name in rounded else "torch" for build in builds},
        notes=notes,
        samples=len(raw),
    )


def first_divergence(rows: Sequence[LayerNumerics], build: str, limit_db: float) -> str | None:
    """The first layer whose output is further from what it is held to than ``limit_db``, and of a rounded one more than
    twice as far as rounding itself is from fp32: where signals are weak, single steps weigh much.
    """
    for row in rows:
        limit = min(limit_db, row.rounding_db.get(build, math.inf) - _TWICE_DB)
        if row.rounded_db.get(build, row.exact_db[build]) < limit:
            return row.name
    return None


def torch_values(student: Student, raw: NDArray[Any], names: Collection[str]) -> dict[str, NDArray[Any]]:
    """What torch computes in fp32 for values of the exported graph: the exporter names them after torch's own.

    Raises:
        RuntimeError: a value that torch does not have.
    """
    program, output = trace(student)
    found: dict[str, NDArray[Any]] = {}

    class _Taps(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in names:
                found[n.name] = value.numpy()
            return value

    held = {**program.state_dict, **program.constants}
    inputs = [
        torch.from_numpy(raw) if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT else held[spec.target]
        for spec in program.graph_signature.input_specs
    ]
    with torch.no_grad():
        (answer,) = _Taps(program.graph_module).run(*inputs)
    found[output] = answer.numpy()
    missing = sorted(set(names) - set(found))
    if missing:
        raise RuntimeError(f"values {missing} of the graph are none of torch's")
    return found


@torch.no_grad()
def rounded_values(
    student: Student, source: Variant, variant: Variant, raw: NDArray[Any], layers: Sequence[Layer]
) -> dict[str, NDArray[Any]]:
    """What torch computes for the layers' outputs with the rounding of an int8 variant.

    Raises:
        UserError: torch has no such rounding for one of its operators.
    """
    rounded = fake_quantized(student, source, variant.model, as_stored=True)
    twin = rounded.network
    assert isinstance(twin, Twin)
    model = onnx.load(variant.model)
    taps = {layer.output: rounded_name(model, layer.output) for layer in layers}
    values = twin.values(rounded.frontend(torch.from_numpy(raw)))
    last = layers[-1].output
    found = {name: values[tap].numpy() for name, tap in taps.items() if tap in values}
    if last not in found:
        found[last] = rounded.answer(values[twin.output]).numpy()
    missing = [layer.name for layer in layers if layer.output not in found]
    if missing:
        raise UserError(f"values of {', '.join(missing)} are not to be had in torch with int8's rounding")
    return found


def _layer_outputs(build: Built, layers: Sequence[Layer]) -> Iterator[NDArray[np.float32]]:
    model = onnx.load(build.variant.model)
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    for layer in layers:
        with tempfile.TemporaryDirectory() as folder:
            tap = rounded_name(model, layer.output)
            onnx.save(extractor.extract_model([build.variant.input.name], [tap]), Path(folder) / MODEL)
            yield build.run(replace(build.variant, folder=Path(folder)))
