"""The whole line through the command line: what it leaves, how it resumes, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from apps.runtime import Bundle
from distill.methods.base import Method
from distill.training.checkpoint import load_tensors
from mst_edge.core.files import read_json
from tests.conftest import ROOT, mst_edge, mst_edge_here, write_arrays, write_small_recipe

# Where it does not matter how many builds a run makes.
FEW = ("--set", "measure.runtimes=[onnxruntime]", "--set", "quantize.schemes=[int8-static]")


def _result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_a_run_leaves_what_the_contract_says(finished_run):
    for name in (
        "recipe.yaml",
        "distill/student.safetensors",
        "result.json",
        "report.html",
        "bundles/cpu/manifest.json",
    ):
        assert (finished_run / name).is_file(), name
    assert (finished_run / "variants" / "fp32" / "model.onnx").is_file()
    assert (finished_run / "variants" / "int8" / "variant.json").is_file()
    assert (finished_run / "builds" / "cpu" / "onnxruntime-fp32" / "build.json").is_file()
    assert list((finished_run / "tensorboard").iterdir())
    leftovers = [path for path in finished_run.rglob("*") if path.name.endswith((".tmp", ".old", ".part"))]
    assert leftovers == []


def test_the_result_compares_methods_and_builds_on_the_same_samples(finished_run):
    result = _result(finished_run)
    assert [(row["method"], row["role"]) for row in result["distill"]["models"]] == [
        ("lone", "teacher"),
        ("lone", "student"),
        ("kd", "student"),
        ("mst", "student"),
    ]
    (target,) = result["targets"]
    ids = {row["id"] for row in target["builds"]}
    assert {"onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-int8"} <= ids
    fp32 = next(row for row in target["builds"] if row["id"] == "onnxruntime-fp32")
    student = next(row for row in result["distill"]["models"] if row["method"] == "mst")
    assert fp32["accuracy"]["value"] == pytest.approx(student["test"]["accuracy"])
    assert target["fp32_accuracy"] == pytest.approx(student["test"]["accuracy"])
    assert fp32["accuracy"]["samples"] == result["data"]["samples"]["test"] == 48
    assert np.sum(target["confusion"]) == 48


def test_every_result_says_where_it_comes_from(finished_run):
    record = _result(finished_run)["provenance"]
    assert {"torch", "onnxruntime", "openvino", "numpy"} <= set(record["tools"])
    assert record["machine"]["cpu"]
    assert len(record["recipe_sha256"]) == len(record["data_sha256"]) == 64
    assert record["seed"] == 0


def test_the_router_is_reported_per_teacher(finished_run):
    teachers = _result(finished_run)["distill"]["insights"]["mst"]["teachers"]
    assert [row["name"] for row in teachers][:2] == ["multimodal:fused", "multimodal:hidden"]
    for epoch in zip(*(row["use"] for row in teachers), strict=True):
        assert sum(epoch) == pytest.approx(1, abs=1e-5)


def test_every_layer_is_in_the_sensitivity_report(finished_run):
    found = read_json(finished_run / "variants" / "sensitivity.json")
    said = (finished_run / "variants" / "sensitivity.md").read_text(encoding="utf-8")
    assert found["layers"]
    assert all(f"| {row['name']} | {row['op']} | {row['alone_db']:.1f} dB |" in said for row in found["layers"])
    assert (finished_run / "variants" / "sensitivity.svg").read_text(encoding="utf-8").startswith("<svg")
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert "What int8 does to each layer" in page
    # Judged on samples that trained nothing and calibrated nothing.
    kept = [
        set(read_json(finished_run / "variants" / f / "calibration.json")["ids"]) for f in ("calibration", "tuning")
    ]
    assert not kept[0] & kept[1]


def test_builds_are_compared_with_torch_layer_by_layer_when_asked_for(finished_run):
    done = mst_edge("report", finished_run, "--layers", "openvino-int8", "--layers", "onnxruntime-fp32")
    assert done.code == 0, done.err
    said = (finished_run / "numerics.md").read_text(encoding="utf-8")
    assert "- openvino-int8: every layer computes what torch with the same rounding does." in said
    assert "- onnxruntime-fp32: every layer computes what torch does." in said
    assert "Builds and torch, layer by layer" in (finished_run / "report.html").read_text(encoding="utf-8")
    refused = mst_edge("report", finished_run, "--layers", "openvino-int9")
    assert refused.code == 2
    assert "--layers: unknown build 'openvino-int9'; did you mean 'openvino-int8'?" in refused.err


def test_the_bundle_predicts_what_the_student_predicted(finished_run):
    inputs = np.load(finished_run / "evaluation" / "inputs.npy")
    expected = np.load(finished_run / "evaluation" / "student_logits.npy").argmax(axis=1)
    with Bundle.open(finished_run / "bundles" / "cpu") as bundle:
        said = [bundle.predict(sample).label for sample in inputs]
    chosen = next(row for row in _result(finished_run)["targets"][0]["builds"] if row["verdict"]["chosen"])
    agreement = np.mean([int(label) == wanted for label, wanted in zip(said, expected, strict=True)])
    assert agreement == pytest.approx(chosen["drift"]["agreement"])


def test_a_finished_run_is_not_begun_again_but_can_be_shown(finished_run):
    recipe = finished_run.parent / "small.yaml"
    before = (finished_run / "distill" / "student.safetensors").stat().st_mtime_ns
    done = mst_edge("run", recipe, "--out", finished_run)
    assert done.code == 2
    assert "holds a run already; continue it with --resume" in done.err
    done = mst_edge("run", recipe, "--out", finished_run, "--resume")
    assert done.code == 0
    assert "gate passed with" in done.out
    assert (finished_run / "distill" / "student.safetensors").stat().st_mtime_ns == before


def test_a_run_is_not_continued_with_another_recipe(finished_run):
    recipe = finished_run.parent / "small.yaml"
    done = mst_edge("run", recipe, "--out", finished_run, "--resume", "--set", "seed=5")
    assert done.code == 2
    assert "seed is 5, was 0" in done.err


def _stop_while_training(recipe: Path, out: Path, number: signal.Signals) -> tuple[int, str]:
    """Sends a signal to a run in its third training; returns exit code and standard error."""
    command = [sys.executable, "-m", "mst_edge", "run", str(recipe), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    )
    deadline = time.monotonic() + 120
    while not (out / "distill" / "kd" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_ctrl_c_says_how_to_go_on(tmp_path, finished_run):
    code, said = _stop_while_training(finished_run.parent / "small.yaml", tmp_path / "out", signal.SIGINT)
    assert code == 130
    assert "interrupted; continue a run with --resume" in said
    assert "Traceback" not in said


def test_a_run_killed_while_training_ends_with_the_same_student(tmp_path, finished_run):
    """A real kill of a real process, then --resume."""
    recipe = finished_run.parent / "small.yaml"
    out = tmp_path / "out"
    _stop_while_training(recipe, out, signal.SIGKILL)
    assert not (out / "result.json").exists()
    (out / "distill" / ".student.yaml.0123abcd.tmp").write_text("half")
    done = mst_edge("distill", recipe, "--out", out, "--resume")
    assert done.code == 0, done.err
    assert not list(out.rglob("*.tmp"))
    whole, resumed = (
        load_tensors(run / "distill" / "student.safetensors")[0]["student"] for run in (finished_run, out)
    )
    assert all((whole[key] == resumed[key]).all() for key in whole)
    assert [row["test"] for row in _result(out)["distill"]["models"]] == [
        row["test"] for row in _result(finished_run)["distill"]["models"]
    ]


def test_a_failed_gate_still_packs_its_best_build_and_exits_1(tmp_path):
    data = write_arrays(tmp_path / "data", samples=120)
    recipe = write_small_recipe(tmp_path / "r.yaml", data, goals={"accuracy": {"min": 1.0}, "max_size_mb": 1e-6})
    done = mst_edge(
        "run", recipe, "--out", tmp_path / "out", "--set", "distill.epochs={collaborate: 1, masks: 1, distill: 1}", *FEW
    )
    assert done.code == 1, done.err
    assert "gate failed with" in done.out
    result = _result(tmp_path / "out")
    assert result["gate"] == "failed"
    manifest = json.loads((tmp_path / "out" / "bundles" / "cpu" / "manifest.json").read_text())
    assert manifest["gate"]["verdict"] == "failed"
    assert any(not check["passed"] for check in manifest["gate"]["checks"])
    with Bundle.open(tmp_path / "out" / "bundles" / "cpu") as bundle:
        bundle.self_test()
    assert mst_edge("check", tmp_path / "out").code == 1
    assert mst_edge("check", tmp_path / "out" / "bundles" / "cpu").code == 1
    assert "gate failed" in (tmp_path / "out" / "report.html").read_text()


def test_check_passes_runs_and_bundles(finished_run):
    for path in (finished_run, finished_run / "bundles" / "cpu", finished_run / "bundles" / "cpu.zip"):
        done = mst_edge("check", path, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["gate"] == "passed"
    assert "reference outputs reproduced here" in mst_edge("check", finished_run / "bundles" / "cpu").out


def test_check_refuses_a_changed_bundle_and_what_is_none(finished_run, tmp_path):
    bundle = shutil.copytree(finished_run / "bundles" / "cpu", tmp_path / "b")
    (Path(bundle) / "README.md").write_text("other")
    done = mst_edge("check", bundle)
    assert done.code == 2
    assert "file README.md was changed" in done.err
    assert mst_edge("check", tmp_path).code == 2


def test_distill_alone_stops_after_training(tmp_path):
    data = write_arrays(tmp_path / "data", samples=120)
    recipe = write_small_recipe(tmp_path / "r.yaml", data)
    short = "distill={method: lone, compare: [], epochs: {collaborate: 1, distill: 1}}"
    done = mst_edge("distill", recipe, "--out", tmp_path / "out", "--set", short, *FEW)
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "distill" / "student.safetensors").is_file()
    assert not (tmp_path / "out" / "variants").exists()
    done = mst_edge("run", recipe, "--out", tmp_path / "out", "--set", short, *FEW, "--resume")
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "bundles" / "cpu.zip").is_file()


def test_the_report_draws_each_students_epochs_where_they_were(tmp_path, finished_run):
    """Hints have no accuracy to validate: the curve of FitNets begins after them."""
    done = mst_edge(
        "distill", finished_run.parent / "small.yaml", "--out", tmp_path / "out", "--set", "distill.compare=[fitnets]"
    )
    assert done.code == 0, done.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert [n for n in range(1, 6) if f"fitnets student, epoch {n}:" in page] == [2, 3, 4]
    assert [n for n in range(1, 6) if f"mst student (improved), epoch {n}:" in page] == [1, 2, 3, 4]


def test_json_is_all_that_is_printed_when_asked_for(finished_run):
    done = mst_edge("run", finished_run.parent / "small.yaml", "--out", finished_run, "--resume", "--json")
    assert json.loads(done.out)["gate"] == "passed"
    assert done.err == ""


def test_a_dry_run_prints_the_plan_and_makes_nothing(tmp_path, finished_run):
    done = mst_edge("run", finished_run.parent / "small.yaml", "--out", tmp_path / "out", "--dry-run", "--json")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    names = [step["name"] for step in plan["steps"]]
    assert names == [
        "data",
        "lone_multimodal",
        "lone_student",
        "kd",
        "mst_collaborate",
        "mst_masks",
        "mst",
        "deploy to cpu",
    ]
    assert plan["seconds"] == pytest.approx(sum(step["seconds"] for step in plan["steps"]))
    assert plan["memory_mb"] > 100
    assert plan["disk_mb"] > 0
    assert not (tmp_path / "out").exists()
    assert "memory: about" in mst_edge("run", finished_run.parent / "small.yaml", "--dry-run").out


def test_class_imbalance_is_weighed_and_reported(tmp_path):
    data = write_arrays(tmp_path / "data", samples=240)
    keep = np.flatnonzero((np.load(data / "target.npy") != 2) | (np.arange(240) % 5 == 0))
    for name in ("signal", "facts", "target"):
        np.save(data / f"{name}.npy", np.load(data / f"{name}.npy")[keep])
    recipe = write_small_recipe(tmp_path / "r.yaml", data)
    short = "distill={method: lone, compare: [], epochs: {collaborate: 1, distill: 1}}"
    assert mst_edge("distill", recipe, "--out", tmp_path / "out", "--set", short).code == 0
    result = _result(tmp_path / "out")
    assert result["data"]["imbalance"] > 3
    weights = result["distill"]["class_weights"]
    assert weights[2] > 3 * weights[0]
    assert "the loss weighs classes" in (tmp_path / "out" / "report.html").read_text()


def test_schemes_are_checked_before_training_and_one_that_does_nothing_is_skipped_with_its_reason(tmp_path):
    recipe = write_small_recipe(tmp_path / "r.yaml", write_arrays(tmp_path / "data", samples=120))
    short = "distill={method: lone, compare: [], epochs: {collaborate: 1, distill: 1}}"
    arguments = ("run", recipe, "--out", tmp_path / "out", "--set", short, *FEW[:2], "--set")
    done = mst_edge_here(*arguments, "quantize.schemes=[int4-weight]")
    assert done.code == 2
    assert "quantize.schemes: unknown scheme 'int4-weight'; did you mean 'int4-weights'?" in done.err
    assert not (tmp_path / "out").exists()
    done = mst_edge(*arguments, "quantize.schemes=[int4-weights, int8-symmetric]")
    assert done.code == 0, done.err
    assert "int4-weights: not made, int4-weights quantizes matrix products" in " ".join(done.out.split())
    result = _result(tmp_path / "out")
    assert [row["scheme"] for row in result["variants"]] == ["fp32", "int8-symmetric"]
    assert [entry["id"] for entry in result["skipped_schemes"]] == ["int4-weights"]
    assert "int4-weights was not made" in (tmp_path / "out" / "report.html").read_text()


def test_three_modalities_work(tmp_path):
    data = write_arrays(tmp_path / "data", samples=150)
    np.save(data / "picture.npy", np.random.default_rng(0).integers(0, 256, (150, 12, 12)).astype(np.uint8))
    recipe = write_small_recipe(tmp_path / "r.yaml", data, student={"modality": "picture"})
    done = mst_edge(
        "distill", recipe, "--out", tmp_path / "out", "--set", "distill.epochs={collaborate: 1, masks: 1, distill: 1}"
    )
    assert done.code == 0, done.err
    teachers = _result(tmp_path / "out")["distill"]["insights"]["mst"]["teachers"]
    assert [row["name"] for row in teachers] == [
        "multimodal:fused", "multimodal:hidden", "facts:hidden", "facts:squeeze", "signal:blocks", "signal:squeeze",
    ]  # fmt: skip


def test_a_teacher_with_nothing_to_teach_is_diagnosed_aloud(tmp_path):
    """The student's own modality says everything, the other is noise: fusing can only confuse."""
    data = write_arrays(tmp_path / "data", samples=240, noise=0.1)
    np.save(data / "facts.npy", np.random.default_rng(1).normal(size=(240, 12)).astype(np.float32))
    recipe = write_small_recipe(
        tmp_path / "r.yaml",
        data,
        teachers={"multimodal": {"network": "tests.mst_edge.test_run:Blind"}},
        distill={"method": "kd", "compare": ["lone"], "epochs": {"collaborate": 4, "distill": 4}},
    )
    done = mst_edge("distill", recipe, "--out", tmp_path / "out", cwd=ROOT)
    assert done.code == 0, done.err
    assert "the multimodal teacher is no better than the lone student" in " ".join(done.out.split())
    assert "it has nothing to teach" in (tmp_path / "out" / "report.html").read_text()


import torch  # noqa: E402
from torch import nn  # noqa: E402


class Blind(nn.Module):
    """A multimodal network that looks at the noise only."""

    multimodal = True

    def __init__(self, input_shapes, num_outputs):
        super().__init__()
        self.layer = nn.Linear(input_shapes["facts"][0], num_outputs)

    def forward(self, inputs):
        return (
            self.layer(inputs["facts"])
            + 0 * torch.stack([x.flatten(1).sum(1) for x in inputs.values()]).sum(0)[:, None]
        )


class FiveOutputs(nn.Module):
    """A network that was made for other data."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layer = nn.Linear(input_shape[1], 5)

    def forward(self, x):
        return self.layer(x.mean(dim=1))


def _break_data(folder: Path, what: str) -> None:
    facts = np.load(folder / "facts.npy")
    if what == "nan":
        facts[3, 2] = np.nan
    if what == "short":
        facts = facts[:-1]
    np.save(folder / "facts.npy", facts)
    if what == "no target":
        (folder / "target.npy").unlink()
    if what == "absent class":
        np.save(folder / "split.npy", np.where(np.load(folder / "target.npy") == 2, 2, np.arange(len(facts)) // 3 % 3))
    if what == "no modality":
        (folder / "dataset.yaml").write_text("modalities: {facts: {}, signal: {}}")
        (folder / "facts.npy").unlink()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("nan", "facts.npy: sample 3 holds NaN"),
        ("short", "facts.npy: holds 119 samples"),
        ("no target", "holds neither target.npy, nor class folders"),
        ("absent class", "dataset data: no training sample of class 2; another dataset.split.seed"),
        ("no modality", "facts.npy: no such file"),
    ],
)
def test_bad_data_gives_one_line_and_nothing_half_written(tmp_path, what, says):
    data = write_arrays(tmp_path / "data", samples=120)
    _break_data(data, what)
    recipe = write_small_recipe(tmp_path / "r.yaml", data)
    done = mst_edge_here("run", recipe, "--out", tmp_path / "out")
    assert done.code == 2
    assert says in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("student.modality=smell", "student.modality: unknown modality 'smell'"),
        ("student.network=tnc", "student.network: unknown network 'tnc'; did you mean 'tcn'"),
        ("student.options={widht: 2}", "did you mean 'width'"),
        ("student.network=tests.mst_edge.test_run:FiveOutputs", "shape (2, 5), expected (batch, 3)"),
        ("distill.method=mts", "distill.method: unknown method 'mts'; did you mean 'mst'"),
        ("distill.preset=papers", "mst has no preset 'papers'"),
        ("distill.options={layers: {multimodal: [fuse]}}", "unknown layer 'fuse'; did you mean 'fused'"),
        ("distill.options={layers: {multimodel: [fused]}}", "unknown teacher 'multimodel'; did you mean 'multimodal'"),
        ("distill.options={temprature: 2}", "did you mean 'temperature'"),
        ("distill.compare=[lone, kdd]", "distill.compare: unknown method 'kdd'"),
        ("distill={method: kd, options: {teacher: smell}}", "distill.options.teacher: unknown teacher 'smell'"),
        ("distill={method: rkd, options: {student_layer: tail}}", "student_layer: unknown layer 'tail'"),
        ("distill={method: crd, options: {teacher_layer: tail}}", "teacher_layer: unknown layer 'tail'"),
        ("distill={method: c2kd, options: {student_layer: tail}}", "student_layer: unknown layer 'tail'"),
        ("distill={method: ofa, options: {layers: [tail]}}", "layers: unknown layer 'tail'"),
        ("distill={method: fitnets, options: {student_layers: [tail]}}", "student_layers: unknown layer 'tail'"),
        ("distill={method: mgdfr, options: {teacher_layer: tail}}", "teacher_layer: unknown layer 'tail'"),
        ("teachers.multimodal={network: fusino}", "teachers.multimodal.network: unknown network 'fusino'"),
        ("targets=[gpu]", "unknown target 'gpu'"),
        ("goals.targets={gpu: {max_size_mb: 1}}", "unknown target 'gpu'"),
        ("modalities={smell: {}}", "unknown modality 'smell'"),
        ("teachers.cross_modal={signal: {}}", "teachers.cross_modal: unknown modality"),
        ("dataset.path=nowhere", "no such folder"),
        ("dataset={name: nothing}", "unknown dataset 'nothing'"),
        ("distill.epochs.distill=0", "distill.epochs.distill"),
    ],
)
def test_a_wrong_recipe_gives_one_line_and_exit_code_2_before_any_training(finished_run, tmp_path, setting, says):
    done = mst_edge_here("run", finished_run.parent / "small.yaml", "--out", tmp_path / "out", "--set", setting)
    assert done.code == 2
    assert not (tmp_path / "out").exists()
    line = [row for row in done.err.splitlines() if row.startswith("error:")]
    assert len(line) == 1
    assert says in line[0]
    assert "Traceback" not in done.err


def test_cuda_that_is_not_there_is_refused(finished_run, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = mst_edge("run", finished_run.parent / "small.yaml", "--out", tmp_path / "out", "--device", "cuda")
    assert done.code == 2
    assert "CUDA is not available here" in done.err


def test_our_own_bug_keeps_its_traceback_in_the_run_and_exits_3(tmp_path):
    data = write_arrays(tmp_path / "data", samples=120)
    recipe = write_small_recipe(
        tmp_path / "r.yaml", data, distill={"method": "tests.mst_edge.test_run:Buggy", "compare": []}
    )
    done = mst_edge("run", recipe, "--out", tmp_path / "out", cwd=ROOT)
    assert done.code == 3
    assert "internal error: ZeroDivisionError" in done.err
    assert "Traceback" not in done.err
    (trace,) = (tmp_path / "out").glob("traceback-*.txt")
    assert "ZeroDivisionError" in trace.read_text()


class Buggy(Method):
    """A method with a bug."""

    name = "buggy"

    def train(self):
        return 1 / 0


def test_an_unknown_teacher_is_told_before_anything_is_trained(tmp_path):
    data = write_arrays(tmp_path / "data", samples=120)
    distill = {"method": "rkd", "options": {"teacher": "fact"}, "compare": ["lone"]}
    recipe = write_small_recipe(tmp_path / "r.yaml", data, distill=distill)
    done = mst_edge("distill", recipe, "--out", tmp_path / "out")
    assert done.code == 2
    assert "distill.options.teacher: unknown teacher 'fact'; did you mean 'facts'?" in done.err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_resume_needs_a_folder(finished_run):
    done = mst_edge("run", finished_run.parent / "small.yaml", "--resume")
    assert done.code == 2
    assert "--resume: needs --out" in done.err


def test_a_folder_with_other_things_is_not_used(finished_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    done = mst_edge("run", finished_run.parent / "small.yaml", "--out", tmp_path)
    assert done.code == 2
    assert "is not empty and holds no run" in done.err


def test_recipes_in_the_run_folder_are_resolved(finished_run):
    resolved = yaml.safe_load((finished_run / "recipe.yaml").read_text())
    assert resolved["distill"]["batch_size"] == 64
