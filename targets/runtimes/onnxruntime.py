"""ONNX Runtime on the CPU. Its CPU provider has no bf16 kernels for the operators used here."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from apps.runtime.engines import OnnxRuntimeEngine
from quantize.variant import MODEL, ROUNDS_WEIGHTS, Variant
from targets.runtimes.engine import EngineRuntime
from targets.spec import Probe


class OnnxRuntime(EngineRuntime):
    """Runs the variant's ONNX file as it is; the graph is optimised at load, but what is float stays float."""

    name = "onnxruntime"
    engine = OnnxRuntimeEngine
    supports: ClassVar = dict.fromkeys(("fp32", "fp16", "int8", "w8", "w4"), ())

    def _version(self) -> str:
        import onnxruntime  # the module, since onnxruntime-gpu brings it too

        return str(onnxruntime.__version__)

    def _probe(self) -> Probe:
        if not self.engine.installed():
            return Probe(False, reason="onnxruntime is not installed (pip install onnxruntime)")
        return Probe(True, self._version(), self.supported_here())

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        shutil.copyfile(variant.model, folder / MODEL)
        return MODEL, {"disabled_optimizers": [ROUNDS_WEIGHTS]} if variant.in_float else {}
