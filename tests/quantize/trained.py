"""What tests of int8 students that learn share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import torch

from distill.student import Student, student_outputs
from quantize.qat.export import export_int8, parity
from quantize.qat.twin import Twin, fake_quantized
from quantize.variant import Variant
from tests.quantizing import quantized

# Of what torch computes, in steps of the output's 256 levels. Sums in another order round other numbers up.
MOST_MEAN_STEPS, MOST_STEPS = 1.0, 4.0


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


def require_what_was_trained(
    student: Student, exact: Variant, raw: np.ndarray, folder: Path, *, openvino_too: bool = True
) -> None:
    """Trains in int8, exports, and holds runtimes to what torch says; the graph is that of post-training int8."""
    int8 = quantized(exact, raw, folder / "int8")
    rounded = fake_quantized(student, exact, int8)
    learn_something(rounded, raw)
    trained = export_int8(rounded, int8, raw, folder / "int8-qat", "int8-qat", {})
    wanted = np.concatenate(list(student_outputs(rounded, raw)))
    before = np.concatenate(list(student_outputs(fake_quantized(student, exact, int8), raw)))
    assert parity(rounded, wanted, before).max_steps > MOST_STEPS
    for run in (onnxruntime_outputs, *([openvino_outputs] if openvino_too else [])):
        found = parity(rounded, wanted, run(trained, raw))
        assert found.mean_steps <= MOST_MEAN_STEPS, (run.__name__, found)
        assert found.max_steps <= MOST_STEPS, (run.__name__, found)
    nodes = [[node.SerializeToString() for node in onnx.load(v.model).graph.node] for v in (int8, trained)]
    assert nodes[0] == nodes[1]
