"""The NVIDIA GPU of this machine."""

from __future__ import annotations

from typing import ClassVar

from targets.spec import TargetSpec
from targets.target import Target


class CudaTarget(Target):
    """CUDA's first GPU. A runtime that would fall back to the CPU is an error, not a build.

    What runs with torch only, and goes into no bundle, is built where a recipe asks for it.
    """

    spec = TargetSpec(
        "cuda", "the NVIDIA GPU of this machine", ("tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda"), on_host=True
    )
    schemes: ClassVar = ("fp16", "int8-symmetric")
    runtime_classes: ClassVar = {
        "tensorrt": "targets.runtimes.tensorrt:TensorRt",
        "onnxruntime-tensorrt": "targets.runtimes.onnxruntime_gpu:OnnxRuntimeTensorRt",
        "onnxruntime-cuda": "targets.runtimes.onnxruntime_gpu:OnnxRuntimeCuda",
        "aotinductor": "targets.runtimes.aotinductor:AotInductorCuda",
    }
