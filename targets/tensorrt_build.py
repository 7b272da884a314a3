"""Engines compiled by TensorRT's Python API.

Calls are those that TensorRT 8.6 to 11 document alike (docs.nvidia.com/deeplearning/tensorrt, Python API); what differs
between versions is in ``apps.runtime.board.dialect``, which boards' ``trtexec`` is asked by too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.runtime import BundleError
from apps.runtime.board.dialect import WORKSPACE_MIB, Dialect, Version, dialect_of, require_opset, version_of
from mst_edge.core.cache import cache_root, entries, entry_folder, new_entry
from mst_edge.core.files import sha256_file
from targets.nvml import Gpu
from targets.runtimes.base import NotBuiltError

KIND = "timings"
_TIMING = "timing.cache"
_OPTIMIZATION_LEVEL = 3
_MOST_WORDS = 400


@dataclass(frozen=True)
class Order:
    """What is to be compiled.

    Attributes:
        model: ONNX file, whose types are those of the engine.
        precision: of the file.
        tf32: whether products in fp32 may be made in TF32.
        shapes: of inputs with free axes, with the batch.
    """

    model: Path
    opset: int
    precision: str
    tf32: bool
    shapes: Mapping[str, tuple[int, ...]]


def engine(order: Order, gpu: Gpu) -> bytes:
    """A serialized engine for the GPU.

    The times of kernels that it was chosen by are kept, and the next build on the same chip begins with them.

    Raises:
        NotBuiltError: TensorRT does not take the model, or does not manage it.
        UserError: the disk is full.
    """
    import tensorrt

    version = version_of(str(tensorrt.__version__))
    spoken = _dialect(version, order)
    chip = {"tensorrt": str(tensorrt.__version__), "sm": list(gpu.sm), "gpu": gpu.name, "driver": gpu.driver}
    plan, timings = compile_plan(tensorrt, version, spoken, order, _timings(chip))
    depends_on = {**chip, "flags": flags(version, order.precision, tf32=order.tf32), "model": sha256_file(order.model)}
    what = f"kernels of {gpu.name} with TensorRT {version}"
    with new_entry(entry_folder(cache_root(), KIND, depends_on), what, depends_on) as folder:
        (folder / _TIMING).write_bytes(timings)
    return plan


def flags(version: Version, precision: str, *, tf32: bool) -> list[str]:
    """What a build is told beside the model, in the words of ``trtexec``.

    Args:
        precision: of the file.
    """
    return [*dialect_of(version).flags[precision], *([] if tf32 else ["--noTF32"])]


def _dialect(version: Version, order: Order) -> Dialect:
    try:
        require_opset(version, order.opset)
        return dialect_of(version)
    except BundleError as error:
        raise NotBuiltError(str(error)) from None


def _timings(chip: Mapping[str, Any]) -> bytes:
    """The most timings that any build by the same TensorRT on the same chip left: it began with those before it."""
    every = entries(cache_root(), [KIND])
    like = (entry for entry in every if all(entry.depends_on.get(key) == said for key, said in chip.items()))
    return max(((entry.folder / _TIMING).read_bytes() for entry in like), key=len, default=b"")


def compile_plan(
    tensorrt: Any, version: Version, dialect: Dialect, order: Order, timings: bytes
) -> tuple[bytes, bytes]:
    """The serialized engine, and the timings that it was chosen by.

    Raises:
        NotBuiltError: TensorRT does not take the model, or does not manage it; carries its own words.
    """
    log = _log(tensorrt)
    builder = tensorrt.Builder(log)
    network = builder.create_network(_creation_flags(tensorrt, version, dialect))
    parser = tensorrt.OnnxParser(network, log)
    if not parser.parse_from_file(str(order.model)):
        said = [parser.get_error(k).desc() for k in range(parser.num_errors)]
        raise NotBuiltError(f"TensorRT {version} does not read the model: {_words(said)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB << 20)
    config.builder_optimization_level = _OPTIMIZATION_LEVEL
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    for hint in dialect.hints[order.precision]:
        flag = getattr(tensorrt.BuilderFlag, hint.upper(), None)
        if flag is None:
            raise NotBuiltError(f"TensorRT {version} has no {hint}")
        config.set_flag(flag)
    if not order.tf32:
        config.clear_flag(tensorrt.BuilderFlag.TF32)  # set from the beginning
    cache = config.create_timing_cache(timings)
    config.set_timing_cache(cache, False)  # do not ignore a mismatch of the chip
    if order.shapes:
        profile = builder.create_optimization_profile()
        for name, shape in order.shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise NotBuiltError(f"TensorRT {version} did not build it: {_words(log.errors)}")
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def _creation_flags(tensorrt: Any, version: Version, dialect: Dialect) -> int:
    """Bits of ``NetworkDefinitionCreationFlag``. Up to TensorRT 8 the batch is no axis unless that is asked for."""
    known = tensorrt.NetworkDefinitionCreationFlag
    flags = 1 << int(known.EXPLICIT_BATCH) if version.major < 10 else 0
    return flags | (1 << int(known.STRONGLY_TYPED) if dialect.asks_typed else 0)


def _log(tensorrt: Any) -> Any:
    """A logger that keeps errors."""

    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (tensorrt.Logger.INTERNAL_ERROR, tensorrt.Logger.ERROR):
                self.errors.append(message)

    return Log()


def _words(said: list[str]) -> str:
    return " ".join(" ".join(said).split())[-_MOST_WORDS:] or "it gives no reason"
