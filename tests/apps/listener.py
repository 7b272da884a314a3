"""A bundle whose student listens at 8 kHz, with fresh weights: what it says is nonsense, but always the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.datasets.spec import Kind, ModalitySpec
from distill.mels import LogMelOptions
from distill.networks.registry import NetworkChoice
from distill.student import Student, StudentSpec
from mst_edge.core.scoring import OutputSpec
from quantize.export import export_student
from targets.pack import PackedBuild, pack
from targets.spec import Build
from targets.target import get_target

RATE_HZ = WINDOW = 8000
HOP = 1000


@dataclass(frozen=True)
class Listener:
    """The bundle's folder, and the build in it."""

    bundle: Path
    build: Build

    def evaluate(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(n, classes)`` of ``(n, samples)``, as the gate evaluates a build on test samples."""
        with get_target("cpu").load(self.build) as runner:
            return np.concatenate([runner.run(np.ascontiguousarray(sample[None])) for sample in samples])


def make_listener(folder: Path) -> Listener:
    """Packs a build of ``small_cnn``, not trained, whose logits differ by some units from class to class."""
    torch.manual_seed(0)
    modality = ModalitySpec("audio", Kind.AUDIO, (WINDOW,), "int16", RATE_HZ)
    output = OutputSpec("classification", tuple("0123456789"))
    student = Student(StudentSpec(modality, LogMelOptions(), NetworkChoice("small_cnn", {"width": 0.25}), output))
    with torch.no_grad():
        for parameter in list(student.network.parameters())[-2:]:
            parameter.mul_(20)
    variant = export_student(student, folder / "fp32")
    build = get_target("cpu").runtime("onnxruntime").build(variant, "fp32", 1, folder / "build")
    rng = np.random.default_rng(0)
    inputs = rng.normal(0, 0.1, (2, WINDOW)).astype(np.float32)
    listener = Listener(folder / "bundle", build)
    said = listener.evaluate(inputs)
    pack(
        listener.bundle,
        name="ear",
        target="cpu",
        output=output,
        input_spec=variant.input,
        reference_inputs=inputs,
        fp32_outputs=said,
        builds=[PackedBuild(build, said, 1e-3, {})],
        gate={},
        provenance={},
        licence="none",
        readme="",
        hop=HOP,
    )
    return listener
