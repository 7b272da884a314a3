"""What tests of int8 students that learn share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import torch
from onnx import numpy_helper

from distill.student import Student, student_outputs
from quantize.qat.export import parity
from quantize.qat.twin import Twin
from quantize.variant import Variant
from tests.quantizing import quantized

# Of what torch computes, in steps of the output's 256 levels. Sums in another order round other numbers up.
MOST_MEAN_STEPS, MOST_STEPS = 1.0, 4.0


def initializers(variant: Variant) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(variant.model).graph.initializer}


def twin_of(student: Student) -> Twin:
    assert isinstance(student.network, Twin)
    return student.network


def learn_something(student: Student, raw: np.ndarray, steps: int = 3, lr: float = 3e-3) -> None:
    """A few steps toward answers that are not the student's: every weight and range moves."""
    twin = twin_of(student)
    with torch.no_grad():
        features = student.frontend(torch.from_numpy(np.array(raw)))
        wanted = twin(features).flip(0)
    optimizer = torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr)
    for _ in range(steps):
        loss = (twin(features) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def onnxruntime_outputs(variant: Variant, raw: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(variant.model), providers=["CPUExecutionProvider"])
    return session.run(None, {variant.input.name: raw})[0]


def openvino_outputs(variant: Variant, raw: np.ndarray) -> np.ndarray:
    model = openvino.compile_model(str(variant.model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model({variant.input.name: raw})[0]


def require_what_was_trained(student: Student, exact: Variant, raw: np.ndarray, folder: Path) -> None:
    """Trains in int8, exports, and holds both runtimes to what torch says; the graph is that of post-training int8."""
    int8 = quantized(exact, raw, folder / "int8")
    before, learned = [], []

    def teach(scheme: str, rounded: Student) -> dict[str, str]:
        before.append(answers(rounded, raw))
        learn_something(rounded, raw)
        learned.append(rounded)
        return {"scheme": scheme}

    trained = quantized(exact, raw, folder / "int8-qat", "int8-qat", student=student, teach=teach, raw=raw)
    (rounded,), wanted = learned, answers(learned[0], raw)
    assert parity(rounded, wanted, before[0]).max_steps > MOST_STEPS
    for run in (onnxruntime_outputs, openvino_outputs):
        found = parity(rounded, wanted, run(trained, raw))
        assert found.mean_steps <= MOST_MEAN_STEPS, run
        assert found.max_steps <= MOST_STEPS, run
    nodes = [[node.SerializeToString() for node in onnx.load(v.model).graph.node] for v in (int8, trained)]
    assert nodes[0] == nodes[1]
    assert trained.facts["scheme"] == trained.scheme == "int8-qat"


def answers(student: Student, raw: np.ndarray) -> np.ndarray:
    """What the torch student says."""
    return np.concatenate(list(student_outputs(student, raw)))
