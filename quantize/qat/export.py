"""A trained twin back into the graph that it was read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from distill.student import InUnits, Student, student_outputs
from quantize.parity import MOST_MEAN_STEPS, Parity, run_onnx, steps_between
from quantize.qat.twin import Twin
from quantize.variant import OUTPUTS

_BATCH = 4


def parity(student: Student, wanted: NDArray[Any], said: NDArray[Any]) -> Parity:
    """Compares outputs of a build with those of the fake-quantized ``student``, both ``(samples, ...)``.

    Where the logits are in float, a step is that of 256 levels over ``wanted``.
    """
    step, answer = _twin(student).output_step, student.answer
    scale = answer.scale.numpy() if isinstance(answer, InUnits) else 1.0
    return steps_between(wanted, said, None if step is None else step * scale)


@torch.no_grad()
def write_int8(student: Student, raw: NDArray[Any], file: Path) -> Parity:
    """Puts the weights and ranges that a fake-quantized student learned into the file that it was made from.

    Nothing else changes in it, and what ONNX Runtime then computes of ``raw`` is what torch computes. Torch's outputs
    are kept beside the file.

    Args:
        raw: ``(samples, ...)`` real samples as the graph takes them.
        file: what ``fake_quantized`` read.

    Raises:
        RuntimeError: the file does not compute what was trained.
    """
    twin = _twin(student.to("cpu").eval())
    model = onnx.load(file)
    learned = _initializers(twin)
    for tensor in model.graph.initializer:
        if tensor.name in learned:
            stored = numpy_helper.to_array(tensor)
            said = learned[tensor.name].reshape(stored.shape).astype(stored.dtype)
            tensor.CopyFrom(numpy_helper.from_array(said, tensor.name))
    onnx.checker.check_model(model)
    onnx.save(model, file)
    wanted = np.concatenate(list(student_outputs(student, raw, _BATCH)))
    np.save(file.with_name(OUTPUTS), wanted, allow_pickle=False)
    found = parity(student, wanted, run_onnx(file, raw))
    if found.mean_steps > MOST_MEAN_STEPS:
        raise RuntimeError(f"the int8 file is {found.mean_steps:.1f} steps from what was trained, on average")
    return found


def _twin(student: Student) -> Twin:
    assert isinstance(student.network, Twin)
    return student.network


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
