"""The CPU of this machine."""

from __future__ import annotations

from typing import ClassVar

from targets.spec import TargetSpec
from targets.target import Target


class CpuTarget(Target):
    """x86-64 or Arm, whatever this machine has; instruction sets are detected.

    What runs with torch only, and goes into no bundle, is built where a recipe asks for it.
    """

    spec = TargetSpec("cpu", "the CPU of this machine", ("onnxruntime", "openvino"), on_host=True)
    runtime_classes: ClassVar = {
        "onnxruntime": "targets.runtimes.onnxruntime:OnnxRuntime",
        "openvino": "targets.runtimes.openvino:OpenVino",
        "executorch": "targets.runtimes.executorch:ExecuTorch",
        "aotinductor": "targets.runtimes.aotinductor:AotInductor",
    }
