"""TensorRT as JetPack brings it: its Python binding, and buffers through ctypes on the CUDA runtime library."""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

PLAN, ABOUT = "model.plan", "engine.json"
_TO_DEVICE, _TO_HOST = 1, 2
_LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_PLACE = Path("/usr/local/cuda/lib64")
_REBUILD = "build it here: sh build.sh"


class Cuda:
    """The few calls of the CUDA runtime that an inference takes.

    Raises:
        BundleError: no CUDA runtime library, or a call that failed.
    """

    def __init__(self) -> None:
        for name in (*_LIBRARIES, *(str(_PLACE / name) for name in _LIBRARIES)):
            try:
                self._library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise BundleError("is not installed", where="libcudart", fix="sudo apt install nvidia-jetpack")
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        self._library.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
        self._library.cudaFree.argtypes = [ctypes.c_void_p]
        self._library.cudaMemcpyAsync.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_void_p,
        ]
        self._library.cudaStreamCreate.argtypes = [ctypes.POINTER(ctypes.c_void_p)]
        self._library.cudaStreamSynchronize.argtypes = [ctypes.c_void_p]
        self._library.cudaStreamDestroy.argtypes = [ctypes.c_void_p]

    def call(self, name: str, *arguments: Any) -> None:
        """Calls ``name``; an error code is an error here."""
        code = getattr(self._library, name)(*arguments)
        if code:
            said = self._library.cudaGetErrorString(code) or b""
            raise BundleError(f"{name} failed: {said.decode(errors='replace')} ({code})", where="CUDA")

    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory."""
        address = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(address), max(1, size_bytes))
        return address.value or 0

    def stream(self) -> int:
        """A new stream."""
        stream = ctypes.c_void_p()
        self.call("cudaStreamCreate", ctypes.byref(stream))
        return stream.value or 0


class TensorRtSession:
    """An engine that was built on this board, ready to run one sample at a time."""

    def __init__(self, model: Path) -> None:
        import tensorrt

        plan = _trusted_plan(model, str(tensorrt.__version__))
        self._cuda = Cuda()
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError("TensorRT does not load the engine", where=model.parent / PLAN, fix=_REBUILD)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BundleError("TensorRT has no memory left to run the engine", where=model.parent / PLAN)
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        (self._input,) = inputs
        self._output = next(name for name in names if name not in inputs)
        self._types = {name: np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        self._stream = self._cuda.stream()
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._said = np.empty(0, np.float32)

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """``(batch, *shape)`` to ``(batch, outputs, ...)`` float32, copies to and from the device included."""
        given = np.ascontiguousarray(batch, self._types[self._input])
        if given.shape != self._shape:
            self._prepare(given)
        copy, stream = "cudaMemcpyAsync", self._stream
        self._cuda.call(copy, self._addresses[self._input], given.ctypes.data, given.nbytes, _TO_DEVICE, stream)
        if not self._context.execute_async_v3(stream):
            raise BundleError("TensorRT did not run the engine", where=self._output)
        said = self._said
        self._cuda.call(copy, said.ctypes.data, self._addresses[self._output], said.nbytes, _TO_HOST, stream)
        self._cuda.call("cudaStreamSynchronize", stream)
        return said.astype(np.float32)

    def _prepare(self, given: NDArray[Any]) -> None:
        """Buffers for inputs of this shape."""
        if not self._context.set_input_shape(self._input, given.shape):
            raise BundleError(f"the engine takes no input of {given.shape}", where=self._input, fix=_REBUILD)
        self._free()
        shape = tuple(self._context.get_tensor_shape(self._output))
        self._said = np.empty(shape, self._types[self._output])
        for name, size in ((self._input, given.nbytes), (self._output, self._said.nbytes)):
            self._addresses[name] = self._cuda.allocate(size)
            self._context.set_tensor_address(name, self._addresses[name])
        self._shape = given.shape

    def _free(self) -> None:
        for address in self._addresses.values():
            self._cuda.call("cudaFree", address)
        self._addresses.clear()

    def close(self) -> None:
        """Frees device memory."""
        self._free()
        self._cuda.call("cudaStreamDestroy", self._stream)
        del self._context, self._engine, self._runtime


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _trusted_plan(model: Path, version: str) -> bytes:
    """The engine of ``model``, if it is the one that was built here from it: loading one runs code in it."""
    about = _about(model)
    plan = (model.parent / PLAN).read_bytes() if (model.parent / PLAN).is_file() else b""
    if not about or not plan:
        raise BundleError("has no engine yet", where=model, fix=_REBUILD)
    if hashlib.sha256(plan).hexdigest() != about.get("plan_sha256"):
        raise BundleError("is not the engine that was built here", where=model.parent / PLAN, fix=_REBUILD)
    if sha256(model) != about.get("model_sha256"):
        raise BundleError("was built from another model", where=model.parent / PLAN, fix=_REBUILD)
    built = str(about.get("tensorrt"))
    if version.split(".")[:3] != built.split(".")[:3]:
        raise BundleError(f"was built by TensorRT {built}, here is {version}", where=model.parent / PLAN, fix=_REBUILD)
    return plan


def _about(model: Path) -> Mapping[str, Any]:
    try:
        said = json.loads((model.parent / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
