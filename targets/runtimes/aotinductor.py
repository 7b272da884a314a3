"""torch's AOTInductor: the program as a shared library of compiled kernels, on a CPU or a CUDA device."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from apps.runtime.errors import BundleError
from quantize.program import quiet
from quantize.variant import FLOAT, X86, Variant
from targets.nvml import this_gpu
from targets.runtimes.base import thread_counts
from targets.runtimes.on_gpu import absent, gpu_hardware, gpu_lacks
from targets.runtimes.program import ProgramRuntime
from targets.spec import Build, Probe

_MODEL = "model.pt2"


class AotInductor(ProgramRuntime):
    """On the CPU. Weights are packed as its kernels want them; int8 runs on oneDNN's, which are x86's."""

    name = "aotinductor"
    place: ClassVar[str] = "cpu"
    programs: ClassVar[tuple[str, ...]] = (FLOAT, X86)
    supports: ClassVar = {"fp32": (), "int8": ("avx2", "avx512", "vnni", "amx_int8")}

    def _probe(self) -> Probe:
        if importlib.util.find_spec("torch") is None:
            return Probe(False, reason="torch is not installed (pip install 'mst-edge[train]')")
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return Probe(False, reason=f"there is no C++ compiler {compiler} (sudo apt install g++)")
        return Probe(True, metadata.version("torch"), self.supported_here())

    def knobs(self, cores: int, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        return {"threads": thread_counts(cores)}

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        with quiet():
            import torch._inductor

            program = self._one_sample(variant, self.place)
            # Threads are those that it is opened with, not those of this process. No pool of compilers outlives it.
            settings = {"freezing": True, "cpp.dynamic_threads": True, "compile_threads": 1}
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / _MODEL), inductor_configs=settings
            )
        return _MODEL, {}

    def _load(self, build: Build) -> Any:
        import torch

        torch.set_num_threads(int(build.settings.get("threads", 1)))
        return self._package(build, run_single_threaded=False)

    def _package(self, build: Build, *, run_single_threaded: bool) -> Any:
        """What runs a list of tensors. The package's own call parses a description of its arguments every time."""
        with quiet():
            import torch._inductor

            try:
                package = torch._inductor.aoti_load_package(
                    str(build.model_path), run_single_threaded=run_single_threaded
                )
            except Exception as error:  # zip, JSON, or the loader of libraries
                raise BundleError(f"AOTInductor cannot load the model ({error})", where=build.model_path) from error
        return package.loader

    def _answer(self, handle: Any, sample: NDArray[Any]) -> NDArray[np.float32]:
        from torch.utils.dlpack import from_dlpack

        (answer,) = handle.boxed_run([from_dlpack(sample)])
        return answer.numpy()

    def _close(self, handle: Any) -> None:
        """The library is closed with the last reference to it."""


class AotInductorCuda(AotInductor):
    """On a CUDA device, as one CUDA graph: copy in, kernels and copy out are launched together.

    fp32 is fp32: tensor cores may not round its products to tf32.
    """

    place = "cuda"
    device = "GPU"
    also: ClassVar = {}
    programs: ClassVar[tuple[str, ...]] = (FLOAT,)
    supports: ClassVar = dict.fromkeys(("fp32",), ())

    def knobs(self, cores: int, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        return {}

    def hardware(self) -> dict[str, Any]:
        return {**super().hardware(), **gpu_hardware()}

    def _facts(self, build: Build) -> Mapping[str, Any]:
        return {"gpu": this_gpu().to_dict()}

    def _probe(self) -> Probe:
        found = super()._probe()
        if not found.available:
            return found
        missing = list(gpu_lacks())
        if missing:
            return absent(missing)
        import torch

        if not torch.cuda.is_available():
            return Probe(False, reason="torch finds no CUDA device (mst-edge doctor)")
        return found

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        _without_tf32()
        return super()._build(variant, precision, folder)

    def _load(self, build: Build) -> Any:
        import torch

        _without_tf32()
        loader = self._package(build, run_single_threaded=True)
        about = build.facts["input"]
        given = torch.zeros(1, *about["sizes"], dtype=getattr(torch, about["dtype"])).pin_memory()
        inside = given.cuda()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):  # what is set up at the first run must not be captured
            for _ in range(3):
                (answer,) = loader.boxed_run([inside])
        side.synchronize()
        answered = torch.empty(answer.shape, dtype=answer.dtype).pin_memory()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            inside.copy_(given, non_blocking=True)
            (answer,) = loader.boxed_run([inside])
            answered.copy_(answer, non_blocking=True)
        return graph, given.numpy(), answered.numpy(), (loader, given, inside, answer, answered)

    def _answer(self, handle: Any, sample: NDArray[Any]) -> NDArray[np.float32]:
        import torch

        graph, given, answered, _ = handle
        given[...] = sample
        graph.replay()
        torch.cuda.synchronize()
        return answered.copy()


def _without_tf32() -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
