"""Builds against torch, layer by layer: what is right passes on both runtimes, what was tampered with is named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from quantize.export import export_student
from quantize.layers import layers_of
from quantize.numerics import ROUNDED, Built, compare_layers, first_divergence, torch_values
from quantize.numerics import LayerNumerics as Row
from quantize.variant import Variant
from targets.runtimes.onnxruntime import OnnxRuntime
from targets.runtimes.openvino import OpenVino
from tests.quantize.test_export_and_int8 import AUDIO, IMAGE, SIGNAL, make_student, raw_samples
from tests.quantizing import quantized

RUNTIMES = [OnnxRuntime, OpenVino]


def built(variant: Variant, raw: np.ndarray, folder: Path, runtime_class: type = OnnxRuntime) -> Built:
    runtime = runtime_class("cpu")
    folder.mkdir(exist_ok=True)

    def run(cut: Variant) -> np.ndarray:
        place = folder / str(len(list(folder.iterdir())))
        with runtime.load(runtime.build(cut, variant.precision, 1, place)) as runner:
            return runner.run(raw)

    return Built(f"{runtime.name}-{variant.name}", variant, variant.precision, run)


@pytest.fixture(scope="module", params=[(AUDIO, "ds_cnn"), (IMAGE, "vit"), (SIGNAL, "tcn")], ids=lambda p: p[1])
def made(request, tmp_path_factory):
    spec, network = request.param
    student, raw = make_student(spec, network), raw_samples(spec, 8)
    return student, export_student(student, tmp_path_factory.mktemp("v") / "fp32"), raw


@pytest.fixture(scope="module")
def tcn(tmp_path_factory):
    student, raw = make_student(SIGNAL, "tcn", {"width": 0.25}), raw_samples(SIGNAL, 8)
    return student, export_student(student, tmp_path_factory.mktemp("v") / "fp32"), raw


def compare(student, source, builds, raw):
    return compare_layers(student, source, builds, raw, lambda _: None)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_layer_of_a_float_build_is_torchs(made, tmp_path, runtime):
    student, source, raw = made
    build = built(source, raw, tmp_path / "b", runtime)
    found = compare(student, source, [build], raw)
    assert found.diverges == {build.name: None}
    assert len(found.layers) == len(layers_of(onnx.load(source.model), source.modules, source.float_nodes)) > 5
    assert found.held_to[build.name] == "torch"


@pytest.mark.parametrize("scheme", ["int8-static", "int8-nncf"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_layer_of_an_int8_build_is_that_of_torch_with_the_same_rounding(tcn, tmp_path, scheme, runtime):
    student, source, raw = tcn
    build = built(quantized(source, raw, tmp_path / "int8", scheme), raw, tmp_path / "b", runtime)
    found = compare(student, source, [build], raw)
    assert found.held_to[build.name] == ROUNDED
    assert found.diverges == {build.name: None}
    for row in found.layers:  # the runtime adds nothing to what rounding costs in torch
        assert row.exact_db[build.name] > row.rounding_db[build.name] - 3


def tampered(variant: Variant, folder: Path, tensor: str) -> Variant:
    """The variant with the values of one constant turned upside down."""
    shutil.copytree(variant.folder, folder)
    model = onnx.load(folder / "model.onnx")
    (held,) = [one for one in model.graph.initializer if one.name == tensor]
    held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(held)[::-1]), tensor))
    onnx.save(model, folder / "model.onnx")
    return replace(variant, folder=folder)


def weight_of(variant: Variant, node_name: str) -> str:
    model = onnx.load(variant.model)
    (node,) = [node for node in model.graph.node if node.name == node_name]
    return node.input[1]


@pytest.mark.parametrize("place", [0, 4, -1])
def test_the_first_layer_that_diverges_is_named(tcn, tmp_path, place):
    student, source, raw = tcn
    layer = layers_of(onnx.load(source.model), source.modules, source.float_nodes)[place]
    wrong = tampered(source, tmp_path / "wrong", weight_of(source, layer.nodes[0]))
    build = built(wrong, raw, tmp_path / "b")
    assert compare(student, source, [build], raw).diverges[build.name] == layer.name


def test_a_runtime_that_rounds_otherwise_is_told_from_the_rounding_itself(tcn, tmp_path):
    """The variant is sound; what runs is another one."""
    student, source, raw = tcn
    int8 = quantized(source, raw, tmp_path / "int8")
    layer = layers_of(onnx.load(source.model), source.modules, source.float_nodes)[3]
    tensor = weight_of(int8, layer.nodes[0]).removesuffix("_DequantizeLinear_Output") + "_quantized"

    def run(cut: Variant) -> np.ndarray:
        held = {one.name for one in onnx.load(cut.model).graph.initializer}
        place = cut.folder.with_name(f"{cut.folder.name}-wrong")
        wrong = tampered(cut, place, tensor) if tensor in held else cut
        try:
            return built(wrong, raw, tmp_path / "b").run(wrong)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    found = compare(student, source, [Built("odd", int8, "int8", run)], raw)
    assert found.diverges["odd"] == layer.name


def test_what_torch_cannot_round_is_held_to_fp32_and_the_reason_kept(tcn, tmp_path):
    student, source, raw = tcn
    dynamic = quantized(source, raw, tmp_path / "dynamic", "int8-dynamic")
    build = built(dynamic, raw, tmp_path / "b")
    found = compare(student, source, [build], raw)
    assert found.held_to[build.name] == "torch"
    assert "cannot be trained in int8" in found.notes["dynamic"]


def test_a_value_that_torch_has_not_is_our_own_mistake(tcn):
    student, _, raw = tcn
    with pytest.raises(RuntimeError, match=r"values \['nothing'\] of the graph are none of torch's"):
        torch_values(student, raw, ["nothing"])


def test_a_build_is_held_to_torch_rounded_where_there_is_such_a_thing():
    rows = [Row("a", "Conv", {"x": 20.0}, {"x": 50.0}), Row("b", "Conv", {"x": 30.0}, {"x": 10.0})]
    assert first_divergence(rows, "x", 25.0) == "b"
    assert first_divergence([Row("a", "Conv", {"x": 20.0}, {})], "x", 25.0) == "a"
    assert first_divergence(rows, "x", 5.0) is None


def test_a_build_may_be_twice_as_far_from_torch_rounded_as_rounding_is_from_fp32():
    assert first_divergence([Row("a", "Conv", {"x": 9.0}, {"x": 12.0}, {"x": 17.0})], "x", 25.0) is None
    assert first_divergence([Row("a", "Conv", {"x": 9.0}, {"x": 12.0}, {"x": 19.0})], "x", 25.0) == "a"
