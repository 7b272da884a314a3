"""Both towers of retrieval are deployed: the student's partner is a run of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from apps.runtime.bundle import Bundle
from distill.retrieval import mean_average_precision
from distill.student import load_student, student_outputs
from distill.training.phase import Silent
from mst_edge.cli.console import ConsoleWatcher
from mst_edge.pipeline import RunOptions, run_recipe
from mst_edge.recipe import load_recipe
from mst_edge.run_folder import open_run
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import checked_methods, make_lab
from tests.conftest import write_vectors

RECIPE = {
    "name": "towers",
    "student": {"modality": "a", "network": "mlp", "options": {"width": 0.25}},
    "teachers": {
        "multimodal": {"network": "fusion", "options": {"width": 0.25}},
        "cross_modal": {"b": {"network": "mlp", "options": {"width": 0.5}}},
    },
    "distill": {"method": "dcd", "compare": [], "epochs": {"collaborate": 2, "masks": 1, "distill": 2}},
    "quantize": {"schemes": [], "sensitivity": False, "calibration": {"samples": 32}},
    "measure": {"runtimes": ["onnxruntime"], "min_runs": 20, "min_seconds": 0.05},
    "goals": {"accuracy": {"max_relative_drop_percent": 50.0}},
}


def run(recipe, folder, *, until="", resume=False):
    parsed = load_recipe(recipe)
    with ConsoleWatcher(None, quiet=True) as watcher:
        return run_recipe(parsed, open_run(folder, parsed, resume=resume), RunOptions(None, "cpu", until), watcher)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that ended after training, and what it says."""
    folder = tmp_path_factory.mktemp("towers")
    data = write_vectors(folder / "data", noise=0.8)
    (folder / "r.yaml").write_text(yaml.safe_dump({**RECIPE, "dataset": {"path": str(data)}}))
    return folder / "out", run(folder / "r.yaml", folder / "out", until="distill")["distill"]


def test_the_partners_bundle_and_the_student_find_each_others_samples(trained):
    place, said = trained
    partner = place / "partner"
    result = run(partner / "recipe.yaml", partner, resume=True)
    assert "trained beside the student of out" in result["distill"]["diagnoses"][0]["text"]
    assert [row["reads"] for row in result["distill"]["models"]] == [["b"]]
    data = prepare(load_recipe(place / "recipe.yaml"), None)
    test = data.splits["test"]
    (logits,) = student_outputs(load_student(place / "distill"), data.dataset.read("a", test))
    with Bundle.open(partner / "bundles" / "cpu") as bundle:
        assert bundle.manifest.input.name == "b"
        theirs = bundle.outputs(data.dataset.read("b", test))
    embedded = {"a": torch.from_numpy(logits).softmax(dim=1), "b": torch.from_numpy(theirs).softmax(dim=1)}
    target = torch.from_numpy(np.array(data.dataset.target[test]))
    for asks, held in (("a", "b"), ("b", "a")):
        found = mean_average_precision(embedded[asks], embedded[held], target, target)
        assert found == pytest.approx(said["insights"]["dcd"]["retrieval_map"][f"{asks} -> {held}"], abs=1e-3)


def test_the_partners_recipe_could_have_trained_it(trained):
    place, _ = trained
    theirs = load_recipe(place / "partner" / "recipe.yaml")
    assert (theirs.name, theirs.student.modality, theirs.student.options) == ("towers-b", "b", {"width": 0.5})
    assert theirs.teachers.cross_modal["a"].options == {"width": 0.25}
    lab = make_lab(theirs, prepare(theirs, None), place / "again", torch.device("cpu"), Silent())
    assert checked_methods(theirs, lab)["dcd"].partner == "a"
