"""TensorRT on the GPU of this machine: engines compiled and run here, in the precision of the ONNX file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import onnx

from apps.runtime import BundleError
from apps.runtime.board import dialect
from apps.runtime.board.dialect import dialect_of, version_of
from apps.runtime.engines import TensorRtEngine
from apps.runtime.tensorrt_engine import ABOUT, PLAN, Cuda
from mst_edge.core.files import sha256_file, write_json
from quantize.variant import MODEL, Variant
from targets import tensorrt_build
from targets.nvml import this_gpu
from targets.runtimes.on_gpu import BF16, TF32, GpuRuntime
from targets.tensorrt_build import flags
from targets.tensorrt_file import take, to_bfloat16, unfit

_REBUILD = "build it on this machine: mst-edge deploy ... --target cuda"


class TensorRt(GpuRuntime):
    """An engine per variant, for one sample at a time, with shapes fixed: that of the samples that judge."""

    name = "tensorrt"
    engine = TensorRtEngine
    supports: ClassVar = {"fp32": (), "tf32": TF32, "fp16": (), "bf16": BF16, "int8": ()}
    # bf16 is made of the fp16 file: TensorRT 10.12 and later take types from the file alone.
    also: ClassVar[Mapping[str, tuple[str, ...]]] = {"fp32": ("tf32",), "fp16": ("bf16",)}

    def _version(self) -> str:
        import tensorrt

        return str(tensorrt.__version__)

    def _lacks(self) -> Iterator[tuple[str, str]]:
        if importlib.util.find_spec(self.engine.package) is None:
            yield "tensorrt is not installed", "pip install tensorrt"
        else:
            try:
                dialect_of(version_of(self._version()))
            except BundleError as error:
                yield str(error).partition(";")[0], "pip install --upgrade tensorrt"
            try:
                Cuda()
            except BundleError:
                yield "libcudart is not installed", "pip install nvidia-cuda-runtime"

    def depends_on(self, variant: Variant, precision: str, threads: int) -> dict[str, Any]:
        told = flags(version_of(self._version()), _of_file(precision), tf32=precision != "fp32")
        return {**super().depends_on(variant, precision, threads), "flags": told}

    def _code(self) -> set[str]:
        return super()._code() | {dialect.__name__, tensorrt_build.__name__}

    def unfit(self, variant: Variant) -> str:
        return unfit(onnx.load(variant.model))

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        model, out = onnx.load(variant.model), folder / MODEL
        if precision == "bf16":
            to_bfloat16(model)
        take(model, out)
        order = tensorrt_build.Order(
            model=out,
            opset=variant.opset,
            precision=_of_file(precision),
            tf32=precision != "fp32",
            shapes={variant.input.name: (1, *variant.input.sizes)} if _is_free(model) else {},
        )
        gpu = this_gpu()
        (folder / PLAN).write_bytes(tensorrt_build.engine(order, gpu))
        about = {
            "plan_sha256": sha256_file(folder / PLAN),
            "model_sha256": sha256_file(out),
            "tensorrt": self._version(),
            "sm": gpu.to_dict()["sm"],
        }
        write_json(folder / ABOUT, about)
        return MODEL, {"rebuild": _REBUILD}


def _of_file(precision: str) -> str:
    """What the file's types are where a build computes in ``precision``."""
    return "fp32" if precision == "tf32" else precision


def _is_free(model: onnx.ModelProto) -> bool:
    """Whether an axis of the input has no size."""
    return any(not dim.HasField("dim_value") for dim in model.graph.input[0].type.tensor_type.shape.dim)
