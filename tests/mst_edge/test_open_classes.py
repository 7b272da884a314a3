"""Classes added to a finished run's student: through export, int8 and a bundle, without training."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import yaml

from mst_edge.cli.console import ConsoleWatcher
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_file
from mst_edge.open_classes import add_classes, vectors_of_samples
from mst_edge.pipeline import RunOptions, run_recipe
from mst_edge.recipe import load_recipe
from mst_edge.run_folder import RunFolder, open_run
from quantize.variant import load_variant
from tests.distill.methods.test_embedding_kd import NEW, SEEN, write_views

RECIPE = {
    "name": "views",
    "student": {"modality": "a", "network": "mlp", "options": {"width": 0.5}},
    "teachers": {"cross_modal": {"b": {"network": "mlp"}}},
    "distill": {
        "method": "embedding_kd",
        "options": {"teacher": "b"},
        "compare": ["lone"],
        "epochs": {"collaborate": 5, "masks": 1, "distill": 15},
        "optimizer": {"lr": 0.005},
    },
    "quantize": {"schemes": ["int8-static"], "sensitivity": False, "calibration": {"samples": 64}},
    "measure": {"runtimes": ["onnxruntime"], "min_runs": 20, "min_seconds": 0.05},
    "goals": {"accuracy": {"max_relative_drop_percent": 50.0}, "min_int8_speedup": 0.0},
}


def run(recipe, folder, *, until="", resume=False):
    parsed = load_recipe(recipe)
    with ConsoleWatcher(None, quiet=True) as watcher:
        return run_recipe(parsed, open_run(folder, parsed, resume=resume), RunOptions(None, "cpu", until), watcher)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``out``, a run of seven classes that ended after training; ``new``, samples of three others."""
    folder = tmp_path_factory.mktemp("open")
    data = write_views(folder / "seen", SEEN)
    (folder / "r.yaml").write_text(yaml.safe_dump({**RECIPE, "dataset": {"path": str(data)}}))
    run(folder / "r.yaml", folder / "out", until="distill")
    everything = write_views(folder / "new")
    target = np.load(everything / "target.npy")
    for name in "ab":
        np.save(everything / f"{name}.npy", np.load(everything / f"{name}.npy")[target >= SEEN])
    np.save(everything / "target.npy", target[target >= SEEN] - SEEN)
    (everything / "dataset.yaml").write_text("classes: [owl, cat, bee]\n")
    return folder


def test_a_run_is_deployed_with_classes_that_nothing_was_trained_on(folder):
    names, rows = vectors_of_samples(folder / "out", folder / "new")
    assert (names, tuple(rows.shape)) == (("owl", "cat", "bee"), (NEW, 64))
    add_classes(folder / "out", rows, names, out=folder / "more")
    before = sha256_file(folder / "more" / "distill" / "student.safetensors")
    result = run(folder / "more" / "recipe.yaml", folder / "more", resume=True)
    assert sha256_file(folder / "more" / "distill" / "student.safetensors") == before  # nothing was trained
    assert any("classes added to the student of out" in said["text"] for said in result["distill"]["diagnoses"])
    manifest = json.loads((folder / "more" / "bundles" / "cpu" / "manifest.json").read_text())
    assert manifest["labels"] == [*map(str, range(SEEN)), "owl", "cat", "bee"]
    assert f">{names[0]}<" in (folder / "more" / "report.html").read_text()

    raw, target = np.load(folder / "new" / "a.npy"), np.load(folder / "new" / "target.npy") + SEEN
    for kind in ("fp32", "int8"):
        variant = load_variant(folder / "more" / "variants" / kind)
        session = onnxruntime.InferenceSession(str(variant.model), providers=["CPUExecutionProvider"])
        (said,) = session.run(None, {"a": raw})
        assert (said.argmax(axis=1) == target).mean() > 0.6, kind  # chance is 0.1
    rows = {row["id"]: row["accuracy"]["value"] for row in result["targets"][0]["builds"]}
    assert min(rows.values()) > 0.9, rows  # of the seven, among ten


def test_rows_may_come_from_a_file(folder, tmp_path):
    np.save(tmp_path / "w.npy", np.eye(2, 64, dtype=np.float32))
    made = add_classes(folder / "out", tmp_path / "w.npy", ["x", "y"], out=tmp_path / "more")
    assert load_recipe(made.recipe_file) == load_recipe(folder / "out" / "recipe.yaml")
    with pytest.raises(UserError, match="in use|not empty|holds"):
        add_classes(folder / "out", tmp_path / "w.npy", ["x", "y"], out=tmp_path / "more")
    with pytest.raises(UserError, match=r"rows: .* has shape \(2, 64\), expected \(1, width\)"):
        add_classes(folder / "out", tmp_path / "w.npy", ["x"], out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_does_not_fit_is_said(folder, tmp_path):
    run_of_mst = RunFolder(tmp_path / "mst")
    run_of_mst.finish_stage("distill", {"method": "mst"})
    for other in (run_of_mst.path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="holds no student of embedding_kd"):
            vectors_of_samples(other, folder / "new")
    samples = tmp_path / "samples"
    samples.mkdir()
    np.save(samples / "a.npy", np.zeros((4, 12), np.float32))
    np.save(samples / "target.npy", np.array([0, 0, 1, 1]))
    with pytest.raises(UserError, match=r"unknown modality of the teacher 'b'; Known: a"):
        vectors_of_samples(folder / "out", samples)
    np.save(samples / "b.npy", np.zeros((4, 11), np.float32))
    with pytest.raises(UserError, match=r"was trained on other b"):
        vectors_of_samples(folder / "out", samples)
