"""``mst-edge search`` and a run that begins with a search, as processes: interrupted, resumed, and with impossible
goals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, mst_edge, write_arrays, write_small_recipe

SPACE = {
    "networks": {"tcn": {"width": [0.25, 0.5]}, "transformer": {"width": 0.25, "depth": 1}},
    "initialisations": 2,
    "samples": 24,
    "finalists": 1,
    "prove": {"candidates": 2, "epochs": 2},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    distill = {"method": "kd", "compare": [], "epochs": {"collaborate": 1, "masks": 1, "distill": 1}}
    return write_small_recipe(folder / "small.yaml", write_arrays(folder / "data"), distill=distill, search=SPACE)


def _marks(folder: Path) -> dict[Path, int]:
    names = ("trial.json",)
    kept = [path for path in folder.rglob("*.json") if path.name in names or path.parent.name == "trials"]
    return {path: path.stat().st_mtime_ns for path in kept}


@pytest.fixture(scope="module")
def run(recipe):
    """A run that was interrupted while it trained its first candidate, and then continued to the trained student."""
    out = recipe.parent / "run"
    command = [sys.executable, "-m", "mst_edge", "distill", str(recipe), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 300
    while not list(out.glob("search/proved/*/multimodal-*/trial.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "interrupted; continue a run with --resume" in said
    assert not (out / "search" / "search.json").exists()
    finished = _marks(out)
    assert len(finished) == 3 + 1  # all ratings, and the teacher
    done = mst_edge("distill", recipe, "--out", out, "--resume")
    assert done.code == 0, done.err
    assert finished.items() <= _marks(out).items(), "something was done twice"
    return out, done


def test_a_run_trains_the_student_that_its_search_chose(run, recipe):
    out, done = run
    chosen = json.loads((out / "search" / "search.json").read_text())["chosen"]
    student = yaml.safe_load((out / "distill" / "student.yaml").read_text())["network"]
    assert (student["network"], student["options"]) == (chosen["network"], chosen["options"])
    result = json.loads((out / "result.json").read_text())
    assert result["search"]["chosen"] == chosen
    assert f"the search chose {chosen['label']}" in " ".join(done.out.split())
    assert f"the search chose {chosen['label']}" in (out / "report.html").read_text()
    kept = yaml.safe_load((out / "recipe.yaml").read_text())
    assert kept["search"]["networks"] == SPACE["networks"]
    assert kept["student"]["network"] == "tcn"


def test_a_search_says_what_it_found_and_what_that_is_worth(run):
    folder = run[0] / "search"
    record = json.loads((folder / "search.json").read_text())
    rows = record["rows"]
    assert record["space"] == {
        "candidates": 3,
        "rated": 3,
        "strategy": "exhaustive",
        "ended": "all candidates were rated",
    }
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    proved = [row for row in rows if row["value"] is not None]
    assert [row["label"] for row in proved] == [rows[0]["label"], rows[2]["label"]]
    assert all(row["measured"]["cpu"]["p50_ms"] > 0 for row in proved)
    assert rows[1]["measured"] is None
    (target,) = record["targets"]
    errors = [row["predicted_ms"]["cpu"] / row["measured"]["cpu"]["p50_ms"] - 1 for row in proved]
    assert target["table_error"]["candidates"] == 2
    assert target["table_error"]["median"] == pytest.approx(sum(map(abs, errors)) / 2)
    assert abs(target["table_error"]["worst"]) == pytest.approx(max(map(abs, errors)))
    assert not record["verdict"]["trusted"]
    assert "12 candidates are the least that tell" in record["verdict"]["text"]
    assert record["chosen"]["by"] == "accuracy"
    best = max(proved, key=lambda row: (row["value"], row["score"]))
    assert record["chosen"]["key"] == best["key"]
    on_front = [row for row in rows if row["front"]]
    for row in rows:
        beaten = [
            o for o in rows if o["score"] > row["score"] and o["predicted_ms"]["cpu"] < row["predicted_ms"]["cpu"]
        ]
        assert (row in on_front) == (not beaten)
    page = (folder / "search.md").read_text()
    assert all(row["label"] in page for row in rows)
    assert f"chosen: {best['label']}: the most accurate after a short training" in page
    assert (folder / "search.svg").read_text().count("<circle") >= 3
    assert yaml.safe_load((folder / "chosen.yaml").read_text())["search"] is None


@pytest.fixture(scope="module")
def impossible(recipe):
    """A search of its own, by evolution, for students faster than any, without a proof."""
    out = recipe.parent / "impossible"
    settings = ["--set", "goals.latency.p50_ms=0.0001", "--set", "search.strategy=evolution"]
    more = ["--set", "search.candidates=2", "--prove", "0", "--out", out]
    return out, settings, mst_edge("search", recipe, *settings, *more, "--json")


def test_where_no_student_meets_the_goals_the_nearest_is_taken_and_that_is_said(impossible):
    _, _, done = impossible
    assert (done.code, done.err) == (0, "")
    record = json.loads(done.out)
    assert (record["space"]["rated"], record["space"]["strategy"]) == (2, "evolution")
    assert all(row["short_by"] > 1 for row in record["rows"])
    assert record["rows"][0]["predicted_ms"]["cpu"] == min(row["predicted_ms"]["cpu"] for row in record["rows"])
    assert record["chosen"]["by"] == "score"
    assert "though it misses latency or size goals, as all do" in record["chosen"]["text"]
    assert record["verdict"] == {
        "trusted": False,
        "text": "no candidate was trained, so that nobody knows what the score is worth here; --prove 12 tells",
    }
    assert record["correlations"] == {}


def test_a_search_goes_on_with_a_larger_budget_and_not_with_another_recipe(impossible, recipe):
    out, settings, first = impossible
    again = mst_edge("search", recipe, *settings, "--out", out)
    assert again.code == 2
    assert "holds a search already; continue it with --resume, or use another --out" in again.err
    other = mst_edge("search", recipe, *settings, "--out", out, "--resume", "--set", "search.samples=25")
    assert other.code == 2
    assert "begun by another recipe: search.samples is 25, was 24" in other.err
    marks = _marks(out)
    more = ["--set", "search.candidates=3", "--prove", "0", "--resume"]
    done = mst_edge("search", recipe, *settings, "--out", out, *more)
    assert done.code == 0, done.err
    assert marks.items() <= _marks(out).items()
    record, earlier = json.loads((out / "search.json").read_text()), json.loads(first.out)
    assert record["space"]["rated"] == 3
    scores = {row["key"]: row["score"] for row in record["rows"]}
    assert all(scores[row["key"]] == row["score"] for row in earlier["rows"])
    assert "goals" in done.out
    assert "chosen: " in done.out
