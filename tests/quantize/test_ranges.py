"""Ranges of activations: against an independent rendering, in bounded memory, loud on broken numbers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mst_edge.core.errors import UserError
from quantize.ranges import find_ranges
from tests.conftest import ROOT
from tests.quantizing import keep


def scaled(factor: float, width: int = 4) -> onnx.ModelProto:
    """y = factor x, then a product with the identity."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "f"], ["y"], name="scale"),
            helper.make_node("MatMul", ["y", "eye"], ["z"], name="product"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", width])],
        [
            numpy_helper.from_array(np.float32(factor), "f"),
            numpy_helper.from_array(np.eye(width, dtype=np.float32), "eye"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def heavy(tmp_path):
    """Samples of a normal distribution with one value far out."""
    samples = np.random.default_rng(0).normal(0, 1, (5000, 4)).astype(np.float32)
    samples[17, 2] = 400.0
    return samples, keep(samples, tmp_path / "c")


def test_minmax_is_what_was_seen(heavy):
    samples, calibration = heavy
    found = find_ranges(scaled(-2), "x", calibration, "minmax")
    assert found["x"].low == samples.min()
    assert found["x"].high == 400
    assert (found["y"].low, found["y"].high) == (-800, -2 * samples.min())
    assert found["y"].saturated == 0


def test_percentile_cuts_what_numpy_cuts(tmp_path):
    samples = np.random.default_rng(1).normal(3, 1, (20000, 4)).astype(np.float32)
    found = find_ranges(scaled(1), "x", keep(samples, tmp_path / "c"), "percentile")["y"]
    low, high = np.quantile(samples, [0.00005, 0.99995])
    width = 2 * np.abs(samples).max() / 2048
    assert abs(found.low - low) <= 2 * width
    assert abs(found.high - high) <= 2 * width
    outside = ((samples < found.low) | (samples > found.high)).mean()
    assert abs(found.saturated - outside) < 2e-4


def error_of(samples: np.ndarray, low: float, high: float) -> float:
    """Mean squared error of 256 levels between low and high."""
    step = (high - low) / 255
    levels = np.clip(np.round((samples - low) / step), 0, 255) * step + low
    return float(np.square(samples - levels).mean())


def test_mse_takes_the_share_of_the_range_with_the_least_error(tmp_path):
    samples = np.random.default_rng(2).laplace(0, 1, (20000, 4)).astype(np.float32)
    found = find_ranges(scaled(1), "x", keep(samples, tmp_path / "c"), "mse")["y"]
    best = min(error_of(samples, s * samples.min(), s * samples.max()) for s in np.linspace(0.2, 1, 81))
    assert error_of(samples, found.low, found.high) <= 1.02 * best
    assert found.saturated > 0


def test_entropy_cuts_a_lone_outlier(tmp_path):
    samples = np.random.default_rng(3).normal(0, 1, (20000, 4)).astype(np.float32)
    samples[0, 0] = 30.0
    found = find_ranges(scaled(1), "x", keep(samples, tmp_path / "c"), "entropy")["y"]
    assert 2 < found.high < 15
    assert found.seen_high == 30


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_a_constant_tensor_has_a_range(tmp_path, method):
    found = find_ranges(scaled(0), "x", keep(np.ones((8, 4), np.float32), tmp_path / "c"), method)["y"]
    assert (found.low, found.high) == (0, 0)


def test_a_sample_that_is_not_a_number_is_named(tmp_path):
    samples = np.ones((8, 4), np.float32)
    samples[5, 1] = np.nan
    with pytest.raises(UserError, match="tensor x is not finite on a calibration sample"):
        find_ranges(scaled(1), "x", keep(samples, tmp_path / "c"), "minmax")


def test_a_graph_of_fixed_batch_is_fed_in_its_batches(tmp_path):
    model = scaled(1)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    samples = np.arange(28, dtype=np.float32).reshape(7, 4)
    assert find_ranges(model, "x", keep(samples, tmp_path / "c"), "minmax")["y"].high == 23  # six samples of seven


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path, method):
    """10 000 samples whose activations are 2.5 GB, and samples that are 1.2 GB, in far less."""
    script = f"""
import resource, sys
from pathlib import Path
import numpy as np
from quantize.calibration import save_calibration
from quantize.ranges import find_ranges
from tests.quantize.test_ranges import scaled
rng = np.random.default_rng(0)
folder = Path(sys.argv[1])
read = lambda part: rng.normal(0, 1, (part.stop - part.start, 30_000)).astype(np.float32)
model = scaled(2.0, 2)
model.graph.node[1].CopyFrom(type(model.graph.node[1])(op_type="Relu", input=["y"], output=["z"], name="relu"))
for value in (*model.graph.input, *model.graph.output):
    value.type.tensor_type.shape.dim[1].dim_value = 30_000
few = save_calibration(folder / "few", 100, read)
find_ranges(model, "x", few, {method!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
many = save_calibration(folder / "many", 10_000, read)
del model.graph.initializer[1]
found = find_ranges(model, "x", many, {method!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found["y"].seen_high)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    grown_kb, high = map(float, done.stdout.split())
    assert high > 8
    # Pages of the samples' file that are mapped count as well; the samples are 1.2 GB.
    assert grown_kb < 1_000_000
