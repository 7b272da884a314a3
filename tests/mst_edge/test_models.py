"""``quantize``, ``deploy`` and ``profile``: of ONNX files with samples, and of a finished run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from apps.runtime import Bundle
from mst_edge.cli.app import app
from mst_edge.core.errors import UserError
from mst_edge.recipe import MixedSection
from mst_edge.stages import profile
from quantize.variant import load_variant
from targets import measure
from tests.conftest import ROOT, mst_edge
from tests.quantize.foreign_models import classifier, pictures, save, tensor

SHORT = measure.Protocol("quick", min_runs=10, min_seconds=0.01, max_seconds=0.5)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """No timing decides a test."""
    monkeypatch.setattr(measure, "QUICK", SHORT)
    monkeypatch.setitem(profile.PROTOCOLS, "quick", SHORT)


def call(*arguments: object):
    """The command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def deploy(model, out, *more: object):
    """``mst-edge deploy`` of a file for this machine's CPU."""
    return call("deploy", model, "--target", "cpu", "--out", out, *more)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, samples, and what an answer of its own to them is."""
    folder = tmp_path_factory.mktemp("models")
    save(classifier(), folder / "net.onnx")
    save(classifier(height="height"), folder / "free.onnx")
    samples = pictures(80)
    for name in ("plain", "labelled"):
        (folder / name).mkdir()
        np.save(folder / name / "inputs.npy", samples)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "net.onnx"), providers=["CPUExecutionProvider"])
    labels = session.run(None, {"x": samples})[0].argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % 5  # one answer in ten is wrong
    np.save(folder / "labelled" / "target.npy", labels)
    return folder


def test_with_labels_accuracy_decides(place, tmp_path):
    done = deploy(
        place / "net.onnx", tmp_path / "out", "--calibration", place / "labelled", "--scheme", "fp16", "--json"
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    (target,) = result["targets"]
    numbers = json.loads((tmp_path / "out" / "variants" / "calibration" / "calibration.json").read_text())["numbers"]
    judged = np.setdiff1d(np.arange(80), numbers)
    expected = np.mean(judged % 10 != 0)
    assert target["fp32_accuracy"] == pytest.approx(expected)
    row = next(row for row in target["builds"] if row["id"] == "onnxruntime-fp32")
    assert row["accuracy"]["value"] == pytest.approx(expected)
    assert row["accuracy"]["samples"] == row["drift"]["samples"] == len(judged) == 40
    assert row["drift"]["agreement"] == 1.0
    assert target["goals"]["accuracy"]["max_relative_drop_percent"] == 1.0
    assert result["model"]["real"] is result["real"] is target["real"] is True
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    checked = mst_edge("check", tmp_path / "out" / "bundles" / "cpu")
    assert checked.code == 0
    assert "accuracy.max_relative_drop_percent" in checked.out


def test_without_labels_drift_decides_and_the_bundle_answers(place, tmp_path):
    done = deploy(place / "free.onnx", tmp_path / "o", "--calibration", place / "plain")
    assert done.exit_code == 0, done.output
    assert "free.onnx: 40 samples calibrate, 40 others judge" in done.stdout
    assert "JS mean (max)" in done.stdout
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    (target,) = result["targets"]
    assert target["fp32_accuracy"] is None
    assert all(row["accuracy"] is None for row in target["builds"])
    assert {row["variant"] for row in target["builds"]} == {"fp32", "int8", "int8-nncf"}
    int8 = next(row for row in target["builds"] if row["id"] == "onnxruntime-int8")
    assert 0 < int8["drift"]["js_mean"] <= int8["drift"]["js_max"] < 0.2
    chosen = next(row for row in target["builds"] if row["verdict"]["chosen"])
    assert "drift.min_agreement" in {check["goal"] for check in chosen["verdict"]["checks"]}
    with Bundle.open(tmp_path / "o" / "bundles" / "cpu") as bundle:
        assert bundle.self_test() <= bundle.build.tolerance
        assert bundle.manifest.input.shape == (3, None, 8)
        for height in (8, 13):  # the free axis is free on the device
            assert sum(bundle.predict(pictures(1, height)[0]).probabilities.values()) == pytest.approx(1)
        assert bundle.drift().agreement == 1.0
    assert call("report", tmp_path / "o").exit_code != 0


@pytest.mark.parametrize("samples", ["labelled", "plain"])
def test_mixed_precision_is_searched_for_with_the_samples_that_calibrate(place, tmp_path, monkeypatch, samples):
    monkeypatch.setattr("mst_edge.stages.foreign.MixedSection", lambda: MixedSection(trials=2, minutes=1))
    done = deploy(place / "net.onnx", tmp_path / "o", "--calibration", place / samples, "--scheme", "int8-mixed")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "o" / "variants" / "search" / "cpu" / "search.json").read_text())
    assert record["ended"].startswith("the trials are spent")
    # With labels, a tenth of which is wrong, the float model's own accuracy is where losses start; without them, 1.
    numbers = json.loads((tmp_path / "o" / "variants" / "calibration" / "calibration.json").read_text())["numbers"]
    exact = np.mean(np.array(numbers) % 10 != 0) if samples == "labelled" else 1.0
    for build in (build for trial in record["trials"] for build in trial["builds"]):
        assert build["value"] + build["loss"] == pytest.approx(exact)
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert {row["variant"] for row in result["targets"][0]["builds"]} == {"fp32", "mixed-cpu"}


def test_int8_says_which_layers_it_harms_and_they_can_be_left_out(place, tmp_path):
    done = call("quantize", place / "net.onnx", "--calibration", place / "plain", "--out", tmp_path / "a", "--json")
    found = json.loads(done.stdout)["sensitivity"]
    assert (tmp_path / "a" / "variants" / "sensitivity.md").is_file()
    worst = found["layers"][0]["name"]
    arguments = ["quantize", place / "net.onnx", "--calibration", place / "plain", "--scheme", "int8-static"]
    assert call(*arguments, "--exclude", worst, "--out", tmp_path / "b").exit_code == 0
    assert load_variant(tmp_path / "b" / "variants" / "int8").facts["exclude"] == [worst]
    refused = mst_edge(*arguments, "--exclude", "nothing", "--out", tmp_path / "c")
    assert refused.code == 2
    assert f"unknown layer 'nothing'; Known: {min(row['name'] for row in found['layers'])}" in refused.err
    assert not (tmp_path / "c").exists()


def test_random_samples_are_marked_everywhere_and_never_pass(place, tmp_path):
    done = deploy(place / "net.onnx", tmp_path / "o", "--allow-random", "--scheme", "int8-static")
    assert done.exit_code == 1
    assert "random samples: not for accuracy, nothing is judged" in done.stdout
    assert "gate not judged" in done.stdout
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert (result["gate"], result["real"], result["targets"][0]["real"]) == ("not judged", False, False)
    assert load_variant(tmp_path / "o" / "variants" / "int8").facts["real"] is False
    manifest = json.loads((tmp_path / "o" / "bundles" / "cpu" / "manifest.json").read_text())
    assert (manifest["gate"]["verdict"], manifest["gate"]["real"]) == ("not judged", False)
    assert mst_edge("check", tmp_path / "o").code == 1
    assert mst_edge("check", tmp_path / "o" / "bundles" / "cpu").code == 1


def test_a_runtime_that_does_not_take_a_strangers_model_is_skipped_with_the_reason(place, tmp_path, monkeypatch):
    def no(*_):
        raise RuntimeError("cannot convert Exotic")

    monkeypatch.setenv("MST_EDGE_CACHE", str(tmp_path / "cache"))  # no builds of other tests
    monkeypatch.setattr("targets.runtimes.openvino.OpenVino._build", no)
    done = deploy(place / "net.onnx", tmp_path / "o", "--calibration", place / "plain", "--scheme", "fp16")
    assert done.exit_code == 0, done.output
    assert "openvino-fp32: not built, the runtime does not run it: cannot convert Exotic" in done.stdout
    monkeypatch.setenv("MST_EDGE_CACHE", str(tmp_path / "another cache"))
    monkeypatch.setattr("targets.runtimes.onnxruntime.OnnxRuntime._build", no)
    done = deploy(place / "net.onnx", tmp_path / "p", "--calibration", place / "plain", "--scheme", "fp16")
    assert isinstance(done.exception, UserError)
    assert "has no build for cpu (onnxruntime-fp32: " in str(done.exception)


def test_profile_times_a_file_and_a_bundle(place, finished_run):
    done = call("profile", place / "free.onnx", "--target", "cpu", "--shape", "x=1,3,9,8", "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["inputs"] == "random"
    assert {"onnxruntime-fp32", "openvino-fp32"} <= {row["id"] for row in record["builds"]}
    assert all(row["measurement"]["latency"]["p50_ms"] > 0 for row in record["builds"])
    done = call("profile", finished_run / "bundles" / "cpu.zip", "--target", "cpu")
    assert done.exit_code == 0, done.output
    assert "the bundle's reference inputs" in done.stdout


def test_profile_by_the_rules_of_mlperf_says_whether_it_is_valid(place, monkeypatch):
    brief = replace(measure.MLPERF, min_runs=120, min_seconds=0.02, max_seconds=3.0, offline_samples=10**9)
    monkeypatch.setitem(profile.PROTOCOLS, "mlperf", brief)
    done = call("profile", place / "net.onnx", "--target", "cpu", "--protocol", "mlperf")
    assert done.exit_code == 0, done.output
    said = flat(done.stdout)
    assert re.search(r"onnxruntime-fp32: SingleStream p90 \d+\.\d+ ms \(\d+ queries in [^)]*\): valid", said)
    assert re.search(
        r"onnxruntime-fp32: Offline \d+ samples/s in batches of \d+: invalid, \d+ samples, at least 10", said
    )


def flat(text):
    """As one line: a narrow terminal breaks it anywhere."""
    return " ".join(text.split())


def test_profile_of_a_bundle_needs_no_torch_and_no_onnx(finished_run):
    code = (
        "import sys; sys.modules.update(torch=None, onnx=None)\n"
        "from targets import measure; from mst_edge.stages import profile\n"
        "profile.PROTOCOLS['quick'] = measure.Protocol('quick', 5, 0.01, 0.1)\n"
        "from mst_edge.cli.app import main; main()"
    )
    command = [sys.executable, "-c", code, "profile", str(finished_run / "bundles" / "cpu"), "--target", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_wrong_is_one_line_and_leaves_nothing(place, tmp_path):
    net, plain = place / "net.onnx", place / "plain"
    for arguments, says in (
        (["quantize", net], "needs samples to calibrate and judge with; give a folder"),
        (["quantize", tmp_path / "none.onnx"], "none.onnx: no such file"),
        (["quantize", net, "--calibration", plain, "--scheme", "int8"], "unknown scheme 'int8'; did you mean"),
        (["quantize", net, "--calibration", plain, "--scheme", "int8-qat"], "int8-qat takes a run, not an"),
        (["quantize", net, "--calibration", plain, "--scheme", "int8-mixed"], "int8-mixed measures on a target; take"),
        (["quantize", net, "--calibration", plain, "--shape", "x=a,3"], "--shape: expected NAME=1,3,224,224"),
        (["quantize", plain], "neither a run with variants nor an ONNX file"),
        (["deploy", net, "--target", "cpuu", "--calibration", plain], "unknown target 'cpuu'"),
        (["profile", place / "free.onnx", "--target", "cpu"], "--shape: input 'x' takes (3, ?, 8)"),
        (["profile", net, "--target", "cpu", "--protocol", "fast"], "unknown protocol 'fast'"),
    ):
        done = call(*arguments, *(["--out", tmp_path / "out"] if arguments[0] != "profile" else []))
        assert isinstance(done.exception, UserError), arguments
        assert says in str(done.exception)
        assert not (tmp_path / "out").exists(), arguments


def test_the_command_answers_with_one_line_and_exit_code_2(tmp_path):
    node_free = classifier()
    node_free.graph.input.append(tensor("z", ["n", 3]))
    done = mst_edge("quantize", save(node_free, tmp_path / "two.onnx"), "--allow-random", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert "two.onnx: has 2 inputs (x, z), expected one; export it with one input" in line


@pytest.fixture
def run(finished_run, tmp_path):
    """A finished run of its own."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_gets_further_variants_and_builds(run):
    done = call("quantize", run, "--scheme", "fp16", "--json")
    assert done.exit_code == 0, done.output
    assert [row["name"] for row in json.loads(done.stdout)["variants"]] == ["fp16"]
    before = json.loads((run / "result.json").read_text())
    done = call("deploy", run, "--target", "cpu")
    assert done.exit_code == 0, done.output
    result = json.loads((run / "result.json").read_text())
    assert len(result["targets"]) == 1
    ids = {row["id"] for row in result["targets"][0]["builds"]}
    assert ids == {row["id"] for row in before["targets"][0]["builds"]} | {"onnxruntime-fp16", "openvino-fp16"}
    assert result["distill"] == before["distill"]
    assert "onnxruntime-fp16" in (run / "report.html").read_text()


def test_a_run_is_calibrated_with_other_samples_into_another_folder(run, tmp_path):
    samples = tmp_path / "samples"
    samples.mkdir()
    np.save(samples / "inputs.npy", np.random.default_rng(0).normal(size=(20, 40, 3)).astype(np.float32))
    options = ["--scheme", "int8-static", "--calibration", samples]
    assert "a run keeps the samples" in str(call("quantize", run, *options).exception)
    done = call("quantize", run, *options, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    other, own = (load_variant(folder / "variants" / "int8") for folder in (tmp_path / "out", run))
    assert other.facts["calibration_samples"] == 10
    assert other.facts["ranges"] != own.facts["ranges"]
    np.save(samples / "inputs.npy", np.zeros((20, 40, 2), np.float32))
    done = call("quantize", run, *options, "--out", tmp_path / "other")
    assert "holds samples of (40, 2) float32, expected (40, 3) float32 for input 'signal'" in str(done.exception)
    assert not (tmp_path / "other").exists()
    done = call("deploy", run, "--target", "cpu", "--allow-random")
    assert "--allow-random: is for ONNX files" in str(done.exception)
