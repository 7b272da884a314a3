"""A trained twin back into the graph that it was read from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from distill.student import InUnits, Student, student_outputs
from mst_edge.core.files import atomic_path
from quantize.qat.twin import Twin
from quantize.variant import MODEL, OUTPUTS, Variant

_BATCH = 4

MOST_MEAN_STEPS = 1.0


@dataclass(frozen=True)
class Parity:
    """How far a build is from the torch student that it was made from, over all outputs of some samples.

    Attributes:
        mean_steps, max_steps: of differences, in steps of the output's 256 levels.
    """

    mean_steps: float
    max_steps: float


def parity(student: Student, wanted: NDArray[Any], said: NDArray[Any]) -> Parity:
    """Compares outputs of a build with those of the fake-quantized ``student``, both ``(samples, ...)``."""
    step = _twin(student).output_step * (student.answer.scale.numpy() if isinstance(student.answer, InUnits) else 1.0)
    steps = np.abs(said - wanted) / step
    return Parity(float(steps.mean()), float(steps.max()))


@torch.no_grad()
def export_int8(
    student: Student, int8: Variant, raw: NDArray[Any], folder: Path, scheme: str, facts: dict[str, Any]
) -> Variant:
    """Writes the graph of ``int8`` with the weights and ranges that a fake-quantized student learned.

    Nothing else changes in it, and what ONNX Runtime computes with it is what torch computes. Torch's outputs lie
    beside it: of ``raw``, in its order.

    Args:
        student: what ``fake_quantized`` made of ``int8``.
        raw: ``(samples, ...)`` real samples as the graph takes them.
        facts: how it was trained.

    Raises:
        RuntimeError: the file does not compute what was trained.
    """
    twin = _twin(student.to("cpu").eval())
    model = onnx.load(int8.model)
    learned = _initializers(twin)
    for tensor in model.graph.initializer:
        if tensor.name in learned:
            stored = numpy_helper.to_array(tensor)
            said = learned[tensor.name].reshape(stored.shape).astype(stored.dtype)
            tensor.CopyFrom(numpy_helper.from_array(said, tensor.name))
    onnx.checker.check_model(model)
    wanted = np.concatenate(list(student_outputs(student, raw, _BATCH)))
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        onnx.save(model, temporary / MODEL)
        np.save(temporary / OUTPUTS, wanted, allow_pickle=False)
        found = parity(student, wanted, _run(temporary / MODEL, int8.input.name, raw))
        if found.mean_steps > MOST_MEAN_STEPS:
            raise RuntimeError(f"the int8 file is {found.mean_steps:.1f} steps from what was trained, on average")
    made = {key: value for key, value in int8.facts.items() if key != "ranges"}  # those of calibration, not learned
    told = {**made, **facts, "parity": asdict(found)}
    variant = replace(int8, name=folder.name, scheme=scheme, backend="torch", folder=folder, facts=told)
    variant.save()
    return variant


def _twin(student: Student) -> Twin:
    assert isinstance(student.network, Twin)
    return student.network


def _run(model: Path, name: str, samples: NDArray[Any]) -> NDArray[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    batches = (samples[start : start + _BATCH] for start in range(0, len(samples), _BATCH))
    return np.concatenate([session.run(None, {name: np.array(batch)})[0] for batch in batches])


def _initializers(twin: Twin) -> dict[str, NDArray[Any]]:
    """Numbers by the name under which the file keeps them, as float32 or float64."""
    numbers: dict[str, NDArray[Any]] = {name: twin.range(name).scale.numpy() for name in twin.range_names}
    for name, constant in twin.constants.items():
        exact = twin.exact_weight(name)
        if constant.scale:
            numbers[constant.initializer] = twin.range(constant.scale).levels(exact).numpy()
        elif constant.bias_scale:
            step = twin.bias_step(constant)
            numbers[constant.bias_scale] = step.numpy()
            numbers[constant.initializer] = (exact / step).round().numpy()
        else:
            numbers[constant.initializer] = exact.numpy()
    return numbers
