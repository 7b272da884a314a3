"""Language models of Hugging Face, end to end and offline: a RoBERTa teaches a DistilBERT that becomes a bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from apps.runtime import Bundle
from apps.runtime.tokenizer import read_tokenizer
from distill.student import load_student
from distill.training.phase import Silent
from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import checked_methods, make_lab
from tests.conftest import mst_edge
from tests.huggingface_models import DISTILBERT, ROBERTA, write_model
from tests.language_tokenizers import byte_level, word_piece
from tests.texts import make_texts, write_text_arrays

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, two models with one tokenizer, one with another, and a recipe."""
    folder = tmp_path_factory.mktemp("hf")
    write_text_arrays(folder / "data", samples=150)
    texts = make_texts(100)[0]
    tokenizer = word_piece(texts)
    write_model(folder / "models" / "student", DISTILBERT, tokenizer)
    (folder / "models" / "student" / "README.md").write_text("---\ntags: [x]\nlicense: mit\n---\nA model.\n")
    write_model(folder / "models" / "teacher", ROBERTA, tokenizer)
    write_model(folder / "models" / "other", ROBERTA, byte_level(texts), "<pad>")
    recipe = {
        "name": "hf",
        "dataset": {"path": "data"},
        "modalities": {"text": {"tokenizer": "hf:models/student", "max_tokens": 24}},
        "student": {"modality": "text", "network": "hf:models/student", "options": {"pooling": "mean"}},
        "teachers": {"unimodal": {"network": "hf:models/teacher", "options": {"pooling": "mean"}}},
        "distill": {
            "method": "kd",
            "compare": [],
            "epochs": {"collaborate": 3, "distill": 3},
            "batch_size": 16,
            "optimizer": {"lr": 0.003},
        },
        "quantize": {"schemes": ["int8-dynamic"], "sensitivity": False},
        "goals": {"accuracy": {"max_relative_drop_percent": 90}, "min_int8_speedup": 0},
        "measure": {"runtimes": ["onnxruntime"], "min_runs": 20, "min_seconds": 0.05},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    done = mst_edge("run", folder / "r.yaml", "--out", folder / "out")
    assert done.code == 0, done.err
    return folder / "out"


def test_the_bundle_answers_as_the_run_says(run, folder):
    """Texts through the bundle's tokenizer and model, against what the torch student said of the test split."""
    result = json.loads((run / "result.json").read_text())
    assert [(row["role"], row["parameters"] > 20_000) for row in result["distill"]["models"]] == [
        ("teacher", True),
        ("student", True),
    ]
    assert result["distill"]["models"][-1]["test"]["accuracy"] > 0.9
    (target,) = result["targets"]
    assert {row["precision"] for row in target["builds"]} == {"fp32", "int8"}
    ids = np.load(run / "evaluation" / "inputs.npy")
    said = np.load(run / "evaluation" / "student_answers.npy")
    texts = np.load(folder / "data" / "text.npy")
    with Bundle.open(run / "bundles" / "cpu") as bundle:
        encoded = {bundle.encode(str(text)).array.tobytes(): str(text) for text in texts}
        names = result["data"]["classes"]
        assert [names.index(bundle.predict(bundle.encode(encoded[row.tobytes()]).array).label) for row in ids] == (
            said.argmax(axis=1).tolist()
        )


def test_the_bundle_needs_no_transformers_and_no_folder_of_a_model(run, folder, tmp_path):
    copy = shutil.copytree(run / "bundles" / "cpu", tmp_path / "b")
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'tokenizers']));"
    start = f"import runpy; sys.argv = sys.argv[1:]; runpy.run_path({str(copy / 'run.py')!r}, run_name='__main__')"
    command = [sys.executable, "-I", "-c", blocked + start, "run.py", "--self-test", "--text", "smoke and flames"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "self-test passed" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["label"] == "fire"


def test_the_student_is_built_again_without_the_models_files(run, folder):
    (folder / "models").rename(folder / "gone")
    try:
        student = load_student(run / "distill")
    finally:
        (folder / "gone").rename(folder / "models")
    assert student.spec.network.network.startswith("hf:")
    assert student.spec.tokenizer == read_tokenizer(run / "bundles" / "cpu" / "tokenizer.json")
    assert json.loads(student.spec.tokenizer.to_json())["tokenizer"]["model"]["type"] == "WordPiece"


def test_the_licence_of_the_weights_is_in_the_bundle(run):
    manifest = json.loads((run / "bundles" / "cpu" / "manifest.json").read_text())
    assert manifest["licence"].endswith("initial weights: mit")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            "teachers.unimodal.network=hf:models/other",
            "teachers.unimodal.network: the weights of * were trained with another tokenizer than makes the",
        ),
        (
            "modalities.text.tokenizer=''",
            "student.network: the tokenizer has * ids, the embedding of the distilbert model",
        ),
        ("student.network=hf:./nowhere", "student.network: no such folder: ./nowhere"),
        ("student.network=hf:no one/x y", "'no one/x y' is neither a folder nor a name on the hub"),
        (
            "student.network=hf:distilbert/distilbert-base-uncased",
            "student.network: distilbert/distilbert-base-uncased is no folder, and the hub of Hugging Face cannot be "
            "reached; go online, unset HF_HUB_OFFLINE, or name a folder as save_pretrained writes it",
        ),
        ("modalities.text.tokenizer=distilbert", "tokenizer: expected hf:path-or-name, received 'distilbert'"),
        ("modalities.text.max_tokens=70", "teachers.unimodal.network: 70 tokens are more than the 65 that the roberta"),
        ("modalities.text.max_tokens=2", "modalities.text.tokenizer: the tokenizer of * max_tokens must be at least 3"),
        ("student.options={frozen: [trunk.transformer.layers]}", "student.options.frozen: unknown layer"),
        ("student.options={pooling: max}", "student.options.pooling: unknown pooling 'max'"),
        ("student.options={poling: mean}", "student.options: unknown option of HuggingFace 'poling'; did you mean 'p"),
    ],
)
def test_what_does_not_fit_is_told_before_training(folder, tmp_path, change, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = load_recipe(folder / "r.yaml", [change])
    with pytest.raises(UserError) as raised:
        checked(recipe, tmp_path / "out")
    first, _, second = says.partition(" * ")
    assert first in str(raised.value)
    assert second in str(raised.value)
    assert not (tmp_path / "out").exists()


def checked(recipe, out):
    """What a run does before it writes anything."""
    lab = make_lab(recipe, prepare(recipe, None), out, torch.device("cpu"), Silent())
    checked_methods(recipe, lab)
    return lab
