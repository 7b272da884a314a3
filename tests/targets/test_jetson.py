"""What a Jetson's bundle takes of a model, and what it changes in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from mst_edge.stages.mixed import check_search, measurable
from quantize.api import make_variants, prepare_model
from targets.board import BoardTarget
from targets.spec import Build
from targets.target import Skipped, get_target, target_names
from targets.tensorrt_file import float_biases, unfit
from tests.conftest import write_small_recipe
from tests.quantize.foreign_models import classifier, pictures, save

BOARDS = ["jetson-agx-orin", "jetson-orin-nano", "jetson-orin-nx", "jetson-thor"]
SCHEMES = ["fp16", "int8-static", "int8-symmetric"]


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """By scheme; fp32 too."""
    folder = tmp_path_factory.mktemp("v")
    model = classifier(bias=np.linspace(-1, 1, 6, dtype=np.float32))
    model.graph.node[0].input.append("bias")
    save(model, folder / "net.onnx")
    (folder / "samples").mkdir()
    np.save(folder / "samples" / "inputs.npy", pictures(40))
    made = prepare_model(folder / "net.onnx", folder / "out", calibration=folder / "samples")
    variants, skipped = make_variants(made.material(), SCHEMES, folder / "out" / "variants")
    assert not skipped
    return {variant.scheme: variant for variant in (made.source, *variants)}


def test_four_boards_are_known_and_none_is_this_machine():
    for name in BOARDS:
        target = get_target(name)
        assert isinstance(target, BoardTarget)
        assert target.probe() == {}
        with pytest.raises(UserError, match=f"{name}: is Jetson .*, not this machine; `mst-edge deploy"):
            target.require_host()
    assert set(BOARDS) < set(target_names())
    get_target("cpu").require_host()


def test_tensorrt_gets_what_it_takes_and_a_reason_for_the_rest(variants, tmp_path):
    weights = replace(variants["fp32"], name="w8", precision="w8")
    made = list(get_target("jetson-orin-nx").prepare([*variants.values(), weights], tmp_path))
    builds = {build.id: build for build in made if isinstance(build, Build)}
    skipped = {entry.id: entry.reason for entry in made if isinstance(entry, Skipped)}
    assert list(builds) == ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8-symmetric"]
    assert "zero point 0" in skipped["tensorrt-int8"]
    assert "has no w8" in skipped["tensorrt-w8"]
    for build in builds.values():
        assert build.options == {"opset": 18, "free_axes": True}
        assert build.target == "jetson-orin-nx"
        assert build.model_files() == [build.model_path]


def test_the_int8_graph_is_signed_and_has_zero_points_of_zero_alone(variants, tmp_path):
    (build,) = get_target("jetson-thor").prepare([variants["int8-symmetric"]], tmp_path)
    model = onnx.load(build.model_path)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    linear = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(linear) >= 6
    for node in linear:
        assert held[node.input[2]].dtype == np.int8
        assert not held[node.input[2]].any()


def test_biases_in_float_say_the_same(variants):
    model = onnx.load(variants["int8-symmetric"].model)
    before = _outputs(model)
    assert float_biases(model) >= 1
    assert not any(tensor.data_type == onnx.TensorProto.INT32 for tensor in model.graph.initializer)
    onnx.checker.check_model(model)
    # Unoptimized: ONNX Runtime's int8 kernels round a step more.
    assert np.allclose(_outputs(model), before, atol=1e-5)
    assert float_biases(model) == 0


def test_operators_of_onnx_runtime_are_refused(variants):
    assert unfit(onnx.load(variants["fp32"].model)) == ""
    assert "zero point 0" in unfit(onnx.load(variants["int8-static"].model))
    own = classifier()
    own.graph.node[0].domain = "com.microsoft"
    assert unfit(own) == "holds com.microsoft.Conv, which is ONNX Runtime's own"
    dynamic = classifier()
    dynamic.graph.node[1].op_type = "DynamicQuantizeLinear"
    assert unfit(dynamic) == "holds DynamicQuantizeLinear, which TensorRT does not take"


def _outputs(model):
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": pictures(8)})[0]


def test_a_search_needs_a_target_that_is_this_machine(tmp_path):
    write_small_recipe(tmp_path / "r.yaml", tmp_path, quantize={"schemes": ["int8-mixed"]})
    with pytest.raises(UserError, match="int8-mixed measures on a target, and none of jetson-thor is this machine"):
        check_search(load_recipe(tmp_path / "r.yaml", targets=["jetson-thor"]))
    both = load_recipe(tmp_path / "r.yaml", targets=["jetson-thor", "cpu"])
    check_search(both)
    assert measurable(both.targets) == ("cpu",)
