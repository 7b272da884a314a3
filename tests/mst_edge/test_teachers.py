"""What a run says of its teachers: how they do on samples that they were trained on, and on others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mst_edge.stages.teachers import memorised
from tests.conftest import mst_edge, write_arrays, write_small_recipe

CERTAINTY = ("confidence", "gives the right class {:.0%} probability")


def _row(train: float, val: float, origin: str = "alone") -> dict[str, object]:
    return {"name": "face", "origin": origin, "train": {"confidence": train}, "val": {"confidence": val}}


def test_a_run_judges_every_teacher_on_both_splits(finished_run: Path) -> None:
    result = json.loads((finished_run / "result.json").read_text(encoding="utf-8"))["distill"]

    rows = {(row["origin"], row["name"]) for row in result["teachers"]}
    assert rows >= {("alone", "multimodal"), ("mst", "multimodal:fused"), ("mst", "facts:hidden")}
    for row in result["teachers"]:
        for split in ("train", "val"):
            assert 0.0 <= row[split]["accuracy"] <= 1.0
            assert 0.0 < row[split][result["certainty"]] < 1.0
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert "What the teachers know" in page


def test_a_teacher_that_is_as_sure_of_new_samples_is_not_mentioned() -> None:
    assert memorised([_row(0.90, 0.75)], CERTAINTY) == []


def test_a_teacher_that_memorised_is_named_with_both_numbers_and_what_to_do() -> None:
    (alone, routed) = memorised([_row(0.99, 0.42), _row(0.99, 0.42, "mst")], CERTAINTY)

    assert alone["text"].startswith(
        "the face teacher gives the right class 99% probability on training samples and 42%"
    )
    assert "dropout" in alone["text"]
    assert routed["text"].startswith("the face teacher of mst ")


def test_labels_that_nothing_explains_are_memorised_and_the_run_says_so(tmp_path: Path) -> None:
    data = write_arrays(tmp_path / "data", samples=120)
    np.save(data / "target.npy", np.random.default_rng(0).integers(0, 3, 120))
    epochs = {"collaborate": 20, "masks": 1, "distill": 40}
    recipe = write_small_recipe(
        tmp_path / "r.yaml", data, distill={"method": "kd", "compare": ["lone"], "epochs": epochs, "batch_size": 16}
    )

    done = mst_edge("distill", recipe, "--out", tmp_path / "out")

    assert done.code == 0, done.err
    assert "it has memorised its training set" in " ".join(done.out.split())
