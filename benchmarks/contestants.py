"""Runtimes as a user has them without mst-edge, as a target of its own: fp32 student in, defaults throughout.

Only the number of threads is set, for all alike. A process that measures finds the target by an entry point, as it
finds those of other packages: ``registered`` makes one for as long as it lasts.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.files import read_json, write_json
from quantize.variant import MODEL, Variant
from targets.cpu import CpuTarget
from targets.runtimes.base import Runtime
from targets.runtimes.executorch import ExecuTorch
from targets.spec import Build, Probe
from targets.target import Target

NAME = "contest"
_STUDENT = "student.json"


class _Plain(Runtime):
    """Runs the student's file as it is."""

    supports: ClassVar = {"fp32": ()}

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        shutil.copyfile(variant.model, folder / MODEL)
        return MODEL, {}

    def _close(self, handle: Any) -> None:
        """Freed with the last reference."""


class TorchEager(_Plain):
    """The student as it was trained, in inference mode."""

    name = "torch"

    def _probe(self) -> Probe:
        import torch

        return Probe(True, torch.__version__, ("fp32",))

    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        # A variant lies in RUN/variants/NAME.
        write_json(folder / _STUDENT, {"folder": str(variant.folder.resolve().parent.parent / "distill")})
        return _STUDENT, {}

    def _load(self, build: Build) -> Any:
        import torch

        from distill.student import load_student

        torch.set_num_threads(int(build.options["threads"]))
        return load_student(Path(read_json(build.model_path)["folder"])).eval()

    def _run(self, handle: Any, batch: NDArray[Any]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return handle(torch.from_numpy(batch)).numpy()


class TorchCompile(TorchEager):
    """The same through ``torch.compile``."""

    name = "torch.compile"

    def _load(self, build: Build) -> Any:
        import torch

        return torch.compile(super()._load(build))


class DefaultOnnxRuntime(_Plain):
    """``InferenceSession(model)``."""

    name = "onnxruntime-default"

    def _probe(self) -> Probe:
        import onnxruntime

        return Probe(True, onnxruntime.__version__, ("fp32",))

    def _load(self, build: Build) -> Any:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(build.options["threads"])
        session = onnxruntime.InferenceSession(str(build.model_path), settings, providers=["CPUExecutionProvider"])
        return session, session.get_inputs()[0].name

    def _run(self, handle: Any, batch: NDArray[Any]) -> NDArray[np.float32]:
        session, name = handle
        return session.run(None, {name: batch})[0]


class DefaultOpenVino(_Plain):
    """``compile_model(model, "CPU")``: the precision is what OpenVINO chooses, bf16 where the CPU has it."""

    name = "openvino-default"

    def _probe(self) -> Probe:
        import openvino

        return Probe(True, openvino.__version__, ("fp32",))

    def _load(self, build: Build) -> Any:
        import openvino

        threads = {"INFERENCE_NUM_THREADS": int(build.options["threads"])}
        return openvino.compile_model(str(build.model_path), "CPU", threads)

    def _run(self, handle: Any, batch: NDArray[Any]) -> NDArray[np.float32]:
        return handle(batch)[0]


class Contest(Target):
    """The CPU of this machine, by what a user has already."""

    _classes: ClassVar = (TorchEager, TorchCompile, DefaultOnnxRuntime, DefaultOpenVino)
    spec = replace(CpuTarget.spec, name=NAME, runtimes=(*(cls.name for cls in _classes), ExecuTorch.name))
    runtime_classes: ClassVar = {
        **{cls.name: f"benchmarks.contestants:{cls.__name__}" for cls in _classes},
        ExecuTorch.name: "targets.runtimes.executorch:ExecuTorch",
    }


@contextmanager
def registered() -> Iterator[Target]:
    """Makes the target known by its name here and in processes started meanwhile."""
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as folder:
        about = Path(folder) / "contest-0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: contest\nVersion: 0\n", encoding="utf-8")
        point = f"[mst_edge.targets]\n{NAME} = benchmarks.contestants:Contest\n"
        (about / "entry_points.txt").write_text(point, encoding="utf-8")
        before = os.environ.get("PYTHONPATH")
        root = Path(__file__).resolve().parent.parent
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, str(root), *([before] if before else [])])
        sys.path.insert(0, folder)
        try:
            yield Contest()
        finally:
            sys.path.remove(folder)
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
