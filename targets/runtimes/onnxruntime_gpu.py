"""ONNX Runtime on an NVIDIA GPU, by its CUDA and its TensorRT provider: required, never fallen back from."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import onnx

from apps.runtime import BundleError
from apps.runtime.engines import OnnxRuntimeCudaEngine, OnnxRuntimeTensorRtEngine
from quantize.variant import MODEL, ROUNDS_WEIGHTS, Variant
from targets.placement import Placement, place
from targets.runtimes.base import NotBuiltError
from targets.runtimes.on_gpu import TF32, GpuRuntime
from targets.spec import Build
from targets.tensorrt_file import take, unfit


class OnnxRuntimeCuda(GpuRuntime):
    """The variant's ONNX file as it is, by cuDNN's and cuBLAS' kernels.

    int8 is not for it: CUDA's provider rounds to eight bits and computes in float.
    """

    name = "onnxruntime-cuda"
    engine: ClassVar[type[OnnxRuntimeCudaEngine]] = OnnxRuntimeCudaEngine
    supports: ClassVar = {"fp32": (), "tf32": TF32, "fp16": ()}

    def _version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def _lacks(self) -> Iterator[tuple[str, str]]:
        if importlib.util.find_spec(self.engine.package) is None:
            yield "onnxruntime is not installed", "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        elif not self.engine.installed():
            fix = "pip uninstall -y onnxruntime && pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'"
            yield f"onnxruntime {self._version()} was built without {self.engine.provider}", fix

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        shutil.copyfile(variant.model, folder / MODEL)
        options = {"disabled_optimizers": [ROUNDS_WEIGHTS]} if variant.in_float else {}
        return MODEL, {**options, "tf32": precision == "tf32"}

    def _facts(self, build: Build) -> Mapping[str, Any]:
        """One inference proves the provider, and tells which nodes it ran.

        Raises:
            NotBuiltError: none of them.
        """
        about = build.facts["input"]
        try:
            found = place(self.engine, build.model_path, build.options, ((1, *about["sizes"]), about["dtype"]))
        except BundleError as error:
            raise NotBuiltError(str(error)) from error
        if not found.on_device():
            raise NotBuiltError(f"{self.engine.provider} takes the model and runs nothing of it on the GPU")
        placement = {"nodes": dict(found.nodes), "share": found.share(self.engine.provider)}
        return {**super()._facts(build), "placement": placement, "notes": _notes(found)}


class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """By TensorRT, inside ONNX Runtime: layers have the types of the file.

    Its provider has no option that keeps fp32 from being multiplied in TF32, so an fp32 file counts as ``tf32``.
    """

    name = "onnxruntime-tensorrt"
    engine = OnnxRuntimeTensorRtEngine
    supports: ClassVar = {"tf32": (), "fp16": (), "int8": ()}

    def _lacks(self) -> Iterator[tuple[str, str]]:
        yield from super()._lacks()
        if importlib.util.find_spec("tensorrt") is None:
            yield "tensorrt is not installed", "pip install tensorrt"

    def unfit(self, variant: Variant) -> str:
        return unfit(onnx.load(variant.model))

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        take(onnx.load(variant.model), folder / MODEL)
        return MODEL, {}


def _notes(found: Placement) -> list[str]:
    if not found.on_cpu:
        return []
    said = ", ".join(f"{name} x {count}" for name, count in sorted(found.on_cpu.items()))
    return [f"{sum(found.on_cpu.values())} of its nodes run on the CPU: {said}"]
