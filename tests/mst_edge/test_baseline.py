"""``mst-edge check --against``: what got worse, what is noise, and what cannot be compared. No timing decides."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from mst_edge.cli.app import app
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_file
from mst_edge.core.stats import Interval
from targets import measure
from targets.runtimes.onnxruntime import OnnxRuntime
from targets.spec import Probe

SAME, SLOWER, FASTER = Interval(1.0, 0.95, 1.05), Interval(1.2, 1.1, 1.3), Interval(0.8, 0.7, 0.9)


@pytest.fixture(autouse=True)
def _timed(monkeypatch):
    monkeypatch.setattr(measure, "QUICK", measure.Protocol("quick", min_runs=12, min_seconds=0.01, max_seconds=1.0))
    says(monkeypatch, SAME)


def says(monkeypatch, ratio):
    """What the comparison of latencies finds; they are measured all the same."""
    monkeypatch.setattr(measure, "speedup", lambda *_: ratio)


def check(*arguments):
    return CliRunner().invoke(app, ["check", *(str(argument) for argument in arguments)])


def record_of(*arguments):
    done = check(*arguments, "--json")
    assert done.exit_code in (0, 1), done.output
    return done.exit_code, json.loads(done.stdout)["against"]


def by_name(record):
    return {one["what"]: one for one in record["comparisons"]}


@pytest.fixture(scope="module")
def runs(finished_run, tmp_path_factory):
    """A run with one build of ONNX Runtime in its bundle, and beside it one whose build answers with one class."""
    folder = tmp_path_factory.mktemp("baseline")
    for name in ("good", "bad"):
        shutil.copytree(finished_run, folder / name)
        change(folder / name / "bundles" / "cpu", keep_onnxruntime)
    model = onnx.load(finished_run / "variants" / "fp32" / "model.onnx")
    last = next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")
    for tensor in model.graph.initializer:
        if tensor.name in last.input[1:]:
            values = np.zeros_like(numpy_helper.to_array(tensor))
            values.reshape(-1)[0] = values.ndim == 1
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    def spoil(manifest, bundle):
        name = manifest["builds"][0]["model"]
        onnx.save(model, bundle / name)
        manifest["files"][name] = sha256_file(bundle / name)

    change(folder / "bad" / "bundles" / "cpu", spoil)
    return folder


def change(bundle, how):
    manifest = json.loads((bundle / "manifest.json").read_text())
    how(manifest, bundle)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def keep_onnxruntime(manifest, _):
    manifest["builds"] = [build for build in manifest["builds"] if build["runtime"] == "onnxruntime"]


def test_what_did_not_change_is_within_noise(runs):
    bundle = runs / "good" / "bundles" / "cpu"
    code, record = record_of(runs / "good", "--against", bundle)
    assert (code, record["regressions"]) == (0, [])
    assert record["builds"]["new"] == record["builds"]["baseline"]
    found = by_name(record)
    assert set(found) == {"accuracy", "latency.p50_ms", "latency.p90_ms"}
    assert found["accuracy"]["interval"]["estimate"] == 0
    samples = len(np.load(runs / "good" / "evaluation" / "target.npy"))
    assert f"on the same {samples} samples: drop 0.00 points" in found["accuracy"]["text"]
    assert all(one["text"].endswith("within noise") for one in found.values())


def test_a_less_accurate_build_is_a_regression_sample_by_sample(runs):
    good = runs / "good" / "bundles" / "cpu"
    code, record = record_of(runs / "bad", "--against", good)
    assert (code, record["regressions"]) == (1, ["accuracy"])
    truth = np.load(runs / "good" / "evaluation" / "target.npy")
    _, back = record_of(runs / "good", "--against", runs / "bad" / "bundles" / "cpu")
    drop = by_name(record)["accuracy"]["interval"]
    assert by_name(back)["accuracy"]["interval"]["estimate"] == pytest.approx(-drop["estimate"])
    assert by_name(back)["accuracy"]["text"].endswith("better")
    said = by_name(record)["accuracy"]["text"]
    assert said.startswith(f"accuracy {(truth == 0).mean():.2%}, was ")


@pytest.mark.parametrize(("ratio", "code", "verdict"), [(SLOWER, 1, "worse"), (FASTER, 0, "better")])
def test_a_slower_build_is_a_regression(runs, monkeypatch, ratio, code, verdict):
    says(monkeypatch, ratio)
    done = check(runs / "good", "--against", runs / "good" / "bundles" / "cpu")
    assert done.exit_code == code, done.output
    (line,) = (line for line in done.output.splitlines() if "latency.p90_ms: " in line and "was" in line)
    assert line.split()[0] == ("FAIL" if code else "ok")
    assert line.endswith(f"({ratio.low:.2f} to {ratio.high:.2f}), {verdict}")


def test_bundles_alone_are_compared_by_what_they_say_of_themselves(runs, tmp_path):
    good = runs / "good" / "bundles" / "cpu"
    old = shutil.copytree(good, tmp_path / "old")

    def better(manifest, _):
        manifest["builds"][0]["expected"]["accuracy_interval"] = {"estimate": 1.0, "low": 0.999, "high": 1.0}

    code, record = record_of(good, "--against", old)
    assert code == 0
    assert "each on its own test samples" in by_name(record)["accuracy"]["text"]
    change(old, better)
    change(good_low := shutil.copytree(good, tmp_path / "low"), lower)
    code, record = record_of(good_low, "--against", old)
    assert (code, record["regressions"]) == (1, ["accuracy"])
    change(old, lambda manifest, _: manifest["builds"][0]["expected"].pop("accuracy_interval"))
    code, record = record_of(good, "--against", old)
    assert (code, by_name(record)["accuracy"]["regression"]) == (0, None)
    assert "not compared" in by_name(record)["accuracy"]["text"]


def lower(manifest, _):
    manifest["builds"][0]["expected"]["accuracy_interval"] = {"estimate": 0.5, "low": 0.4, "high": 0.6}


def test_a_bundle_that_does_not_run_here_is_said_not_to_be_compared(runs, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "_probe", lambda _: Probe(False, reason="onnxruntime is not installed"))
    done = check(runs / "good", "--against", runs / "good" / "bundles" / "cpu")
    assert done.exit_code == 0, done.output
    assert "?     latency: not compared: new onnxruntime-" in done.output
    assert "onnxruntime is not installed" in done.output


def test_times_of_a_throttled_machine_are_not_compared(runs, monkeypatch):
    monkeypatch.setattr(measure.Measurement, "problems", ("throttled: the CPU slowed down for heat 4 times",))
    _, record = record_of(runs / "good", "--against", runs / "good" / "bundles" / "cpu")
    assert by_name(record)["latency"]["text"] == "not compared: throttled: the CPU slowed down for heat 4 times"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("labels", ["x", "y"], "its labels ('x', 'y'), not"), ("target", "other", "no target other")],
)
def test_what_does_something_else_cannot_be_compared(runs, tmp_path, key, value, says):
    old = shutil.copytree(runs / "good" / "bundles" / "cpu", tmp_path / "old")
    change(old, lambda manifest, _: manifest.update({key: value}))
    done = check(runs / "good", "--against", old)
    assert isinstance(done.exception, UserError)
    assert says in str(done.exception)
