"""Students that learn with int8's rounding: what learns, what is written, what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from distill.networks.registry import NetworkChoice
from distill.student import InUnits, Student, StudentSpec
from distill.training.checkpoint import copy_state
from mst_edge.core.errors import UserError
from mst_edge.core.scoring import OutputSpec
from quantize.export import export_student
from quantize.qat import export
from quantize.qat.export import parity, write_int8
from quantize.qat.graph import Grid, Step
from quantize.qat.operators import OPERATORS
from quantize.qat.twin import Range, fake_quantized
from quantize.schemes.base import SCHEMES, Material
from quantize.variant import Variant
from tests.quantize.test_export_and_int8 import IMAGE, SIGNAL, make_student, raw_samples
from tests.quantize.trained import (
    MOST_STEPS,
    answers,
    initializers,
    learn_something,
    onnxruntime_outputs,
    twin_of,
)
from tests.quantizing import keep, quantized


@pytest.fixture(scope="module")
def tcn(tmp_path_factory):
    """A student, its fp32 and int8 variants, and samples."""
    folder = tmp_path_factory.mktemp("tcn")
    student, raw = make_student(SIGNAL, "tcn", {"width": 0.25}), raw_samples(SIGNAL, 16)
    exact = export_student(student, folder / "fp32")
    return student, exact, quantized(exact, raw, folder / "int8"), raw


def written(rounded: Student, int8: Variant, raw: np.ndarray, folder: Path) -> Variant:
    """The int8 variant with what a fake-quantized student learned."""
    shutil.copytree(int8.folder, folder)
    write_int8(rounded, raw, folder / "model.onnx")
    return dataclasses.replace(int8, folder=folder)


def test_before_it_learns_a_fake_quantized_student_writes_the_file_that_it_came_from(tcn, tmp_path):
    student, exact, int8, raw = tcn
    same = written(fake_quantized(student, exact, int8.model), int8, raw, tmp_path / "same")
    wanted = initializers(int8)
    for name, kept in initializers(same).items():
        np.testing.assert_allclose(kept, wanted[name], rtol=1e-6, err_msg=name)
        assert kept.dtype == wanted[name].dtype


def test_the_file_holds_the_ranges_and_weights_that_were_learned(tcn, tmp_path):
    student, exact, int8, raw = tcn
    rounded = fake_quantized(student, exact, int8.model)
    learn_something(rounded, raw, steps=5)
    twin, before = twin_of(rounded), initializers(int8)
    found = initializers(written(rounded, int8, raw, tmp_path / "v"))
    moved = 0
    for name in twin.range_names:
        learned = twin.range(name).scale.detach().numpy()
        np.testing.assert_array_equal(found[name].reshape(-1), learned)
        moved += not np.allclose(learned, before[name].reshape(-1), rtol=1e-4)
    assert moved == len(twin.range_names)
    for name, constant in twin.constants.items():
        if constant.scale:
            value = twin.exact_weight(name).detach().numpy()
            step = found[constant.scale].reshape(-1, *[1] * (value.ndim - 1))
            # torch multiplies by 1 / step: a tie may go the other way.
            off = np.abs(found[constant.initializer] - np.clip(np.round(value / step), -127, 127))
            assert off.max() <= 1
            assert off.mean() < 1e-3


def test_every_weight_and_every_range_gets_a_gradient_and_what_is_no_parameter_does_not(tmp_path):
    student, raw = make_student(IMAGE, "vit", {"depth": 1, "width": 0.25}), raw_samples(IMAGE, 8)
    for parameter in student.network.parameters():  # those that are alike are one constant of the file
        parameter.data += 0.01 * torch.randn_like(parameter)
    exact = export_student(student, tmp_path / "fp32")
    rounded = fake_quantized(student, exact, quantized(exact, raw, tmp_path / "int8").model)
    twin = twin_of(rounded)
    before = copy_state(twin)
    learn_something(rounded, raw, steps=1)
    after = copy_state(twin)
    learned = {name for name, parameter in twin.named_parameters() if parameter.requires_grad}
    assert {name for name in before if not torch.equal(before[name], after[name])} == learned
    assert not any("positions" in name for name in learned if "_weights" in name)
    assert sum(before[name].numel() for name in learned if "_weights" in name) >= sum(
        p.numel() for p in student.network.parameters()
    )


def test_seven_bit_weights_stay_within_seven_bits(tcn, tmp_path, monkeypatch):
    student, exact, _, raw = tcn
    monkeypatch.setattr("quantize.assignment.needs_reduced_range", lambda: True)
    int8 = SCHEMES.get("int8-static")().make(Material(exact, keep(raw, tmp_path / "c")), tmp_path / "int8")
    rounded = fake_quantized(student, exact, int8.model)
    learn_something(rounded, raw, steps=10, lr=3e-2)
    found = initializers(written(rounded, int8, raw, tmp_path / "v"))
    assert max(int(np.abs(w.astype(int)).max()) for w in found.values() if w.dtype == np.int8) == 64


def test_rounding_and_its_gradients_are_those_of_the_paper():
    """LSQ, arXiv 1902.08153, equations 1 to 3, for a step s = calibrated * exp(10 stretch) and a zero point."""
    rng = np.random.default_rng(0)
    x, upstream = rng.normal(0, 2, 500), rng.normal(size=500)
    step, zero, low, high = 0.02, 100, 0, 255
    grid = Grid(torch.tensor([step]), torch.tensor([zero]), low, high, None)
    learned = Range(grid, learns=True)
    values = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    rounded = learned(values)
    rounded.backward(torch.tensor(upstream, dtype=torch.float32))
    level = np.round(x / step) + zero
    inside = (level >= low) & (level <= high)
    np.testing.assert_allclose(rounded.detach(), (np.clip(level, low, high) - zero) * step, atol=1e-6)
    np.testing.assert_allclose(values.grad, upstream * inside, atol=1e-6)
    by_step = np.where(inside, np.round(x / step) - x / step, np.where(level < low, low - zero, high - zero))
    # exp(10 x) has the derivative 10 at 0.
    assert learned.stretch.grad.item() == pytest.approx(10 * step * (upstream * by_step).sum(), rel=1e-3)
    np.testing.assert_array_equal(learned.levels(values).detach(), np.clip(level, low, high))


def test_a_student_that_answers_in_units_is_compared_in_steps_of_these(tmp_path):
    torch.manual_seed(0)
    output = OutputSpec("regression", ("t", "v"), ("K", "m/s"), scale=(0.1, 5000.0))
    base = make_student(SIGNAL, "tcn", {"width": 0.25})
    student = Student(StudentSpec(SIGNAL, base.spec.frontend, NetworkChoice("tcn", {"width": 0.25}), output)).eval()
    student.frontend.load_state_dict(base.frontend.state_dict())
    assert isinstance(student.answer, InUnits)
    student.answer.load_state_dict({"scale": torch.tensor([0.1, 5000.0]), "shift": torch.tensor([300.0, 0.0])})
    raw = raw_samples(SIGNAL, 16)
    exact = export_student(student, tmp_path / "fp32")
    int8 = quantized(exact, raw, tmp_path / "int8")
    rounded = fake_quantized(student, exact, int8.model)
    learn_something(rounded, raw)
    made = written(rounded, int8, raw, tmp_path / "v")
    wanted = answers(rounded, raw)
    assert parity(rounded, wanted, onnxruntime_outputs(made, raw)).max_steps <= MOST_STEPS
    step = twin_of(rounded).output_step
    off_by_three = wanted + np.array([[0.1, 5000.0]], np.float32) * step * 3
    assert parity(rounded, wanted, off_by_three).mean_steps == pytest.approx(3, rel=0.05)
    np.testing.assert_array_equal(np.load(made.torch_outputs), wanted)


def test_a_file_that_does_not_compute_what_was_trained_is_refused(tcn, tmp_path, monkeypatch):
    student, exact, int8, raw = tcn
    rounded = fake_quantized(student, exact, int8.model)
    right = export._initializers

    def wrong(twin):
        numbers = right(twin)
        name = next(name for name in numbers if name.endswith("head.weight_scale"))
        return {**numbers, name: numbers[name] * 2}

    monkeypatch.setattr(export, "_initializers", wrong)
    file = Path(shutil.copy(int8.model, tmp_path / "model.onnx"))
    with pytest.raises(RuntimeError, match="steps from what was trained"):
        write_int8(rounded, raw, file)


class Accumulates(nn.Module):
    """Has an operator without a gradient here."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.head = nn.Linear(input_shape[0], num_outputs)

    def forward(self, x):
        return self.head(x.cumsum(dim=2)[:, :, -1])


def test_a_layer_that_cannot_be_trained_is_named(tmp_path):
    student, raw = make_student(SIGNAL, f"{__name__}:Accumulates"), raw_samples(SIGNAL, 4)
    exact = export_student(student, tmp_path / "fp32")
    int8 = quantized(exact, raw, tmp_path / "int8")
    says = r"layer node_\w+ cannot be trained in int8: there is no gradient for CumSum; take int8-static"
    with pytest.raises(UserError, match=says):
        fake_quantized(student, exact, int8.model)


def test_layers_left_in_float_learn_too(tcn, tmp_path):
    student, exact, _, raw = tcn
    int8 = quantized(exact, raw, tmp_path / "int8", exclude=("network.head", "network.stem"))
    rounded = fake_quantized(student, exact, int8.model)
    assert twin_of(rounded).output_step is None
    learn_something(rounded, raw)
    found = initializers(written(rounded, int8, raw, tmp_path / "v"))
    assert found["network.head.weight"].dtype == np.float32
    assert not np.array_equal(found["network.head.weight"], initializers(exact)["network.head.weight"])


def test_a_graph_alone_cannot_be_trained(tcn, tmp_path):
    _, exact, _, raw = tcn
    with pytest.raises(UserError, match=r"int8-qat trains the student, which takes a run with its data; name the"):
        quantized(exact, raw, tmp_path / "int8", "int8-qat")


OPERATIONS = [
    ("Conv", {"strides": [2, 1], "pads": [0, 1, 2, 1], "group": 2}, [(2, 4, 7, 6), (6, 2, 3, 3), (6,)]),
    ("Conv", {"dilations": [2], "pads": [1, 0]}, [(2, 4, 9), (3, 4, 3)]),
    ("Conv", {}, [(2, 2, 4, 5, 6), (3, 2, 3, 3, 3)]),
    ("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 0, 0, 1]}, [(2, 3, 6, 5)]),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [(2, 3, 6, 6)]),
    ("GlobalAveragePool", {}, [(2, 3, 4, 5)]),
    ("Gemm", {"transA": 1, "alpha": 0.5, "beta": 2.0}, [(4, 3), (4, 5), (5,)]),
    ("Gemm", {"transB": 1}, [(3, 4), (5, 4)]),
    ("BatchNormalization", {"epsilon": 1e-3}, [(2, 3, 4), (3,), (3,), (3,), "positive"]),
    ("LayerNormalization", {"axis": -1}, [(2, 3, 4), (4,), (4,)]),
    ("ReduceMean", {"keepdims": 0}, [(2, 3, 4), [1, 2]]),
    ("ReduceSum", {}, [(2, 3, 4), [-1]]),
    ("ReduceMean", {}, [(2, 3, 4)]),
    ("ReduceL2", {"keepdims": 1}, [(2, 3, 4), [2]]),
    ("Reshape", {}, [(2, 3, 4), [0, -1]]),
    ("Flatten", {"axis": 2}, [(2, 3, 4, 5)]),
    ("Transpose", {"perm": [2, 0, 1]}, [(2, 3, 4)]),
    ("Gather", {"axis": 1}, [(2, 5, 4), [[0, -1], [2, 2]]]),
    ("Slice", {}, [(2, 5, 6), [1, -3], [4, 99], [1, 2]]),
    ("Slice", {}, [(2, 9, 6), [0, 1], [99, 6], [1, 2], [3, 2]]),
    ("Pad", {}, [(2, 3, 4), [0, 1, 0, 0, 0, 2]]),
    ("Unsqueeze", {}, [(2, 3), [-1, 0]]),
    ("Squeeze", {}, [(2, 1, 3, 1), [1, -1]]),
    ("Concat", {"axis": 1}, [(2, 3), (2, 4)]),
    ("Clip", {}, [(2, 30), -0.5, 0.7]),
    ("Max", {}, [(2, 3), (2, 3)]),
    ("Sub", {}, [(2, 3), (3,)]),
    ("Div", {}, [(2, 3), (2, 3)]),
    ("MatMul", {}, [(2, 3, 4), (4, 5)]),
    ("Softmax", {"axis": 1}, [(2, 3, 4)]),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, [(2, 30)]),
    ("HardSwish", {}, [(2, 30)]),
    ("Sigmoid", {}, [(2, 3)]),
    ("Tanh", {}, [(2, 3)]),
    ("Relu", {}, [(2, 3)]),
    ("Gelu", {"approximate": "tanh"}, [(2, 3)]),
    ("Gelu", {}, [(2, 3)]),
    ("Identity", {}, [(2, 3)]),
    ("Cast", {"to": TensorProto.INT32}, [(2, 3)]),
    (
        "Resize",
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        [(2, 3, 4, 5), None, [1.0, 1.0, 2.0, 3.0]],
    ),
]


@pytest.mark.parametrize(("operator", "attributes", "shapes"), OPERATIONS, ids=lambda said: str(said)[:40])
def test_operators_compute_what_onnx_says(operator, attributes, shapes):
    rng = np.random.default_rng(0)
    inputs = []
    for said in shapes:
        if isinstance(said, tuple):
            inputs.append(rng.normal(size=said).astype(np.float32))
        elif said == "positive":
            inputs.append(rng.uniform(0.5, 2, inputs[-1].shape).astype(np.float32))
        elif said is None:
            inputs.append(None)
        else:
            array = np.array(said)
            inputs.append(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
    names = ["" if array is None else f"i{k}" for k, array in enumerate(inputs)]
    node = helper.make_node(operator, names, ["out"], **attributes)
    given = {name: array for name, array in zip(names, inputs, strict=True) if name}
    reference = onnx.reference.ReferenceEvaluator(
        helper.make_model(
            helper.make_graph(
                [node],
                "one",
                [
                    helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                    for name, array in given.items()
                ],
                [helper.make_empty_tensor_value_info("out")],
            ),
            opset_imports=[helper.make_opsetid("", 20)],
        )
    )
    (wanted,) = reference.run(None, given)
    tensors = [None if array is None else torch.from_numpy(array) for array in inputs]
    np.testing.assert_allclose(OPERATORS[operator](attributes, *tensors), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("operator", "attributes", "inputs"),
    [
        ("AveragePool", {"kernel_shape": [2], "pads": [0, 1]}, [torch.zeros(1, 2, 4)]),
        ("Pad", {"mode": "reflect"}, [torch.zeros(2, 4), torch.zeros(4)]),
        ("Resize", {"mode": "linear"}, [torch.zeros(1, 1, 2, 2), None, torch.ones(4)]),
    ],
)
def test_varieties_that_are_not_known_are_refused_by_the_layers_name(operator, attributes, inputs):
    step = Step("node_7", (), "out", operator=operator, attributes=attributes)
    with pytest.raises(UserError, match=f"layer node_7 cannot be trained in int8: {operator} with "):
        step.compute(inputs)
