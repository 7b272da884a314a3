"""Schemes of libraries that quantize in torch: the file holds int8, and runtimes compute with it what torch does."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import NoOptions, TokenizerOptions, make_frontend
from distill.networks.registry import NetworkChoice
from distill.student import Student, StudentSpec
from mst_edge.core.errors import UserError
from mst_edge.core.scoring import OutputSpec
from quantize.export import export_student
from quantize.layers import layers_of
from quantize.numerics import torch_values
from quantize.parity import steps_between
from quantize.schemes.base import UnfitError
from quantize.variant import load_variant
from tests.quantize.test_export_and_int8 import AUDIO, FACTS, SIGNAL, answers, make_student, raw_samples
from tests.quantize.trained import onnxruntime_outputs, openvino_outputs
from tests.quantizing import quantized
from tests.texts import make_texts

PT2E, TUNED, SIGNED = "int8-pt2e", "int8-neural-compressor", "int8-xnnpack"
PHOTO = ModalitySpec("photo", Kind.IMAGE, (16, 16, 3), "uint8")
CASES = [
    (PT2E, AUDIO, "ds_cnn", 0.85),
    (PT2E, PHOTO, "vit", 0.5),
    (TUNED, FACTS, "mlp", 0.4),
    (SIGNED, FACTS, "mlp", 0.4),
]
MOST_STEPS = 2.0  # on average, of the output's 256: sums in another order round other numbers up


def _made(student, scheme, folder, raw, **more):
    fp32 = export_student(student, folder / "fp32")
    return fp32, quantized(fp32, raw, folder / scheme, scheme, student=student, raw=raw, **more)


def _weights(graph):
    """Element types of the weights of every convolution and product, by node: int8 where they are dequantized."""
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {
        n.output[0]: types[n.input[0]] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in types
    }
    types |= {n.output[0]: types[n.input[0]] for n in graph.node if n.op_type == "Transpose" and n.input[0] in types}
    heads = [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in types]
    return {n.name: types[n.input[1]] for n in heads}


@pytest.mark.parametrize(("scheme", "spec", "network", "size"), CASES, ids=lambda p: p if isinstance(p, str) else "")
def test_runtimes_compute_with_the_file_what_torch_does(tmp_path, scheme, spec, network, size):
    options = {"depth": 1} if network == "vit" else {}
    student, raw = make_student(spec, network, options), raw_samples(spec, 32)
    fp32, int8 = _made(student, scheme, tmp_path, raw)
    assert (int8.precision, int8.scheme, load_variant(int8.folder)) == ("int8", scheme, int8)
    kept, exact = np.load(int8.torch_outputs), answers(student, raw)
    assert 0 < np.abs(kept - exact).mean() < 0.05 * exact.std()
    for run in (onnxruntime_outputs, openvino_outputs):
        assert steps_between(kept, run(int8, raw)).mean_steps < MOST_STEPS
        assert np.abs(run(int8, raw[:3]) - run(int8, raw)[:3]).max() < 0.02 * exact.std()
    graph = onnx.load(int8.model).graph
    weights = _weights(graph)
    heads = set(weights) - set(int8.float_nodes)
    assert heads
    assert all(weights[name] == onnx.TensorProto.INT8 for name in heads)
    assert {weights[name] for name in set(weights) & set(int8.float_nodes)} <= {onnx.TensorProto.FLOAT}
    assert {int8.modules[name] for name in heads} <= {name for name, _ in student.named_modules()}
    assert int8.model.stat().st_size < size * fp32.model.stat().st_size
    if scheme == TUNED:  # it kept the best of its trials
        best = 10 * np.log10((exact**2).mean() / ((kept - exact) ** 2).mean())
        assert len(int8.facts["sqnr_db"][:4]) == 4
        assert best == pytest.approx(max(int8.facts["sqnr_db"]), abs=0.1)


@pytest.mark.parametrize("scheme", [PT2E, TUNED, SIGNED])
def test_an_excluded_layer_stays_in_float(tmp_path, scheme):
    student, raw = make_student(FACTS, "mlp"), raw_samples(FACTS, 16)
    *_, last = [name for name, module in student.named_modules() if isinstance(module, torch.nn.Linear)]
    _, int8 = _made(student, scheme, tmp_path, raw, exclude=(last,))
    types = _weights(onnx.load(int8.model).graph)
    in_float = {int8.modules[name] for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}
    assert in_float == {last}
    assert len(types) > 1


def test_layers_are_those_of_the_exact_graph(tmp_path):
    """By name and by what they end with, though batch norms are folded: builds can be compared with torch."""
    student, raw = make_student(SIGNAL, "tcn"), raw_samples(SIGNAL, 16)
    fp32, int8 = _made(student, PT2E, tmp_path, raw)
    exact, made = (layers_of(onnx.load(v.model), v.modules, v.float_nodes) for v in (fp32, int8))
    assert [layer.name for layer in made] == [layer.name for layer in exact]
    values = torch_values(student, raw, [layer.output for layer in exact])
    model = onnx.load(int8.model)
    model.graph.output.extend(onnx.ValueInfoProto(name=layer.output) for layer in exact[:-1])
    names = [layer.output for layer in exact]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, said in zip(names, session.run(names, {fp32.input.name: raw}), strict=True):
        assert np.abs(said - values[name]).mean() < 0.05 * values[name].std(), name


def test_a_student_of_numbers_keeps_its_units_in_float(tmp_path):
    output = OutputSpec("regression", ("t", "v"), ("K", "m/s"), scale=(0.1, 5000.0))
    torch.manual_seed(0)
    student = Student(StudentSpec(FACTS, NoOptions(), NetworkChoice("mlp"), output)).eval()
    student.answer.scale.copy_(torch.tensor([0.1, 5000.0]))
    student.answer.shift.copy_(torch.tensor([300.0, 0.0]))
    raw = raw_samples(FACTS, 32)
    _, int8 = _made(student, PT2E, tmp_path, raw)
    error = np.abs(onnxruntime_outputs(int8, raw) - answers(student, raw)).max(axis=0)
    assert error[0] < 0.02
    assert error[1] < 1000
    assert int8.answer_nodes


def test_a_student_of_text_keeps_its_masks(tmp_path):
    spec, options = ModalitySpec("text", Kind.TEXT, (), "<U60"), TokenizerOptions(max_tokens=24)
    frontend, texts = make_frontend(spec, options), np.array(["", *make_texts(60)[0]])
    frontend.fit([texts])
    torch.manual_seed(0)
    choice, output = NetworkChoice("text_transformer"), OutputSpec("classification", tuple("abc"))
    student = Student(StudentSpec(spec, options, choice, output, tokenizer=frontend.tokenizer)).eval()
    ids = student.frontend.host(texts)
    _, int8 = _made(student, PT2E, tmp_path, ids)
    exact = answers(student, ids)
    assert np.abs(onnxruntime_outputs(int8, ids) - exact).mean() < 0.1 * exact.std()


def test_what_it_cannot_do_it_says(tmp_path):
    student, raw = make_student(FACTS, "mlp"), raw_samples(FACTS, 8)
    fp32 = export_student(student, tmp_path / "fp32")
    with pytest.raises(UserError, match=r"quantize.schemes: int8-pt2e quantizes the torch student, and there is only"):
        quantized(fp32, raw, tmp_path / "a", PT2E)
    with pytest.raises(UserError, match="unknown layer 'network.nothing'"):
        quantized(fp32, raw, tmp_path / "b", PT2E, student=student, exclude=("network.nothing",))
    with pytest.raises(UnfitError, match="int8-pt2e found no layer that it quantizes"):
        quantized(fp32, raw, tmp_path / "c", PT2E, student=student, exclude=("network",))
    assert not [path for path in tmp_path.iterdir() if path.name in "abc"]
