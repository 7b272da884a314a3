"""One batch, cut into parts and shared out over processes: the same training, up to the rounding of sums."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.training.checkpoint import load_tensors
from distill.training.parallel import Processes
from mst_edge.cli.app import app
from mst_edge.core.errors import UserError
from mst_edge.recipe import DistillSection
from mst_edge.stages.distill import require_samples_for_all
from tests.conftest import ROOT, write_small_recipe, write_vectors
from tests.distill.workers import compare_gradients, compare_outer_gradients, run, run_together, train, train_mst_until

BATCH = 47  # of 144 training samples: an odd share for two processes, and three samples left for the last batch
MEANS = {"lone": {}, "kd": {}, "taid": {"step_size": 0.3}, "fitnets": {}, "ofa": {}, "mgdfr": {}}
COUPLED = {"rkd": {}, "crd": {"negatives": 64}, "mlld": {}, "mst": {"router": "linear", "balance_weight": 1.0}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_vectors(tmp_path_factory.mktemp("vectors") / "data")


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """What a single process trains."""
    folder = tmp_path_factory.mktemp("one")
    train(data, folder, MEANS | COUPLED, batch_size=BATCH)
    return folder


def _phases(folder: Path) -> dict[str, tuple[dict, list]]:
    return {
        path.parent.name: (load_tensors(path)[0], json.loads((path.parent / "history.json").read_text()))
        for path in folder.glob("*/final.safetensors")
    }


def _require_close(folder: Path, expected: Path) -> set[str]:
    """Weights and logged losses of every phase in ``folder`` are those in ``expected``; returns the phases."""
    found, wanted = _phases(folder), _phases(expected)
    for phase, (modules, history) in found.items():
        for module, state in modules.items():
            for name, value in state.items():
                assert torch.allclose(value, wanted[phase][0][module][name], rtol=1e-3, atol=1e-4), (phase, name)
        for epoch, other in zip(history, wanted[phase][1], strict=True):
            assert epoch == pytest.approx(other, rel=1e-3, abs=1e-4), phase
    return set(found)


@pytest.mark.parametrize(("samples", "accumulate", "sizes"), [(64, 1, [64]), (64, 4, [16] * 4), (7, 4, [3, 2, 2])])
def test_a_batch_is_cut_alike_for_any_number_of_processes(samples, accumulate, sizes):
    for size in (1, 2, 3):
        everyone = [list(Processes(rank, size).parts(100, 100 + samples, accumulate)) for rank in range(size)]
        for pieces, expected in zip(zip(*everyone, strict=True), sizes, strict=True):
            rows = pieces[0].rows
            assert sum(rows) == (expected if expected >= 2 * size > 2 else 0)
            if rows:
                places = [place for piece in pieces for place in range(piece.start, piece.end)]
                assert places == list(range(places[0], places[0] + expected))
                assert min(rows) >= 2
            else:
                assert all(piece.end - piece.start == expected for piece in pieces)
        for parts in everyone:
            assert [part.ends_step for part in parts] == [False] * (len(sizes) - 1) + [True]
        assert sum(part.weight for parts in everyone for part in parts) / size == pytest.approx(1)


def test_a_batch_in_parts_trains_as_the_whole_batch_where_losses_are_means_over_samples(data, one, tmp_path):
    train(data, tmp_path, MEANS, batch_size=BATCH, accumulate=3)
    assert {"lone_student", "kd", "taid", "fitnets_hints", "ofa", "mgdfr_joint"} <= _require_close(tmp_path, one)


def test_two_processes_train_as_one_also_where_losses_couple_samples(data, one, tmp_path):
    assert run_together(2, train, data, tmp_path, MEANS | COUPLED, batch_size=BATCH) == [0, 0]
    assert {*COUPLED, "mst_collaborate", "mst_masks", "lone_multimodal"} <= _require_close(tmp_path, one)


@pytest.mark.parametrize("samples", [12, 13])
def test_gradients_and_batch_norm_are_those_of_the_whole_batch(samples):
    assert run_together(3, compare_gradients, samples) == [0, 0, 0]


def test_the_step_that_tgeo_tries_out_is_that_of_the_whole_batch(data, tmp_path):
    assert run_together(3, compare_outer_gradients, data, tmp_path, 13) == [0, 0, 0]


def test_a_loss_that_is_no_number_ends_all_processes(data, tmp_path):
    assert run_together(2, train, data, tmp_path, {"rkd": {"distance_weight": 1e39}}) == [1, 1]


def test_what_two_processes_began_one_can_end(data, tmp_path):
    assert run(train_mst_until, data, tmp_path / "one", None, 10.0, 0.0) == 0
    steps = json.loads((tmp_path / "one" / "steps.json").read_text())
    middle = next(index for index, step in enumerate(steps) if step[1:] == [1, 2])
    killed = run_together(2, train_mst_until, data, tmp_path / "two", steps[middle], 0.0, 0.0)
    assert killed == [-signal.SIGKILL] * 2
    assert run(train_mst_until, data, tmp_path / "two", None, 10.0, 0.0) == 0
    assert json.loads((tmp_path / "two" / "steps.json").read_text()) == steps[middle:]
    assert _require_close(tmp_path / "two", tmp_path / "one") == {"mst_collaborate", "mst_masks", "mst"}


def test_a_launcher_starts_a_run_that_one_process_finishes(data, tmp_path):
    distill = {"compare": [], "epochs": {"collaborate": 1, "masks": 1, "distill": 1}, "batch_size": 48}
    recipe = write_small_recipe(tmp_path / "r.yaml", data, student={"modality": "a"}, distill=distill)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mst_edge"]
    done = subprocess.run(
        [*launch, "distill", str(recipe), "--out", str(tmp_path / "out"), "--device", "cpu", "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["distill"]["method"] == "mst"
    assert json.loads((tmp_path / "out" / "result.json").read_text())["gate"] == "not run"
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["compare", "--out", "x"], "compare: trains one network after another"),
        (["distill"], "--out: several processes need to be told their common folder"),
        (["distill", "--out", "x"], "RANK, MASTER_ADDR, MASTER_PORT not set; start with torchrun"),
    ],
)
def test_what_a_launcher_must_know_is_told(data, tmp_path, monkeypatch, command, says):
    recipe = write_small_recipe(tmp_path / "r.yaml", data, student={"modality": "a"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=says):
        app([command[0], str(recipe), *command[1:]], standalone_mode=False)
    assert not (tmp_path / "x").exists()


def test_a_batch_too_small_for_its_parts_is_refused():
    with pytest.raises(
        UserError, match=r"distill\.batch_size: 64 samples cannot be cut into 48 parts .* raise it to 96"
    ):
        require_samples_for_all(DistillSection(accumulate=24), Processes(0, 2))
