"""``mst-edge compare`` through the command line: its table and files, how it resumes, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from distill.methods.base import METHODS, Method
from distill.methods.single_teacher import SingleTeacher
from distill.training.phase import Silent
from mst_edge.compare.comparison import parse_seeds, parse_vary, seeded
from mst_edge.compare.contenders import choose
from mst_edge.compare.trial import Request, train
from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import make_lab
from tests.conftest import ROOT, mst_edge, mst_edge_here, write_arrays, write_small_recipe

TEACHER = "multimodal teacher"
STUDENTS = ["lone", "mst", "kd"]
ARGUMENTS = ["--methods", "mst,kd", "--seeds", "1,0"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """One part of MST-Distill is left to take away, so that few rows say everything."""
    folder = tmp_path_factory.mktemp("compare")
    data = write_arrays(folder / "data")
    said = {
        "method": "mst",
        "preset": "improved",
        "options": {"teachers": "cross_modal", "router": "mean"},
        "epochs": {"collaborate": 1, "masks": 1, "distill": 3},
    }
    return write_small_recipe(folder / "small.yaml", data, distill=said)


@pytest.fixture(scope="module")
def killed(recipe) -> tuple[Path, dict[Path, int]]:
    """A comparison killed while it trained ``kd`` on its first seed, and what was finished by then."""
    out = recipe.parent / "out"
    command = [sys.executable, "-m", "mst_edge", "compare", str(recipe), *ARGUMENTS, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 120
    while not list(out.glob("seeds/1/kd-*/kd/checkpoint.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(worker), "the training process outlived its parent"
    assert not (out / "compare.csv").exists()
    assert not list(out.glob("seeds/1/kd-*/trial.json"))
    return out, {path: mark for path, mark in _marks(out).items() if path.name == "trial.json"}


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def compared(recipe, killed):
    """The same command again, to its end, on a terminal of 80 columns."""
    out, finished = killed
    done = mst_edge("compare", recipe, *ARGUMENTS, "--out", out, COLUMNS="80")
    assert done.code == 0, done.err
    assert len(finished) == 3  # teacher, lone, mst
    assert finished.items() <= _marks(out).items(), "a finished trial was trained again"
    return out, done


def _marks(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def _csv(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "compare.csv").read_text(encoding="utf-8").splitlines()))


def _tests(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    """What does not depend on the clock, by seed and method."""
    return {
        (row["seed"], row["method"]): {k: v for k, v in row.items() if k.startswith(("test_", "val_"))}
        for row in _csv(out)
    }


def _record(out: Path) -> dict:
    return json.loads((out / "compare.json").read_text())


def test_the_files_hold_every_seed_and_method(compared):
    out, _ = compared
    labels = [TEACHER, *STUDENTS]
    assert [(row["seed"], row["method"]) for row in _csv(out)] == [(s, m) for s in "10" for m in labels]
    assert all(float(row["seconds"]) > 0 and float(row["peak_memory_mb"]) > 100 for row in _csv(out))
    record = _record(out)
    assert [row["label"] for row in record["rows"]] == labels
    assert set(record["provenance"]["data_sha256"]) == {"0", "1"}
    assert record["provenance"]["tools"]["torch"]
    assert not [path for path in out.rglob("*") if path.name.endswith((".tmp", ".old"))]


def test_the_table_says_mean_spread_rank_and_gain_of_the_trials(compared):
    out, done = compared
    rows = {row["label"]: row for row in _record(out)["rows"]}
    values = {label: [] for label in rows}
    for row in _csv(out):
        values[row["method"]].append(float(row["test_accuracy"]))
    for label, row in rows.items():
        assert row["mean"] == pytest.approx(statistics.mean(values[label]))
        assert row["std"] == pytest.approx(statistics.stdev(values[label]))
        shown = next(line for line in done.out.splitlines() if line.strip().startswith(f"{label}  "))
        assert f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" in shown
        if label != "lone":
            gains = [a - b for a, b in zip(values[label], values["lone"], strict=True)]
            assert row["gain"]["estimate"] == pytest.approx(statistics.mean(gains), abs=1e-6)
            assert row["gain"]["low"] < row["gain"]["estimate"] < row["gain"]["high"]
            assert f"{100 * row['gain']['estimate']:+.1f} (" in shown
    assert sum(rows[label]["mean_rank"] for label in STUDENTS) == pytest.approx(1 + 2 + 3)
    for label in STUDENTS:
        places = [1 + sum(values[o][s] > values[label][s] for o in STUDENTS) for s in (0, 1)]
        ties = [sum(values[o][s] == values[label][s] for o in STUDENTS) - 1 for s in (0, 1)]
        expected = statistics.mean(p + t / 2 for p, t in zip(places, ties, strict=True))
        assert rows[label]["mean_rank"] == pytest.approx(expected)
    assert rows[TEACHER]["mean_rank"] is None


def test_the_terminal_says_it_in_80_columns_with_a_verdict(compared):
    out, done = compared
    assert max(map(len, done.out.splitlines())) <= 80
    verdict = _record(out)["verdict"]
    assert verdict["label"] == "mst"
    gain = next(row["gain"] for row in _record(out)["rows"] if row["label"] == "mst")
    relation = "clearly better than" if gain["low"] > 0 else "not clearly different from"
    assert verdict["relation"] == ("clearly worse than" if gain["high"] < 0 else relation)
    assert f"mst is {verdict['relation']} lone over 2 seeds" in " ".join(done.out.split())


def test_the_best_student_is_bold_and_the_chart_shows_every_trial(compared):
    out, _ = compared
    record = _record(out)
    students = [row for row in record["rows"] if row["role"] == "student"]
    most = max(row["mean"] for row in students)
    bold = [line for line in (out / "compare.md").read_text().splitlines() if line.startswith("| **")]
    assert [line.split("**")[1] for line in bold] == [row["label"] for row in students if row["mean"] == most]
    chart = ElementTree.parse(out / "compare.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    assert chart.tag == f"{name}svg"
    titles = [title.text for title in chart.iter(f"{name}title")]
    for row in record["rows"]:
        for seed, value in zip(record["seeds"], row["values"], strict=True):
            assert f"seed {seed}: {value:.1%}" in titles


def test_a_trial_gives_what_distill_gives_for_that_seed_even_if_killed_between(compared, recipe):
    """There all methods are trained in one process; here each in its own, and kd in two, one of them killed."""
    out, _ = compared
    done = mst_edge(
        "distill", recipe, "--out", recipe.parent / "run", "--set", "seed=1", "--set", "dataset.split.seed=1", "--json"
    )
    assert done.code == 0, done.err
    models = json.loads(done.out)["distill"]["models"]
    assert len(models) == 4
    for row in models:
        label = TEACHER if row["role"] == "teacher" else row["method"]
        ours = _tests(out)["1", label]
        assert ours == {f"{s}_{k}": str(v) for s in ("test", "val") for k, v in row[s].items()}, label
    assert len({row["test_loss"] for row in _csv(out)}) == len(_csv(out)), "two trials are the same"


def test_done_already_the_same_table_is_printed_again(compared, recipe):
    out, first = compared
    trials = {path: mark for path, mark in _marks(out).items() if "seeds" in path.parts}
    again = mst_edge("compare", recipe, *ARGUMENTS, "--out", out, COLUMNS="80")
    assert again.code == 0, again.err
    assert again.out == first.out
    assert {path: mark for path, mark in _marks(out).items() if "seeds" in path.parts} == trials


def test_each_ablation_leaves_out_what_it_says(recipe, tmp_path):
    """All rows of a whole MST-Distill, trained as the command trains them, without a process each."""
    setting = "distill.options={masked_layers: 1}"
    parsed = load_recipe(recipe, [setting, "distill.epochs={collaborate: 1, masks: 1, distill: 1}"])
    lab = make_lab(parsed, prepare(parsed, None), tmp_path / "none", torch.device("cpu"), Silent())
    rows = choose("mst", parsed, lab, with_ablations=True)
    assert [row.label for row in rows] == [
        "lone", "mst", "mst no masks", "mst no router", "mst multimodal", "mst cross-modal", "mst top_k=2",
    ]  # fmt: skip  # top_k=1 is mst itself
    taught, losses = {}, set()
    for row in rows[1:]:
        request = Request(parsed.to_dict(), row, tmp_path, None, "cpu", True)
        assert Request.from_json(request.to_json()) == request
        train(request, Silent())
        record = request.finished().record
        taught[row.label] = record["insights"]["teachers"]
        losses.add(record["test"]["loss"])
    names = {label: [row["name"] for row in teachers] for label, teachers in taught.items()}
    assert names["mst"] == names["mst no router"] == names["mst top_k=2"] == ["multimodal:fused", "facts:hidden"]
    assert names["mst no masks"] == ["multimodal", "facts"]
    assert names["mst multimodal"] == ["multimodal:fused"]
    assert names["mst cross-modal"] == ["facts:hidden"]
    assert all(row["use"] == [0.5] for row in taught["mst no router"])
    assert len(losses) == len(rows) - 1, "two rows trained the same student"


class Needy(SingleTeacher):
    """Plain distillation from the cross-modal teacher."""

    name = "needy"

    def teachers(self):
        return {"facts": self.lab.trained_teacher("facts")}

    def loss(self, student, teachers: Mapping[str, torch.Tensor], batch, epoch):
        return {"loss": self.lab.task.kd(student, teachers["facts"], 2.0)}


NEEDY = "tests.mst_edge.test_compare:Needy"


def test_methods_and_ablations_may_be_added_and_needed_teachers_are_rows_of_their_own(compared, recipe, tmp_path):
    out = shutil.copytree(compared[0], tmp_path / "out")
    finished = {path: mark for path, mark in _marks(out).items() if path.name == "trial.json"}
    more = ["--methods", f"{NEEDY},mst", "--ablations", "--seeds", "1", "--json"]
    done = mst_edge("compare", recipe, *more, "--out", out, cwd=ROOT)
    assert done.code == 0, done.err
    assert done.err == ""
    assert finished.items() <= _marks(out).items(), "a finished trial was trained again"
    record = json.loads(done.out)
    assert [row["label"] for row in record["rows"]] == [TEACHER, "facts teacher", "lone", NEEDY, "mst", "mst no masks"]
    trials = {trial["contender"]["label"]: trial for trial in record["trials"]}
    assert trials["facts teacher"]["reads"] == ["facts"]
    assert trials[NEEDY]["borrowed"] == ["facts"]
    assert [row["name"] for row in trials["mst"]["insights"]["teachers"]] == ["facts:hidden", "facts:squeeze"]
    assert [row["name"] for row in trials["mst no masks"]["insights"]["teachers"]] == ["facts"]
    assert "mst is " in record["verdict"]["text"]
    assert "over 1 seed:" in record["verdict"]["text"]
    # Lone-trained networks are shared, phases of variants are not.
    seed = out / "seeds" / "1"
    assert {path.name for path in (seed / "alone").iterdir()} == {"lone_multimodal", "lone_student", "lone_facts"}
    assert [path.parent.parent.name for path in seed.glob("*/lone_*")] == ["1"] * 3
    assert len(list(seed.glob("mst*/mst_collaborate"))) == 2
    assert len(list(seed.glob("mst*/mst_masks"))) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "0,0"], "--seeds: expected distinct seeds, received '0,0'"),
        (["--methods", "mst,kdd"], "--methods: unknown method 'kdd'; did you mean 'kd'? Known: "),
        (
            ["--set", "distill.options={mask: none, mask_lr: 0.1}", "--seeds", "0"],
            "distill.options.mask_lr: says something of masks",
        ),
    ],
)
def test_wrong_input_gives_one_line_and_nothing_is_written(recipe, tmp_path, arguments, says):
    done = mst_edge_here("compare", recipe, "--out", tmp_path / "out", *arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert says in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("said", ["", "0,,1", "-1", "1.5", "a", "0, 0"])
def test_seeds_are_distinct_whole_numbers(said):
    with pytest.raises(UserError, match="--seeds: expected"):
        parse_seeds(said)


def test_a_seed_changes_what_it_is_told_to_and_nothing_else(recipe):
    parsed = load_recipe(recipe, ["seed=5", "dataset.split.seed=6"])
    seeds = {vary: seeded(parsed, 9, parse_vary(vary)) for vary in ("both", "initialisation", "split")}
    assert {vary: (one.seed, one.dataset.split.seed) for vary, one in seeds.items()} == {
        "both": (9, 9), "initialisation": (9, 6), "split": (5, 9),
    }  # fmt: skip
    with pytest.raises(UserError, match="--vary: unknown choice 'splits'; did you mean 'split'"):
        parse_vary("splits")


def test_seeds_may_be_any_and_in_any_order():
    assert parse_seeds("7, 0,12") == (7, 0, 12)


def test_another_recipe_is_not_continued_and_other_folders_are_left_alone(compared, recipe, tmp_path):
    out, _ = compared
    marks = _marks(out)
    done = mst_edge("compare", recipe, "--out", out, "--set", "distill.batch_size=32")
    assert done.code == 2
    assert "distill.batch_size is 32, was 64" in done.err
    done = mst_edge("compare", recipe, "--out", out, "--vary", "split")
    assert done.code == 2
    assert "the comparison was begun with --vary both, not split" in done.err
    assert _marks(out) == marks
    (tmp_path / "thesis.txt").write_text("precious")
    done = mst_edge("compare", recipe, "--out", tmp_path)
    assert done.code == 2
    assert "is not empty and holds no comparison" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


class Buggy(Method):
    """A method with a bug."""

    name = "buggy"

    def train(self):
        return 1 / 0


def test_our_own_bug_in_a_trial_keeps_its_traceback_and_exits_3(compared, recipe, tmp_path):
    out = shutil.copytree(compared[0], tmp_path / "out")
    buggy = "tests.mst_edge.test_compare:Buggy"
    done = mst_edge("compare", recipe, "--methods", buggy, "--seeds", "1", "--out", out, cwd=ROOT)
    assert done.code == 3
    assert f"in {buggy}, ZeroDivisionError" in done.err
    assert "Traceback" not in done.err
    (trace,) = out.glob("traceback-*.txt")
    assert "return 1 / 0" in trace.read_text()


@pytest.fixture
def choosing(recipe, tmp_path):
    parsed = load_recipe(recipe)
    lab = make_lab(parsed, prepare(parsed, None), tmp_path / "none", torch.device("cpu"), Silent())
    return lambda said, **more: choose(said, parsed, lab, **{"with_ablations": False, **more})


def test_methods_are_the_recipes_unless_said_and_lone_is_always_in(choosing):
    assert [row.label for row in choosing(None)] == ["lone", "mst", "kd"]
    assert [row.label for row in choosing("kd")] == ["lone", "kd"]
    left_out = []
    everything = [row.label for row in choosing("all", say=left_out.append)]
    unfit = {"transkd", "vidlankd"}  # one is for maps, the other for tokens
    assert sorted(everything) == [name for name in METHODS.names() if name not in unfit]
    assert [line.partition(":")[0] for line in left_out] == ["vidlankd is left out"]
    assert everything[0] == "lone"


def test_a_preset_replaces_the_recipes_and_keeps_its_options(choosing):
    _, mst, paper = choosing("mst,mst:paper")
    assert (mst.options["mask"], paper.options["mask"]) == ("compact", "full")
    assert mst.options["teachers"] == paper.options["teachers"] == "cross_modal"
    assert mst.slug != paper.slug
    assert paper.parsed_options().kd_decay == (0.5, 30)


@pytest.mark.parametrize(
    ("said", "more", "says"),
    [
        ("mst,mst:improved", {}, "--methods: mst:improved is the same as mst here"),
        ("kd", {"with_ablations": True}, "--ablations: needs mst among the methods"),
        ("kd,,mst", {}, "--methods: expected names between commas, received .kd,,mst.; known: .*kd, lone"),
        ("kd:paper", {}, "--methods: kd has no preset 'paper'; presets: none"),
        ("mst:papr", {}, "--methods: mst has no preset 'papr'; presets: improved, paper"),
        ("mts:paper", {}, "--methods: unknown method 'mts'; did you mean 'mst'"),
        ("nowhere.mod:Class", {}, "--methods: cannot import method"),
    ],
)
def test_methods_that_make_no_sense_are_refused(choosing, said, more, says):
    with pytest.raises(UserError, match=says):
        choosing(said, **more)
