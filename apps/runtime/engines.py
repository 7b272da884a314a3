"""Inference engines behind one face: ``Engine(model, options).run(array)``. Heavy imports on use only."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError


class Engine:
    """One loaded model. ``run`` takes ``(batch, *shape)`` and gives ``(batch, outputs)`` float32.

    Attributes:
        package: what is imported.
        requirement: what pip installs for it.
        device_ms: time of the latest run on the device alone, by its own clock; None where the engine does not tell.
    """

    package = ""
    requirement = ""
    device_ms: float | None = None

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        raise NotImplementedError

    def close(self) -> None:
        """Frees the model."""

    @classmethod
    def installed(cls) -> bool:
        """Whether the engine's package can be imported here (which does not prove that it works)."""
        return importlib.util.find_spec(cls.package) is not None


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime on the CPU."""

    package = requirement = "onnxruntime"
    provider = "CPUExecutionProvider"

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        """Opens ``model``.

        Args:
            options: among them ``profile``: where a profile of the runs is written, see ``end_profile``.

        Raises:
            BundleError: ONNX Runtime does not load it, or not on this engine's provider.
        """
        import onnxruntime

        threads = int(options.get("threads", 1))
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.enable_cpu_mem_arena = bool(options.get("arena", True))
        if options.get("graph_optimization", "all") == "extended":
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if options.get("parallel", False):
            settings.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
            settings.inter_op_num_threads = threads
        if not options.get("spinning", True):
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if options.get("pinning", False) and threads > 1:
            # Its threads beside the caller's own, each to a core; it counts processors from 1.
            cores = sorted(os.sched_getaffinity(0))[1:threads]
            affinities = ";".join(str(core + 1) for core in cores)
            settings.add_session_config_entry("session.intra_op_thread_affinities", affinities)
        settings.log_severity_level = 3
        if "profile" in options:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(options["profile"])
        try:
            self._session = onnxruntime.InferenceSession(
                str(model),
                settings,
                providers=self._providers(model, options),
                disabled_optimizers=list(options.get("disabled_optimizers", [])),
                enable_fallback=0,  # to the CPU, where a provider fails
            )
        except Exception as error:  # onnxruntime raises a class of its own per failure
            raise BundleError(f"ONNX Runtime cannot load the model ({error})", where=model) from error
        # A provider that is not built in, or whose libraries do not load, is left out with a warning.
        got = self._session.get_providers()[0]
        if got != self.provider:
            raise BundleError(f"ONNX Runtime runs the model on {got}, not on {self.provider}", where=model)
        (self._input,) = (value.name for value in self._session.get_inputs())
        self._outputs = [self._session.get_outputs()[0].name]

    def _providers(self, model: Path, options: Mapping[str, Any]) -> list[Any]:
        """Providers in order of preference, with their options."""
        return [self.provider]

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return self._session.run(self._outputs, {self._input: batch})[0]

    def end_profile(self) -> Path:
        """The file (JSON) that tells what ran where, of an engine that was opened with ``profile``."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        del self._session


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """ONNX Runtime on an NVIDIA GPU, with cuDNN's and cuBLAS' kernels. What it has none for runs on the CPU."""

    requirement = "onnxruntime-gpu[cuda,cudnn]"
    provider = "CUDAExecutionProvider"

    @classmethod
    def installed(cls) -> bool:
        if not super().installed():
            return False
        import onnxruntime

        return cls.provider in onnxruntime.get_available_providers()  # those that this package was built with

    def _providers(self, model: Path, options: Mapping[str, Any]) -> list[Any]:
        _load_cuda()
        return [(self.provider, {"device_id": "0", "use_tf32": "1" if options.get("tf32") else "0"})]


class OnnxRuntimeTensorRtEngine(OnnxRuntimeCudaEngine):
    """ONNX Runtime on an NVIDIA GPU by TensorRT, which types layers as the file does; what it leaves runs on CUDA.

    What TensorRT compiles is kept beside the model, under names that hold its version and the chip's.
    """

    requirement = "onnxruntime-gpu[cuda,cudnn] tensorrt"
    provider = "TensorrtExecutionProvider"

    def _providers(self, model: Path, options: Mapping[str, Any]) -> list[Any]:
        _load_cuda()
        _load_tensorrt()
        kept = str(model.resolve().parent)
        own = {
            "device_id": "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": kept,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": kept,
        }
        return [(self.provider, own), (OnnxRuntimeCudaEngine.provider, {"device_id": "0"})]


def _load_cuda() -> None:
    """Loads the CUDA libraries that pip installed beside ONNX Runtime (1.21 and later), before the provider looks."""
    import onnxruntime

    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):  # where it says what it did not find
            preload()


def _load_tensorrt() -> None:
    """The provider finds pip's TensorRT libraries once the binding has loaded them."""
    if importlib.util.find_spec("tensorrt") is not None:
        importlib.import_module("tensorrt")


class OpenVinoEngine(Engine):
    """OpenVINO on the CPU, at the precision that the options name."""

    package = requirement = "openvino"

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        import openvino

        precision = str(options.get("precision", "f32"))
        properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": int(options.get("threads", 1)),
            "PERFORMANCE_HINT": str(options.get("hint", "LATENCY")),
        }
        for option, name in (("pinning", "ENABLE_CPU_PINNING"), ("hyper_threading", "ENABLE_HYPER_THREADING")):
            if options.get(option) is not None:  # OpenVINO itself decides otherwise
                properties[name] = bool(options[option])
        try:
            compiled = openvino.Core().compile_model(str(model), "CPU", properties)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot compile the model ({error})", where=model) from error
        got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if got != precision:
            # Without this a CPU that lacks bf16 would quietly run in f32 and report someone else's numbers.
            raise BundleError(f"OpenVINO runs in {got} on this CPU, not in {precision}", where=model)
        self.compiled = compiled
        self._request = compiled.create_infer_request()

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        # An array by itself: in a list it takes a path that costs some 40 us more. The answer is copied, for the next
        # call overwrites OpenVINO's own buffer.
        said: NDArray[np.float32] = self._request.infer(batch, share_inputs=True, share_outputs=True)[0].copy()
        return said

    def close(self) -> None:
        del self._request, self.compiled


class TensorRtEngine(Engine):
    """An engine of TensorRT's that was built on this machine beside the model."""

    package = requirement = "tensorrt"

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        from .tensorrt_engine import REBUILD, TensorRtSession

        self._session = TensorRtSession(model, str(options.get("rebuild", REBUILD)))

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        said = self._session.run(batch)
        self.device_ms = self._session.device_ms
        return said

    def close(self) -> None:
        self._session.close()


ENGINES: dict[str, type[Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
    "onnxruntime-cuda": OnnxRuntimeCudaEngine,
    "onnxruntime-tensorrt": OnnxRuntimeTensorRtEngine,
    "openvino": OpenVinoEngine,
    "tensorrt": TensorRtEngine,
}


def requirement_of(runtime: str) -> str:
    """What pip installs for a runtime."""
    return ENGINES[runtime].requirement if runtime in ENGINES else runtime
