"""OpenVINO on the CPU: floats and integers, and bf16 where the CPU has it: all but the front end, or all of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from apps.runtime.engines import OpenVinoEngine
from quantize.variant import Variant
from targets.runtimes.base import thread_counts
from targets.runtimes.engine import EngineRuntime
from targets.spec import WHOLE_BF16, Probe

_MODEL = "model.xml"
_MOVING = {"Reshape", "Transpose"}
# fp16 names the file; x86 computes it in f32.
_HINTS = {"fp32": "f32", "fp16": "f32", "int8": "f32", "w8": "f32", "w4": "f32"}
_IN_BF16 = ("bf16", WHOLE_BF16, "int8-bf16")
_BF16 = ("bf16", "amx_bf16")


class OpenVino(EngineRuntime):
    """Compiles the variant's ONNX file to OpenVINO's IR."""

    name = "openvino"
    engine = OpenVinoEngine
    supports: ClassVar = {**dict.fromkeys(_HINTS, ()), **dict.fromkeys(_IN_BF16, _BF16)}
    also: ClassVar = {"fp32": ("bf16", WHOLE_BF16), "int8": ("int8-bf16",)}

    def _probe(self) -> Probe:
        if not self.engine.installed():
            return Probe(False, reason="openvino is not installed (pip install 'mst-edge[openvino]')")
        return Probe(True, self._version(), self.supported_here())

    def precisions(self, variant: Variant) -> tuple[str, ...]:
        has_front_end = set(variant.float_nodes) > set(variant.answer_nodes)
        return tuple(p for p in super().precisions(variant) if has_front_end or p != WHOLE_BF16)

    def knobs(self, cores: int, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        alone = {"threads": thread_counts(cores), "hint": ("LATENCY", "THROUGHPUT")}
        together = {"pinning": (None, True, False), "hyper_threading": (None, True, False)}
        return {**alone, **(together if options["threads"] > 1 else {})}

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        import openvino

        model = openvino.Core().read_model(variant.model)
        openvino.save_model(model, folder / _MODEL, compress_to_fp16=False)
        if precision not in _IN_BF16:
            return _MODEL, {"precision": _HINTS[precision]}
        options, path = {"precision": "bf16"}, folder / _MODEL
        # The scaling of regression's answers stays: its numbers may need more than eight bits.
        exact = variant.answer_nodes if precision == WHOLE_BF16 else variant.float_nodes
        path.write_text(keep_in_f32(path.read_text(encoding="utf-8"), exact), encoding="utf-8")
        self._require_f32(path, options, exact)
        return _MODEL, options

    def _require_f32(self, model: Path, options: Mapping[str, Any], names: Collection[str]) -> None:
        """Asks the compiled graph which precision each operator of ``names`` really runs in.

        What only moves values may run in bf16 where nothing of ``names`` reads it: the rounding is then that of
        what comes after. OpenVINO swaps a change of shape with the scaling before it.
        """
        engine = self.engine(model, options)
        try:
            for operator in engine.compiled.get_runtime_model().get_ops():
                if _fact(operator, "runtimePrecision") != "bf16" or not _is_of(operator, names):
                    continue
                readers = [entry.get_node() for output in operator.outputs() for entry in output.get_target_inputs()]
                moves = _fact(operator, "layerType") in _MOVING
                if not moves or any(_is_of(reader, names) for reader in readers):
                    origins = _fact(operator, "originalLayersNames")
                    raise RuntimeError(f"operator {origins}, which must stay in f32, runs in bf16 in OpenVINO")
        finally:
            engine.close()


def _fact(operator: Any, name: str) -> str:
    """What the compiled graph says of one of its operators."""
    info = operator.get_rt_info()
    return str(info[name].astype(str)) if name in info else ""


def _is_of(operator: Any, names: Collection[str]) -> bool:
    """Whether an operator of the compiled graph was made of one of the layers ``names``."""
    return bool(set(_fact(operator, "originalLayersNames").split(",")) & set(names))


def keep_in_f32(ir: str, names: Collection[str]) -> str:
    """Marks the layers called ``names`` in an IR document as precise: OpenVINO then runs them in f32.

    A log-mel front end in bf16 is off by 0.1, which some networks mind; what comes after it tolerates bf16 well.
    """

    def mark(layer: re.Match[str]) -> str:
        if layer["name"] not in names:
            return layer[0]
        mark = '<rt_info><attribute name="precise" version="0" /></rt_info>'
        body = layer["body"]
        if "<rt_info>" in body:
            return layer[0].replace("<rt_info>", mark.removesuffix("</rt_info>"), 1)
        # The schema wants: data, rt_info, ports.
        split = re.match(r"\s*<data\b[^>]*/>", body)
        cut = split.end() if split else 0
        return f"{layer['head']}{body[:cut]}{mark}{body[cut:]}</layer>"

    pattern = r'(?P<head><layer\b[^>]*\bname="(?P<name>[^"]*)"[^>]*>)(?P<body>.*?)</layer>'
    return re.sub(pattern, mark, ir, flags=re.DOTALL)
