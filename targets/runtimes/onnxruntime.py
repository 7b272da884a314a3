"""ONNX Runtime on the CPU. Its CPU provider has no bf16 kernels for the operators used here."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from apps.runtime.engines import OnnxRuntimeEngine
from quantize.variant import MODEL, ROUNDS_WEIGHTS, Variant
from targets.runtimes.base import thread_counts
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

    def knobs(self, cores: int, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        alone = {"threads": thread_counts(cores), "arena": (True, False), "graph_optimization": ("all", "extended")}
        together = {"spinning": (True, False), "pinning": (False, True), "parallel": (False, True)}
        return {**alone, **(together if options["threads"] > 1 else {})}

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        shutil.copyfile(variant.model, folder / MODEL)
        return MODEL, {"disabled_optimizers": [ROUNDS_WEIGHTS]} if variant.in_float else {}
