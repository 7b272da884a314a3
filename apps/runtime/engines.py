"""Inference engines behind one face: ``Engine(model, options).run(array)``. Heavy imports on use only."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError


class Engine:
    """One loaded model. ``run`` takes ``(batch, *shape)`` and gives ``(batch, outputs)`` float32."""

    package = ""

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

    package = "onnxruntime"

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(options.get("threads", 1))
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(model),
                settings,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(options.get("disabled_optimizers", [])),
            )
        except Exception as error:  # onnxruntime raises a class of its own per failure
            raise BundleError(f"ONNX Runtime cannot load the model ({error})", where=model) from error
        (self._input,) = (value.name for value in self._session.get_inputs())
        self._outputs = [self._session.get_outputs()[0].name]

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return self._session.run(self._outputs, {self._input: batch})[0]

    def close(self) -> None:
        del self._session


class OpenVinoEngine(Engine):
    """OpenVINO on the CPU, at the precision that the options name."""

    package = "openvino"

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        import openvino

        precision = str(options.get("precision", "f32"))
        properties = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": int(options.get("threads", 1)),
            "PERFORMANCE_HINT": "LATENCY",
        }
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
        # The output is copied: the next call overwrites OpenVINO's own buffer.
        return self._request.infer([batch], share_inputs=True)[0]

    def close(self) -> None:
        del self._request, self.compiled


class TensorRtEngine(Engine):
    """An engine of TensorRT's that was built on this board beside the model."""

    package = "tensorrt"

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        from .tensorrt_engine import TensorRtSession

        self._session = TensorRtSession(model)

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return self._session.run(batch)

    def close(self) -> None:
        self._session.close()


ENGINES: dict[str, type[Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
    "openvino": OpenVinoEngine,
    "tensorrt": TensorRtEngine,
}
