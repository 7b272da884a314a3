"""ExecuTorch on the CPU, with XNNPACK's kernels for all that they take and portable ones for the rest."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from apps.runtime.errors import BundleError
from quantize.program import quiet
from quantize.variant import FLOAT, XNNPACK, Variant
from targets.runtimes.base import thread_counts
from targets.runtimes.program import ProgramRuntime
from targets.spec import Build, Probe

_MODEL = "model.pte"


class ExecuTorch(ProgramRuntime):
    """Lowers the variant's program to a ``.pte``, which ExecuTorch's runtimes for phones read as well.

    Its runtime for Python is linked against torch's own libraries.
    """

    name = "executorch"
    programs: ClassVar[tuple[str, ...]] = (FLOAT, XNNPACK)
    supports: ClassVar = dict.fromkeys(("fp32", "int8"), ())

    def _probe(self) -> Probe:
        if importlib.util.find_spec("executorch") is None:
            return Probe(False, reason="executorch is not installed (pip install 'mst-edge[executorch]')")
        return Probe(True, metadata.version("executorch"), self.supported_here())

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(self._one_sample(variant), partitioner=[XnnpackPartitioner()])
            (folder / _MODEL).write_bytes(lowered.to_executorch().buffer)
        return _MODEL, {}

    def knobs(self, cores: int, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        return {"threads": thread_counts(cores)}

    def _load(self, build: Build) -> Any:
        with quiet():
            from executorch.extension.pybindings import portable_lib
        # The one pool of the process: a process measures one build.
        portable_lib._unsafe_reset_threadpool(int(build.settings.get("threads", 1)))
        try:
            whole = portable_lib.Verification.InternalConsistency
            program = portable_lib._load_program(str(build.model_path), program_verification=whole)
            return program, program.load_method("forward")
        except RuntimeError as error:
            raise BundleError(f"ExecuTorch cannot load the model ({error})", where=build.model_path) from error

    def _answer(self, handle: Any, sample: NDArray[Any]) -> NDArray[np.float32]:
        from torch.utils.dlpack import from_dlpack

        (answer,) = handle[1]((from_dlpack(sample),))
        return answer.numpy()

    def _close(self, handle: Any) -> None:
        """The program is freed with the last reference to it."""
