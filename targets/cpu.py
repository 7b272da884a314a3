"""The CPU of this machine."""

from __future__ import annotations

from typing import ClassVar

from targets.spec import TargetSpec
from targets.target import Target


class CpuTarget(Target):
    """x86-64 or Arm, whatever this machine has; instruction sets are detected."""

    spec = TargetSpec("cpu", "the CPU of this machine", ("onnxruntime", "openvino"), on_host=True)
    runtime_classes: ClassVar = {
        "onnxruntime": "targets.runtimes.onnxruntime:OnnxRuntime",
        "openvino": "targets.runtimes.openvino:OpenVino",
    }
