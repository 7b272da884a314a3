"""From video files to a bundle that follows streams, through the command line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from apps.watch import main
from mst_edge.core.files import sha256_file
from tests.conftest import mst_edge, write_small_recipe
from tests.videos import write_video


def sliding(rng, to_the_right: bool, count: int) -> np.ndarray:
    """A bright bar that goes to one side, in noise."""
    frames = rng.integers(0, 60, (count, 16, 24, 3))
    for number in range(count):
        place = round(20 * (number if to_the_right else count - 1 - number) / count)
        frames[number, :, place : place + 4] = 230
    return frames.astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Clips of 5 to 7 frames, distilled by nobody."""
    folder = tmp_path_factory.mktemp("video")
    rng = np.random.default_rng(0)
    for number in range(30):
        label = ("left", "right")[number % 2]
        write_video(
            folder / "data" / label / f"{number:02}.mp4", sliding(rng, label == "right", 5 + number % 3), rate=5
        )
    recipe = write_small_recipe(
        folder / "r.yaml",
        folder / "data",
        dataset={"path": str(folder / "data"), "options": {"frame_channels": 1}},
        student={"modality": "video", "network": "stream_cnn", "options": {"width": 0.5}},
        distill={"method": "lone", "compare": [], "epochs": {"collaborate": 1, "distill": 1}},
        quantize={"schemes": ["int8-static"], "sensitivity": False, "calibration": {"samples": 16}},
        measure={"min_runs": 10, "min_seconds": 0.01, "runtimes": ["onnxruntime"]},
    )
    done = mst_edge("run", recipe, "--out", folder / "out")
    assert done.code == 0, done.err
    return folder, done


def test_the_run_says_what_became_of_unequal_lengths(run):
    folder, done = run
    said = "video: of clips of 5 to 7 frames, 5 at equal parts of each were taken; "
    assert f"NOTE of the data: {said}" in done.out + done.err
    result = json.loads((folder / "out" / "result.json").read_text())
    (note,) = result["data"]["notes"]
    assert note.startswith(said)
    with open(note.removeprefix(said).removesuffix(" lists them"), encoding="utf-8") as table:  # noqa: PTH123
        assert len(list(csv.DictReader(table))) == 30


def test_the_step_model_travels_with_an_int8_build_and_is_recorded(run):
    folder, _ = run
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["stream"]["steps"] == 5
    assert result["stream"]["rate_hz"] == 4.0  # 5 frames of clips of 1 to 1.4 s
    assert result["stream"]["difference"] < 1e-4
    bundle = folder / "out" / "bundles" / "cpu"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["files"]["models/stream.onnx"] == sha256_file(folder / "out" / "stream" / "stream.onnx")
    assert "apps/watch.py" in manifest["files"]


def test_the_bundle_watches_a_film(run, capsys):
    folder, _ = run
    film = next((folder / "data" / "left").iterdir())
    assert main([str(folder / "out" / "bundles" / "cpu"), str(film), "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers
    assert {one["label"] for one in answers} <= {"left", "right"}
    assert {one["build"] for one in answers} == {"models/stream.onnx"}
