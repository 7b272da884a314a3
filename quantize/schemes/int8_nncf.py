"""int8 by NNCF: bias correction, and SmoothQuant where there is attention."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from quantize.calibration import Calibration
from quantize.layers import WEIGHTED
from quantize.schemes.base import SCHEMES, Material, Scheme, require_types


@SCHEMES.register("int8-nncf")
class Int8Nncf(Scheme):
    """NNCF's post-training quantization of the ONNX graph, with the settings for CPUs."""

    name = "int8-nncf"
    precision = "int8"
    backend = "nncf"
    modules = ("nncf",)
    summary = "int8 with fast bias correction; SmoothQuant where the model has attention"

    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        model = material.model()
        require_types(model, WEIGHTED, self.name)
        with _quiet():
            import nncf

            attention = any(node.op_type == "Softmax" and _feeds_product(model, node) for node in model.graph.node)
            samples, name = material.calibration, material.source.input.name
            quantized = nncf.quantize(
                model,
                nncf.Dataset(_OneByOne(samples), lambda sample: {name: sample}),
                subset_size=len(samples),
                target_device=nncf.TargetDevice.CPU,
                model_type=nncf.ModelType.TRANSFORMER if attention else None,
                ignored_scope=nncf.IgnoredScope(names=list(material.kept(model)), validate=False),
            )
        del quantized.metadata_props[:]
        onnx.save(quantized, out)
        return {"smooth_quant": attention}


class _OneByOne:
    """Calibration samples as batches of one, as often as they are asked for."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return self._calibration.batches(1)


def _feeds_product(model: onnx.ModelProto, softmax: onnx.NodeProto) -> bool:
    return any(node.op_type == "MatMul" and set(softmax.output) & set(node.input) for node in model.graph.node)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress bars on the terminal, and logs on a logger of its own."""
    logger = logging.getLogger("nncf")
    level = logger.level
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            import nncf

            nncf.set_log_level(logging.ERROR)
            yield
        finally:
            logger.setLevel(level)
