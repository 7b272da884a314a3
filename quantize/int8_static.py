"""int8 by post-training static quantization: QDQ, weights per channel, activation ranges from real samples."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from mst_edge.core.files import atomic_path
from mst_edge.core.machine import this_machine
from quantize.variant import MODEL, Variant

Calibrator = Literal["minmax", "entropy", "percentile"]


@dataclass(frozen=True)
class Int8Options:
    """How ranges are found.

    Attributes:
        calibrator: what turns observed activations into a range.
        reduce_range: 7-bit weights. On x86 without VNNI two products of 8-bit values can overflow the
            16 bits that they are added in; ``None`` decides by the CPU.
    """

    calibrator: Calibrator = "minmax"
    reduce_range: bool | None = None


def quantize_int8(source: Variant, samples: NDArray[Any], folder: Path, options: Int8Options) -> Variant:
    """Writes the int8 variant of an fp32 variant with ONNX Runtime's quantizer.

    Activations are unsigned and weights signed, which x86 kernels want. The front end stays in float, and so do the
    last step to physical units and the softmax of attention with its mask. An embedding table becomes int8, one scale
    for all of it.

    Args:
        samples: ``(count, *shape)`` real samples as the graph takes them.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    reduce_range = _needs_reduced_range() if options.reduce_range is None else options.reduce_range
    with atomic_path(folder) as temporary, _quiet():
        temporary.mkdir()
        quantize_static(
            str(source.model),
            str(temporary / MODEL),
            _Reader(source.input.name, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*source.float_nodes, *_masked_softmax(onnx.load(source.model))],
            calibrate_method=methods[options.calibrator],
        )
        model = onnx.load(temporary / MODEL)
        # What comes after the network reads what the network has in eight bits; it computes in float.
        _require_float_front_end(model, set(source.float_nodes) - set(source.answer_nodes))
    variant = Variant(
        name=folder.name,
        scheme="int8-static",
        backend="onnxruntime",
        folder=folder,
        input=source.input,
        output=source.output,
        opset=source.opset,
        float_nodes=source.float_nodes,
        answer_nodes=source.answer_nodes,
        facts={**asdict(options), "reduce_range": reduce_range, "calibration_samples": len(samples)},
    )
    variant.save()
    return variant


class _Reader:
    """Feeds calibration samples one at a time (the interface of onnxruntime's CalibrationDataReader)."""

    def __init__(self, name: str, samples: NDArray[Any]) -> None:
        self._name, self._samples = name, samples
        self._next = 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        if self._next >= len(self._samples):
            return None
        self._next += 1
        return {self._name: self._samples[self._next - 1 : self._next]}

    def rewind(self) -> None:
        self._next = 0


def _masked_softmax(model: onnx.ModelProto) -> Iterator[str]:
    """Names of nodes in whose range no score is left: a mask fills in the lowest float there is."""
    return (node.name for node in model.graph.node if node.op_type in ("Where", "Softmax"))


def _needs_reduced_range() -> bool:
    machine = this_machine()
    return machine.arch in ("x86_64", "AMD64") and not {"vnni", "amx_int8"} & set(machine.isa)


def _require_float_front_end(model: onnx.ModelProto, front_end: Collection[str]) -> None:
    """No node of the front end may read a dequantized value: a log-mel in int8 is noise."""
    dequantized = {out for node in model.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    for node in model.graph.node:
        if node.name in front_end and dequantized & set(node.input):
            raise RuntimeError(f"front-end node {node.name} was quantized")


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime advises pre-processing on the root logger; our exports come folded and shape-checked."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
