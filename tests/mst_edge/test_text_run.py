"""Texts, end to end through the command line: a table to a bundle that labels texts without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from apps.runtime import Bundle, BundleError, read_sample
from apps.runtime.tokenizer import read_tokenizer
from distill.training.phase import Silent
from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import make_lab, make_method
from tests.conftest import mst_edge, write_arrays, write_small_recipe
from tests.texts import make_texts, write_text_arrays, write_text_table

LOOSE = (
    "--set",
    "goals={accuracy: {max_relative_drop_percent: 90}, min_int8_speedup: 0}",
    "--set",
    "measure={min_runs: 20, min_seconds: 0.05}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``init`` of a CSV, then a run with a larger teacher beside."""
    folder = tmp_path_factory.mktemp("text")
    table = write_text_table(folder / "warnings.csv")
    done = mst_edge("init", table, "--out", folder / "r.yaml")
    assert done.code == 0, done.err
    assert "text: text up to " in done.out
    recipe = yaml.safe_load((folder / "r.yaml").read_text())
    assert recipe["modalities"]["text"]["max_tokens"] % 8 == 0
    assert recipe["student"]["network"] == "text_bag"
    recipe["teachers"] = {"unimodal": {"network": "text_transformer", "options": {"width": 0.5}}}
    recipe["distill"] = {
        "method": "kd",
        "compare": ["lone"],
        "epochs": {"collaborate": 4, "distill": 6},
        "optimizer": {"lr": 0.01},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = mst_edge("run", folder / "r.yaml", "--out", folder / "out", *LOOSE)
    assert done.code == 0, done.err
    assert "unimodal teacher" in done.out
    return folder / "out"


@pytest.fixture
def bundle(run):
    return run / "bundles" / "cpu"


def test_it_learns_and_says_who_taught(run):
    result = json.loads((run / "result.json").read_text())
    assert [(row["role"], row["reads"]) for row in result["distill"]["models"]] == [
        ("teacher", ["text"]),
        ("student", ["text"]),
        ("student", ["text"]),
    ]
    assert result["distill"]["models"][-1]["test"]["accuracy"] > 0.9
    assert "unimodal teacher" in (run / "report.html").read_text()


def test_every_build_agrees_with_torch(run):
    (target,) = json.loads((run / "result.json").read_text())["targets"]
    assert {row["precision"] for row in target["builds"]} >= {"fp32", "int8"}
    for row in target["builds"]:
        assert row["parity"] < min(row["parity_limit"], 0.6)


def test_the_bundle_carries_its_tokenizer_under_a_checksum(bundle, tmp_path):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["input"]["tokenizer"] == "tokenizer.json"
    assert len(manifest["files"]["tokenizer.json"]) == 64
    copy = shutil.copytree(bundle, tmp_path / "b")
    changed = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**changed, "lower_case": False}))
    with pytest.raises(BundleError, match=r"file tokenizer\.json was changed"):
        Bundle.open(copy)
    del manifest["files"]["tokenizer.json"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"tokenizer\.json has no checksum"):
        Bundle.open(copy)


def test_texts_files_and_lines_are_labelled(bundle, tmp_path):
    (tmp_path / "two.txt").write_text("the river flooded Houston\n\nlovely coffee at Köln\n", encoding="utf-8")
    done = mst_edge("predict", bundle, bundle / "examples" / "fire.txt", "--text", "THE RIVER FLOODED Köln", "--json")
    assert done.code == 0, done.err
    assert [json.loads(line)["label"] for line in done.out.splitlines()] == ["fire", "flood"]
    done = mst_edge("predict", bundle, tmp_path / "two.txt", "--lines", "--json")
    said = {record["file"]: record["label"] for record in map(json.loads, done.out.splitlines())}
    assert said == {f"{tmp_path / 'two.txt'}:1": "flood", f"{tmp_path / 'two.txt'}:3": "calm"}
    assert "nothing to answer" in mst_edge("predict", bundle).err


def test_the_bundle_needs_neither_torch_nor_us(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "b")
    done = subprocess.run(
        [sys.executable, "-I", copy / "run.py", "--self-test", "--text", "smoke and flames over Solano", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "self-test passed" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["label"] == "fire"


def test_triage_says_what_the_offline_evaluation_said(run, bundle):
    """Of the test split, out of the table that the run was made from."""
    test = np.load(run / "evaluation" / "inputs.npy")
    ids = read_tokenizer(bundle / "tokenizer.json").encode_all(make_texts()[0])
    done = mst_edge("app", "triage", bundle, run.parent / "warnings.csv", "--json")
    assert done.code == 0, done.err
    said = [json.loads(line) for line in done.out.splitlines()]
    labels = json.loads((bundle / "manifest.json").read_text())["labels"]
    offline = [labels[k] for k in np.load(run / "evaluation" / "student_logits.npy").argmax(axis=1)]
    rows = [int(np.flatnonzero((ids == sample).all(axis=1))[0]) for sample in test]
    assert len(rows) > 40
    assert [said[row]["category"] for row in rows] == offline


def test_odd_texts_are_labelled_and_remarked_on(bundle, tmp_path):
    with Bundle.open(bundle) as opened:
        assert opened.encode("").notes == ("the text is empty",)
        assert "its end was not read" in opened.encode("fire " * 500).notes[0]
        for text in ("", "\x00\ud83d\u202e", "🔥" * 5000, "fire " * 500):
            assert sum(opened.predict(opened.encode(text).array).probabilities.values()) == pytest.approx(1)
        (tmp_path / "latin.txt").write_bytes("Köln brennt".encode("latin-1"))
        sample = opened.read(tmp_path / "latin.txt")
        assert sample.notes == ("latin.txt is not UTF-8 throughout: what is not was replaced",)
        assert sample.array.tolist() == opened.encode("K\ufffdln brennt").array.tolist()
        for name, content, says in (("a.txt", b"a\0b", "not a text"), ("none.txt", None, "no such file")):
            if content is not None:
                (tmp_path / name).write_bytes(content)
            with pytest.raises(BundleError, match=says):
                opened.read(tmp_path / name)
        np.save(tmp_path / "ids.npy", np.full(opened.manifest.input.shape, 10**6))
        with pytest.raises(BundleError, match="not a text"):
            opened.read(tmp_path / "ids.npy")


def test_a_file_that_is_no_text_does_not_stop_the_others(bundle, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\0")
    done = mst_edge("predict", bundle, tmp_path / "bad.txt", bundle / "examples" / "calm.txt")
    assert done.code == 2
    assert "bad.txt: is not a text in UTF-8" in done.err
    assert "calm.txt" in done.out


def test_a_student_of_something_else_takes_no_text(finished_run):
    with Bundle.open(finished_run / "bundles" / "cpu") as opened:
        with pytest.raises(BundleError, match="its student reads sequence, not text"):
            opened.encode("hello")
        with pytest.raises(BundleError, match=r"read from \.npy files"):
            read_sample("x.txt", opened.manifest.input)


def _recipe(tmp_path, data, **changes):
    path = tmp_path / "r.yaml"
    path.write_text(
        yaml.safe_dump({"name": "x", "dataset": {"path": str(data)}, "student": {"modality": "text"}, **changes})
    )
    return path


def test_one_modality_needs_an_ordinary_teacher(tmp_path):
    data = write_text_arrays(tmp_path / "d")
    with pytest.raises(UserError, match=r"the dataset has one modality \(text\).*name a larger network as teachers"):
        prepare(load_recipe(_recipe(tmp_path, data)), None)
    teachers = {"multimodal": {"network": "text_transformer"}}
    with pytest.raises(UserError, match=r"teachers\.multimodal: the dataset has one modality.*use teachers\.unimodal"):
        prepare(load_recipe(_recipe(tmp_path, data, teachers=teachers)), None)


def test_mst_says_that_it_needs_two_modalities(tmp_path):
    data = write_text_arrays(tmp_path / "d")
    recipe = load_recipe(_recipe(tmp_path, data, teachers={"unimodal": {"network": "text_bag"}}))
    lab = make_lab(recipe, prepare(recipe, None), tmp_path / "out", torch.device("cpu"), Silent())
    assert make_method(recipe, lab, "kd").teacher == "unimodal"
    with pytest.raises(
        UserError, match=r"distill\.method: MST-Distill needs at least two modalities, the data has one"
    ):
        make_method(recipe, lab, "mst")


def test_a_method_that_finds_no_teacher_says_so(tmp_path):
    """As ``mst-edge compare --methods kd`` of a recipe that trains a lone student."""
    data = write_text_arrays(tmp_path / "d")
    recipe = load_recipe(_recipe(tmp_path, data, distill={"method": "lone", "compare": []}))
    lab = make_lab(recipe, prepare(recipe, None), tmp_path / "out", torch.device("cpu"), Silent())
    with pytest.raises(UserError, match=r"teachers\.unimodal: the data has one modality and no teacher is named"):
        make_method(recipe, lab, "kd")


def test_a_trained_text_teacher_brings_its_tokenizer(run, tmp_path):
    """To data whose own training texts would have given another one."""
    (weights,) = (run / "distill").glob("teachers/*.safetensors")
    earlier = yaml.safe_load((run.parent / "r.yaml").read_text())
    data = write_text_arrays(tmp_path / "d", samples=60)
    recipe = load_recipe(
        _recipe(
            tmp_path,
            data,
            modalities=earlier["modalities"],
            teachers={"unimodal": {"weights": str(weights)}},
            distill={"method": "kd"},
        )
    )
    prepared = prepare(recipe, None)
    lab = make_lab(recipe, prepared, tmp_path / "out", torch.device("cpu"), Silent())
    assert prepared.frontends["text"].tokenizer == read_tokenizer(run / "distill" / "tokenizer.json")
    teacher = lab.trained_teacher("unimodal")
    assert lab.evaluate(teacher, "test")["accuracy"] > 0.8


def test_several_modalities_have_no_unimodal_teacher(tmp_path):
    data = write_arrays(tmp_path / "d")
    recipe = write_small_recipe(tmp_path / "r.yaml", data, teachers={"unimodal": {"network": "tcn"}})
    with pytest.raises(UserError, match=r"teachers\.unimodal: the dataset has 2 modalities \(facts, signal\)"):
        prepare(load_recipe(recipe), None)


def test_text_is_one_modality_among_others(tmp_path):
    """MST-Distill from text and numbers to a student that reads text."""
    folder = write_text_arrays(tmp_path / "d")
    target = np.unique(np.load(folder / "target.npy"), return_inverse=True)[1]
    rng = np.random.default_rng(0)
    np.save(folder / "facts.npy", (rng.normal(size=(3, 8))[target] + rng.normal(size=(240, 8))).astype(np.float32))
    recipe = write_small_recipe(tmp_path / "r.yaml", folder, student={"modality": "text", "network": "auto"})
    parsed = load_recipe(recipe, ["distill.epochs={collaborate: 1, masks: 1, distill: 1}"])
    lab = make_lab(parsed, prepare(parsed, None), tmp_path / "out", torch.device("cpu"), Silent())
    student = make_method(parsed, lab, "mst").train()
    assert student.network == "text_bag"
    assert torch.isfinite(lab.logits(student, "test")).all()
