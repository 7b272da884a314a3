"""Every scheme: what it makes runs, is close, leaves the front end and excluded layers alone, or says why it cannot."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from distill.datasets.spec import Kind, ModalitySpec
from mst_edge.core.errors import UserError
from quantize.export import export_student
from quantize.layers import layers_of, nodes_of
from quantize.schemes.base import SCHEMES, Material, UnfitError, require_schemes
from quantize.variant import load_variant
from tests.quantize.test_export_and_int8 import AUDIO, make_student, raw_samples
from tests.quantizing import keep, quantized, schemes_from_a_graph

PHOTO = ModalitySpec("photo", Kind.IMAGE, (32, 32, 3), "uint8")
FACTS = ModalitySpec("facts", Kind.VECTOR, (12,), "float32")
# Median error as a share of the outputs' spread: 11 bits, 8 bits, 8 and 4 bits of weights.
CLOSE = {"fp32": 1e-5, "fp16": 0.01, "int8": 0.15, "w8": 0.02, "w4": 0.3}


# An MLP's products are Gemm, which no kernel runs with weights alone in integers.
UNFIT = {"facts": ("int8-weights", "int4-weights"), "audio": ("int8-weights", "int4-weights")}
STUDENTS = [(PHOTO, "vit"), (FACTS, "mlp"), (AUDIO, "small_cnn")]


@pytest.fixture(scope="module", params=STUDENTS, ids=lambda p: p[1])
def source(request, tmp_path_factory):
    spec, network = request.param
    return export_student(make_student(spec, network), tmp_path_factory.mktemp("v") / "fp32")


@pytest.fixture(scope="module")
def conv(tmp_path_factory):
    return export_student(make_student(PHOTO, "small_cnn"), tmp_path_factory.mktemp("v") / "fp32")


def samples_of(variant, count, seed=0):
    specs = {spec.name: spec for spec, _ in STUDENTS}
    return raw_samples(specs[variant.input.name], count, seed)


def run(variant, raw):
    session = onnxruntime.InferenceSession(str(variant.model), providers=["CPUExecutionProvider"])
    return session.run(None, {variant.input.name: raw})[0]


@pytest.mark.parametrize("name", schemes_from_a_graph())
def test_what_a_scheme_makes_runs_and_is_close_or_it_says_why_not(source, tmp_path, name):
    raw = samples_of(source, 64)
    if name in UNFIT.get(source.input.name, ()):
        with pytest.raises(UnfitError, match="the model has none"):
            quantized(source, raw, tmp_path / name, name)
        assert not (tmp_path / name).exists()
        return
    made = quantized(source, raw, tmp_path / name, name)
    exact, coarse = run(source, raw), run(made, raw)
    # The loudest samples may lie beyond the range: not every scheme takes all that was seen.
    assert np.median(np.abs(coarse - exact)) < CLOSE[made.precision] * exact.std()
    assert load_variant(made.folder) == made
    assert (made.scheme, made.backend) == (name, SCHEMES.get(name).backend)
    assert made.model.stat().st_size < source.model.stat().st_size


def test_convolutions_alone_are_nothing_for_schemes_of_weights(conv, tmp_path):
    for name in ("int8-weights", "int4-weights"):
        with pytest.raises(UnfitError, match=rf"{name} quantizes matrix products"):
            quantized(conv, raw_samples(PHOTO, 8), tmp_path / name, name)


@pytest.mark.parametrize("name", ["int8-static", "int8-nncf", "int8-symmetric"])
def test_an_excluded_layer_stays_in_float(conv, tmp_path, name):
    model = onnx.load(conv.model)
    layers = layers_of(model, conv.modules, conv.float_nodes)
    second = layers[1]
    made = quantized(conv, raw_samples(PHOTO, 32), tmp_path / name, name, exclude=(second.name,))
    graph = onnx.load(made.model).graph
    producers = {out: node for node in graph.node for out in node.output}
    constants = {tensor.name for tensor in graph.initializer}

    def weight_is_float(layer):
        node = next(n for n in graph.node if n.name == layer.nodes[0])
        weight = node.input[1]
        return weight in constants and producers.get(weight) is None

    assert weight_is_float(second)
    assert not weight_is_float(layers[0])
    assert made.facts["exclude"] == [second.name]


def test_symmetric_int8_has_zero_point_0_everywhere(conv, tmp_path):
    made = quantized(conv, raw_samples(PHOTO, 32), tmp_path / "s", "int8-symmetric")
    graph = onnx.load(made.model).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    points = [constants[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)


def test_layers_are_called_what_they_are_called_in_torch(conv):
    student = make_student(PHOTO, "small_cnn")
    paths = {name for name, _ in student.named_modules()}
    layers = layers_of(onnx.load(conv.model), conv.modules, conv.float_nodes)
    assert len(layers) >= 3
    assert {layer.name for layer in layers} <= paths
    nodes = [node for layer in layers for node in layer.nodes]
    assert len(nodes) == len(set(nodes))
    assert not set(nodes) & set(conv.float_nodes)


def test_a_name_stands_for_all_layers_below_it(conv):
    layers = layers_of(onnx.load(conv.model), conv.modules, conv.float_nodes)
    assert set(nodes_of(layers, ["network"], "x")) == {node for layer in layers for node in layer.nodes}
    with pytest.raises(UserError, match=r"quantize.exclude: unknown layer 'network.nothing'; .*Known: network\."):
        nodes_of(layers, ["network.nothing"], "quantize.exclude")


def test_a_graph_alone_cannot_be_measured(conv, tmp_path):
    with pytest.raises(UserError, match="int8-mixed measures on a target, which takes a run"):
        quantized(conv, raw_samples(PHOTO, 8), tmp_path / "mixed", "int8-mixed")
    assert not (tmp_path / "mixed").exists()


def test_random_samples_leave_their_mark(conv, tmp_path):
    calibration = keep(raw_samples(PHOTO, 8), tmp_path / "c", real=False)
    made = SCHEMES.get("int8-static")().make(Material(conv, calibration), tmp_path / "int8")
    assert made.facts["real"] is False


def test_an_unknown_scheme_is_refused_before_anything_is_made():
    with pytest.raises(UserError, match=r"quantize.schemes: unknown scheme 'int4'; .*int4-weights"):
        require_schemes(["int4"])
