"""Segmentation and regression through the command line: from arrays to a bundle that answers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.runtime import Bundle, BundleError, LabelMap, Numbers
from distill.training.phase import Silent
from mst_edge.compare.contenders import Contender, choose
from mst_edge.compare.summary import summarise
from mst_edge.compare.trial import Trial
from mst_edge.core.errors import UserError
from mst_edge.core.scoring import OutputSpec
from mst_edge.recipe import load_recipe
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import checked_methods, make_lab
from tests.conftest import mst_edge, write_label_maps, write_numbers, write_small_recipe

SHORT = {"collaborate": 2, "masks": 1, "distill": 2}


@pytest.fixture(scope="module")
def maps_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    distill = {"method": "mst", "compare": ["lone"], "batch_size": 12, "epochs": SHORT, "optimizer": {"lr": 0.01}}
    recipe = write_small_recipe(
        folder / "r.yaml", write_label_maps(folder / "data"), student={"modality": "depth"}, distill=distill
    )
    done = mst_edge("run", recipe, "--out", folder / "out")
    assert done.code == 0, done.err
    (folder / "said.txt").write_text(done.out)
    return folder / "out"


@pytest.fixture(scope="module")
def numbers_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    distill = {"method": "mst", "compare": ["lone"], "epochs": SHORT, "optimizer": {"lr": 0.005}}
    goals = {"accuracy": {"max": 3.0, "max_relative_drop_percent": 50.0}, "min_int8_speedup": 0.0}
    recipe = write_small_recipe(folder / "r.yaml", write_numbers(folder / "data"), distill=distill, goals=goals)
    done = mst_edge("run", recipe, "--out", folder / "out")
    assert done.code == 0, done.err
    (folder / "said.txt").write_text(done.out)
    return folder / "out"


def _result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def _manifest(run: Path) -> dict:
    return json.loads((run / "bundles" / "cpu" / "manifest.json").read_text())


def _miou(said, true):
    labelled = true != 255
    pairs = [(labelled & (true == k), labelled & (said == k)) for k in range(3)]
    return np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs])


def test_builds_of_maps_are_judged_by_miou_on_their_runtime(maps_run):
    result = _result(maps_run)
    (target,) = result["targets"]
    assert (target["scoring"]["metric"], target["scoring"]["label"]) == ("miou", "mIoU")
    inputs = np.load(maps_run / "evaluation" / "inputs.npy")
    true = np.load(maps_run / "evaluation" / "target.npy")
    with Bundle.open(maps_run / "bundles" / "cpu") as bundle:
        said = np.stack([bundle.answer(sample).labels for sample in inputs])
    chosen = next(row for row in target["builds"] if row["verdict"]["chosen"])
    assert chosen["accuracy"]["value"] == pytest.approx(_miou(said, true))
    assert np.sum(target["confusion"]) == (true != 255).sum()
    fp32 = next(row for row in target["builds"] if row["id"] == "onnxruntime-fp32")
    student = next(row for row in result["distill"]["models"] if row["method"] == "mst")
    assert fp32["accuracy"]["value"] == pytest.approx(student["test"]["miou"], abs=1e-3)
    assert target["fp32_accuracy"] == pytest.approx(student["test"]["miou"], abs=1e-3)
    assert "mIoU" in (maps_run.parent / "said.txt").read_text()
    page = (maps_run / "report.html").read_text()
    assert "segmentation, judged by mIoU" in page
    assert "pixel accuracy" in page


def test_a_bundle_of_maps_answers_with_shares_and_label_maps(maps_run, tmp_path):
    bundle = maps_run / "bundles" / "cpu"
    manifest = _manifest(maps_run)
    assert (manifest["task"], manifest["labels"], manifest["ignore_label"]) == (
        "segmentation", ["floor", "box", "ball"], 255,
    )  # fmt: skip
    done = mst_edge("predict", bundle, bundle / "examples", "--json", "--maps", tmp_path / "maps")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert len(rows) == 5
    first = Path(rows[0]["file"])
    picture = np.asarray(Image.open(tmp_path / "maps" / f"{first.stem}.png"))
    with Bundle.open(bundle) as opened:
        said = opened.answer(np.load(first))
        with pytest.raises(BundleError, match="does segmentation, not classification"):
            opened.predict(np.load(first))
        assert opened.self_test() <= opened.build.tolerance
    assert isinstance(said, LabelMap)
    assert np.array_equal(picture, said.labels)
    assert rows[0]["shares"] == pytest.approx(said.shares, abs=1e-5)
    assert sum(said.shares.values()) == pytest.approx(1)
    assert "floor" in mst_edge("predict", bundle, first).out


def test_builds_of_numbers_are_judged_in_the_units_of_the_device(numbers_run):
    result = _result(numbers_run)
    (target,) = result["targets"]
    inputs = np.load(numbers_run / "evaluation" / "inputs.npy")
    true = np.load(numbers_run / "evaluation" / "target.npy")
    with Bundle.open(numbers_run / "bundles" / "cpu") as bundle:
        said = np.concatenate([bundle.outputs(sample[None]) for sample in inputs])
    scale = np.array([said_of["std"] for said_of in result["data"]["numbers"]])
    chosen = next(row for row in target["builds"] if row["verdict"]["chosen"])
    expected = np.sqrt((((said - true) / scale) ** 2).mean())
    assert chosen["accuracy"]["value"] == pytest.approx(expected, rel=1e-4)
    assert abs(said[:, 0].mean() - 300) < 1  # kelvin, not deviations
    assert [check["goal"] for check in chosen["verdict"]["checks"]][1] == "accuracy.max"
    student = next(row for row in result["distill"]["models"] if row["method"] == "mst")
    fp32 = np.load(numbers_run / "evaluation" / "student_logits.npy")
    assert student["test"]["mae_speed"] == pytest.approx(np.abs(fp32 - true)[:, 1].mean(), rel=1e-3)
    assert target["confusion"] is None
    assert "MAE temperature, K" in (numbers_run / "report.html").read_text()
    assert "nRMSE" in (numbers_run.parent / "said.txt").read_text()


def test_a_bundle_of_numbers_answers_with_names_and_units(numbers_run, tmp_path):
    bundle = numbers_run / "bundles" / "cpu"
    manifest = _manifest(numbers_run)
    assert (manifest["labels"], manifest["units"]) == (["temperature", "speed"], ["K", "1/min"])
    done = mst_edge("predict", bundle, bundle / "examples" / "sample_0.npy")
    assert done.code == 0, done.err
    assert " K, speed " in done.out
    assert "1/min" in done.out
    with Bundle.open(bundle) as opened:
        said = opened.answer(np.load(bundle / "examples" / "sample_0.npy"))
        assert opened.self_test() <= opened.build.tolerance
    assert isinstance(said, Numbers)
    assert said.values["temperature"] == pytest.approx(300, abs=2)
    done = mst_edge("predict", bundle, bundle / "examples" / "sample_0.npy", "--maps", tmp_path)
    assert done.code == 2
    assert "only segmentation gives label maps" in done.err


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("goals.accuracy={min: 0.9}", "goals.accuracy.min: nRMSE, by which regression is judged, is better when lower"),
        ("distill={method: mlld}", "mlld cannot do regression, only classification, segmentation"),
        ("distill.compare=[c2kd]", "c2kd cannot do regression, only classification"),
        ("distill.class_balance=weights", "regression has no classes to weigh"),
    ],
)
def test_what_a_task_cannot_do_is_told_before_any_training(tmp_path, setting, says):
    recipe = load_recipe(write_small_recipe(tmp_path / "r.yaml", write_numbers(tmp_path / "data")), [setting])
    with pytest.raises(UserError, match=says):
        data = prepare(recipe, None)
        checked_methods(recipe, make_lab(recipe, data, tmp_path / "out", torch.device("cpu"), Silent()))
    assert not (tmp_path / "out").exists()


def test_all_methods_of_a_comparison_are_those_that_can_do_the_task(tmp_path):
    recipe = load_recipe(write_small_recipe(tmp_path / "r.yaml", write_numbers(tmp_path / "data")))
    lab = make_lab(recipe, prepare(recipe, None), tmp_path / "out", torch.device("cpu"), Silent())
    found = choose("all", recipe, lab, with_ablations=False)
    assert {row.label for row in found} == {
        "lone", "kd", "taid", "multi_teacher", "fitnets", "rkd", "crd", "mgdfr", "videoadviser", "mst",
    }  # fmt: skip


def test_a_comparison_ranks_errors_the_other_way_round(tmp_path):
    recipe = load_recipe(write_small_recipe(tmp_path / "r.yaml", tmp_path))
    output = OutputSpec("regression", ("t",), ("K",), scale=(0.1,))
    rng = np.random.default_rng(0)
    squares = {"lone": rng.gamma(1.0, size=(60, 1)), "mst": rng.gamma(1.0, size=(60, 1)) * 0.04}
    trials = {
        name: Trial(
            {
                "test": {"nrmse": float(np.sqrt(rows.mean()))},
                "output": asdict(output),
                "samples": {"train": 180, "test": 60},
                "parameters": 10,
                "seconds": 1.0,
                "peak_memory_mb": None,
                "peak_gpu_memory_mb": None,
            },
            rows,
        )
        for name, rows in squares.items()
    }
    record = summarise(recipe, [0], "both", [Contender(name, name) for name in squares], [trials])
    lone, mst = record["rows"]
    assert record["best"] == ["mst"]
    assert (lone["mean_rank"], mst["mean_rank"]) == (2, 1)
    gain = np.sqrt(squares["lone"].mean()) - np.sqrt(squares["mst"].mean())
    assert mst["gain"]["estimate"] == pytest.approx(gain)
    assert 0 < mst["gain"]["low"] < gain < mst["gain"]["high"]
    assert record["verdict"]["relation"] == "clearly better than"
    assert "bootstrap" in record["interval"]


@pytest.mark.parametrize(("write", "student"), [(write_label_maps, "depth"), (write_numbers, "signal")])
def test_init_writes_a_recipe_for_the_task(tmp_path, write, student):
    data = write(tmp_path / "data")
    done = mst_edge("init", data, "--student", student, "--out", tmp_path / "r.yaml")
    assert done.code == 0, done.err
    assert ("segmentation" if student == "depth" else "temperature: 300 +-") in done.out
    text = (tmp_path / "r.yaml").read_text()
    assert ("small_unet" in text) is (student == "depth")
    recipe = load_recipe(tmp_path / "r.yaml")
    data = prepare(recipe, None)
    checked_methods(recipe, make_lab(recipe, data, tmp_path / "out", torch.device("cpu"), Silent()))
