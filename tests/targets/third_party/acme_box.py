"""A target as somebody else's package brings it: one file, hardware of its own kind with a runtime of its own."""

from __future__ import annotations

import shutil
from typing import ClassVar

import onnxruntime

from apps.runtime import BundleError
from targets.runtimes.base import Runtime
from targets.spec import Probe, TargetSpec
from targets.target import Target


class AcmeRuntime(Runtime):
    """Runs the ONNX file without optimizing it."""

    name = "acme"
    supports: ClassVar = {"fp32": (), "fp16": (), "int8": ()}

    def _probe(self):
        return Probe(True, onnxruntime.__version__, self.supported_here())

    def _build(self, variant, precision, folder):
        shutil.copyfile(variant.model, folder / "model.onnx")
        return "model.onnx", {"optimize": False}

    def _load(self, build):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = build.options["threads"]
        settings.log_severity_level = 3
        if not build.options["optimize"]:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return onnxruntime.InferenceSession(str(build.model_path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"cannot be loaded ({error})", where=build.model_path) from error

    def _run(self, session, batch):
        return session.run(None, {session.get_inputs()[0].name: batch})[0]

    def _close(self, session):
        pass


class AcmeBox(Target):
    """What the entry point names."""

    spec = TargetSpec("acme-box", "a box by Acme", ("acme",), on_host=True)
    runtime_classes: ClassVar = {"acme": "acme_box:AcmeRuntime"}
