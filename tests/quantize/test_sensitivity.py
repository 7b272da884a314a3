"""Sensitivity of layers: the one to blame comes first, decibels are those of the definition, the list can be used."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize.assignment import Assignable
from quantize.layers import layers_of
from quantize.schemes.base import Material
from quantize.sensitivity import ENOUGH_DB, enough, find_sensitivity, sqnr_db, used_share
from quantize.variant import Variant
from targets.runtimes.onnxruntime import OnnxRuntime
from tests.quantize.chains import blamed_chain, chain, matrices, samples
from tests.quantizing import keep, quantized


@pytest.fixture(params=[0, 2])
def blamed(request, tmp_path):
    source = blamed_chain(request.param, tmp_path / "fp32")
    return source, keep(samples(256), tmp_path / "calibration"), f"network.layer{request.param}"


def run(variant: Variant, raw: np.ndarray) -> np.ndarray:
    """What our build of it for ONNX Runtime answers."""
    runtime = OnnxRuntime("cpu")
    build = runtime.build(variant, variant.precision, 1, variant.folder.with_name(f"{variant.name}-build"))
    with runtime.load(build) as runner:
        return runner.run(raw)


def noise_db(exact: np.ndarray, coarse: np.ndarray) -> float:
    """The definition, in another way: variances in place of sums."""
    return 10 * np.log10(exact.var(axis=0).sum() / np.square(coarse - exact).mean(axis=0).sum())


def test_the_layer_to_blame_is_named_first_and_alone(blamed):
    source, calibration, guilty = blamed
    found = find_sensitivity(Assignable.of(Material(source, calibration)), "x", samples(64, seed=2))
    assert found.layers[0].name == guilty
    assert found.exclude == (guilty,)
    assert found.all_db < ENOUGH_DB - 5
    assert found.layers[0].without_db > ENOUGH_DB
    # Every other layer alone does little.
    assert all(row.alone_db > ENOUGH_DB + 5 for row in found.layers[1:])
    assert [row.alone_db for row in found.layers] == sorted(row.alone_db for row in found.layers)


def test_the_list_goes_into_the_recipe_and_does_what_the_report_says(blamed, tmp_path):
    source, calibration, _ = blamed
    raw = samples(64, seed=2)
    found = find_sensitivity(Assignable.of(Material(source, calibration)), "x", raw)
    kept = np.array(calibration.inputs)
    exact, plain = run(source, raw), run(quantized(source, kept, tmp_path / "a"), raw)
    helped = run(quantized(source, kept, tmp_path / "b", exclude=found.exclude), raw)
    assert noise_db(exact, plain) == pytest.approx(found.all_db, abs=0.5)
    assert noise_db(exact, helped) == pytest.approx(found.layers[0].without_db, abs=0.5)


def test_a_network_that_int8_suits_excludes_nothing(tmp_path):
    source = chain(matrices(3), tmp_path / "fp32")
    assignable = Assignable.of(Material(source, keep(samples(256), tmp_path / "c")))
    found = find_sensitivity(assignable, "x", samples(64, seed=2))
    assert found.exclude == ()
    assert found.samples == 64
    assert found.layers[-1].without_db > 100  # all layers in float


def test_saturation_is_seen_on_samples_beyond_the_calibrated_range(tmp_path):
    source = chain(matrices(2), tmp_path / "fp32")
    assignable = Assignable.of(Material(source, keep(samples(256), tmp_path / "c")))
    raw = 3 * samples(64, seed=2)
    found = find_sensitivity(assignable, "x", raw)
    last = next(row for row in found.layers if row.name == "network.layer1")
    said = run(source, raw)
    assert last.saturated == pytest.approx(((said < last.low) | (said > last.high)).mean())
    assert last.saturated > 0.05


def test_an_outlier_shows_as_a_range_of_which_little_is_used():
    values = np.random.default_rng(0).uniform(0, 1, 100_000)
    assert used_share(values, 0, 1) == pytest.approx(0.999, abs=0.001)
    assert used_share(np.append(values, 50.0), 0, 50) == pytest.approx(0.02, abs=0.001)


def test_decibels_do_not_count_what_all_samples_share():
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(0, 1, (1000, 5)), rng.normal(0, 0.1, (1000, 5))
    assert sqnr_db(signal, signal + noise) == pytest.approx(20, abs=0.3)
    assert sqnr_db(signal + 300, signal + 300 + noise) == pytest.approx(20, abs=0.3)
    assert sqnr_db(signal, signal) == 120


@pytest.mark.parametrize(
    ("curve", "count"),
    [([25, 26, 40], 0), ([5, 19, 21, 22, 30], 2), ([5, 6, 15, 16, 17, 30], 2), ([3, 19], 1), ([5], 0)],
)
def test_as_few_layers_as_are_enough(curve, count):
    """The last but one: no more than half of the layers; the largest single gain."""
    assert enough(curve) == count


def test_an_embedding_is_a_layer_and_what_comes_before_belongs_to_the_first():
    graph = helper.make_graph(
        [
            helper.make_node("Abs", ["ids"], ["positive"], name="abs"),
            helper.make_node("Gather", ["table", "positive"], ["vectors"], name="gather"),
            helper.make_node("Relu", ["vectors"], ["rectified"], name="relu"),
            helper.make_node("MatMul", ["rectified", "w"], ["logits"], name="product"),
        ],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 2])],
        [
            numpy_helper.from_array(np.zeros((9, 4), np.float32), "table"),
            numpy_helper.from_array(np.zeros((4, 2), np.float32), "w"),
        ],
    )
    first, second = layers_of(helper.make_model(graph), {"gather": "network.embedding"})
    assert (first.name, first.op, first.nodes) == ("network.embedding", "Gather", ("gather", "relu", "abs"))
    assert first.output == "rectified"
    assert second.nodes == ("product",)
