"""TensorRT as JetPack or pip brings it: its Python binding, and buffers through ctypes on the CUDA runtime library."""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import importlib.util
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
_BOARD = Path("/proc/device-tree/model")
REBUILD = "build it here: sh build.sh"
_SM = (75, 76)  # cudaDevAttrComputeCapabilityMajor and Minor


class Cuda:
    """The few calls of the CUDA runtime that an inference takes.

    Raises:
        BundleError: no CUDA runtime library, or a call that failed.
    """

    def __init__(self) -> None:
        for name in (*_LIBRARIES, *(str(_PLACE / name) for name in _LIBRARIES), *_from_pip()):
            try:
                self._library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise BundleError(
                "is not installed",
                where="libcudart",
                fix="sudo apt install nvidia-jetpack; on what is no Jetson, pip install nvidia-cuda-runtime",
            )
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
        self._library.cudaEventCreate.argtypes = [ctypes.POINTER(ctypes.c_void_p)]
        self._library.cudaEventRecord.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._library.cudaEventElapsedTime.argtypes = [ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_void_p]
        self._library.cudaEventDestroy.argtypes = [ctypes.c_void_p]
        self._library.cudaDeviceGetAttribute.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int]

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

    def event(self) -> int:
        """A new event: a moment on the device's own clock."""
        event = ctypes.c_void_p()
        self.call("cudaEventCreate", ctypes.byref(event))
        return event.value or 0

    def between_ms(self, start: int, end: int) -> float:
        """Time on the device from one event that has happened to another."""
        elapsed = ctypes.c_float()
        self.call("cudaEventElapsedTime", ctypes.byref(elapsed), start, end)
        return elapsed.value

    def sm(self) -> str:
        """Compute capability of the first GPU, ``8.7`` say."""
        value, found = ctypes.c_int(), []
        for attribute in _SM:
            self.call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            found.append(str(value.value))
        return ".".join(found)


def _from_pip() -> list[str]:
    """CUDA runtime libraries of pip's packages: nvidia/cuda_runtime/lib, or nvidia/cu13/lib."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec is not None else None
    return [str(path) for place in places or () for path in sorted(Path(place).glob("*/lib/libcudart.so.*"))]


class TensorRtSession:
    """An engine that was built on this machine, which runs one sample at a time.

    Args:
        rebuild: what a person does where the engine is not one for this machine.

    Attributes:
        device_ms: time of the latest run on the GPU alone, by its own events, copies not included.
    """

    def __init__(self, model: Path, rebuild: str = REBUILD) -> None:
        import tensorrt

        self._rebuild = rebuild
        self.device_ms = 0.0
        about = _about(model)
        plan = _trusted_plan(model, about, str(tensorrt.__version__), rebuild)
        self._cuda = Cuda()
        if about.get("sm", self._cuda.sm()) != self._cuda.sm():
            raise BundleError(
                f"was built for a GPU of SM {about['sm']}, here is SM {self._cuda.sm()}",
                where=model.parent / PLAN,
                fix=rebuild,
            )
        self._runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError("TensorRT does not load the engine", where=model.parent / PLAN, fix=rebuild)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BundleError("TensorRT has no memory left to run the engine", where=model.parent / PLAN)
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        (self._input,) = inputs
        self._output = next(name for name in names if name not in inputs)
        self._types = {name: np.dtype(tensorrt.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        self._stream = self._cuda.stream()
        self._before, self._after = self._cuda.event(), self._cuda.event()
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._said = np.empty(0, np.float32)

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """``(batch, *shape)`` to ``(batch, outputs, ...)`` float32, copies to and from the device included.

        Engines are built for one sample: of a batch, one after the other.
        """
        rows, spent_ms = [], 0.0
        for k in range(len(batch)):
            rows.append(self._run_one(batch[k : k + 1]))
            spent_ms += self._cuda.between_ms(self._before, self._after)
        self.device_ms = spent_ms
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _run_one(self, sample: NDArray[Any]) -> NDArray[np.float32]:
        given = np.ascontiguousarray(sample, self._types[self._input])
        if given.shape != self._shape:
            self._prepare(given)
        copy, stream = "cudaMemcpyAsync", self._stream
        self._cuda.call(copy, self._addresses[self._input], given.ctypes.data, given.nbytes, _TO_DEVICE, stream)
        self._cuda.call("cudaEventRecord", self._before, stream)
        if not self._context.execute_async_v3(stream):
            raise BundleError("TensorRT did not run the engine", where=self._output)
        self._cuda.call("cudaEventRecord", self._after, stream)
        said = self._said
        self._cuda.call(copy, said.ctypes.data, self._addresses[self._output], said.nbytes, _TO_HOST, stream)
        self._cuda.call("cudaStreamSynchronize", stream)
        return said.astype(np.float32)

    def _prepare(self, given: NDArray[Any]) -> None:
        """Buffers for inputs of this shape."""
        if not self._context.set_input_shape(self._input, given.shape):
            raise BundleError(f"the engine takes no input of {given.shape}", where=self._input, fix=self._rebuild)
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
        for event in (self._before, self._after):
            self._cuda.call("cudaEventDestroy", event)
        self._cuda.call("cudaStreamDestroy", self._stream)
        del self._context, self._engine, self._runtime


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _trusted_plan(model: Path, about: Mapping[str, Any], version: str, rebuild: str) -> bytes:
    """The engine of ``model``, if it is the one that was built here from it: loading one runs code in it."""
    plan = (model.parent / PLAN).read_bytes() if (model.parent / PLAN).is_file() else b""
    if not about or not plan:
        raise BundleError("has no engine yet", where=model, fix=rebuild)
    if hashlib.sha256(plan).hexdigest() != about.get("plan_sha256"):
        raise BundleError("is not the engine that was built here", where=model.parent / PLAN, fix=rebuild)
    if sha256(model) != about.get("model_sha256"):
        raise BundleError("was built from another model", where=model.parent / PLAN, fix=rebuild)
    if about.get("board", this_board()) != this_board():
        words = f"was built on {about['board'] or 'another device'}, this is {this_board() or 'another'}"
        raise BundleError(words, where=model.parent / PLAN, fix=rebuild)
    built = str(about.get("tensorrt"))
    if version.split(".")[:3] != built.split(".")[:3]:
        raise BundleError(f"was built by TensorRT {built}, here is {version}", where=model.parent / PLAN, fix=rebuild)
    return plan


def this_board() -> str:
    """What the device tree calls this board: engines are for one kind, cards with them move to others; else empty."""
    try:
        return _BOARD.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _about(model: Path) -> Mapping[str, Any]:
    try:
        said = json.loads((model.parent / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
