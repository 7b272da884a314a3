"""VideoAdviser and routed teachers through the command line, offline: opinions in words and video to an int8 student
that reads words, to a bundle, to the app that it carries."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from quantize.variant import load_variant
from tests.conftest import mst_edge
from tests.opinions import make_opinions, write_opinions
from tests.quantizing import quantized

TEACHER = {"network": "video_prompts", "options": {"classes": 7, "width": 0.25, "frames": 4, "labels": "soft"}}
RECIPE = {
    "name": "opinions",
    "modalities": {"text": {"vocabulary": 320, "max_tokens": 16}},
    "student": {"modality": "text", "network": "text_transformer", "options": {"width": 0.5, "depth": 1}},
    "teachers": {"multimodal": TEACHER, "cross_modal": {"video": TEACHER}},
    "distill": {
        "method": "videoadviser",
        "compare": ["lone"],
        "epochs": {"collaborate": 2, "masks": 1, "distill": 4},
        "batch_size": 32,
        "optimizer": {"lr": 0.004},
    },
    "quantize": {
        "schemes": ["int8-static"],
        "sensitivity": False,
        "calibration": {"samples": 64},
    },
    "measure": {"runtimes": ["onnxruntime"], "min_runs": 20, "min_seconds": 0.05},
    # fp32 is larger, whatever is faster: int8 is packed.
    "goals": {"accuracy": {"max_relative_drop_percent": 50.0}, "min_int8_speedup": 0.0, "max_size_mb": 0.06},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("opinions")
    data = write_opinions(folder / "data", 400)
    (folder / "r.yaml").write_text(yaml.safe_dump({**RECIPE, "dataset": {"path": str(data)}}))
    return folder / "r.yaml"


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    """By VideoAdviser's own signal."""
    out = recipe.parent / "out"
    done = mst_edge("run", recipe, "--out", out)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def routed(recipe) -> Path:
    """By routed teachers, each of which has learned by step 1."""
    out = recipe.parent / "routed"
    done = mst_edge("run", recipe, "--out", out, "--set", "distill.method=mst", "--set", "distill.compare=[]")
    assert done.code == 0, done.err
    return out


@pytest.fixture(params=["run", "routed"])
def bundle(request) -> Path:
    return request.getfixturevalue(request.param) / "bundles" / "cpu"


@pytest.fixture(scope="module")
def said(recipe) -> tuple[Path, list[str], np.ndarray]:
    """A file of new opinions, the lines in it, and what they mean."""
    texts, _, _, clean = make_opinions(40, seed=9)
    (recipe.parent / "said.txt").write_text("\n".join(texts))
    return recipe.parent / "said.txt", texts.tolist(), clean


def test_the_exported_student_reads_words_alone(bundle):
    for file in [*(bundle.parents[1] / "variants").rglob("*.onnx"), *bundle.rglob("*.onnx")]:
        graph = onnx.load(file).graph  # of every precision
        assert [given.name for given in graph.input] == ["text"], file
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["input"]["name"], manifest["builds"][0]["precision"]) == ("text", "int8")


def test_all_metrics_of_the_task_are_reported(run, routed):
    rows = {}
    for folder in (run, routed):
        models = json.loads((folder / "result.json").read_text())["distill"]["models"]
        rows |= {(row["role"], row["method"]): row["test"] for row in models}
    assert {("teacher", "lone"), ("student", "lone"), ("student", "mst"), ("student", "videoadviser")} <= set(rows)
    keys = {"mae_sentiment", "pearson", "acc_rounded", "acc_sdk", "acc2_has0", "acc2_non0", "f1_has0", "f1_non0"}
    assert all(keys <= set(row) for row in rows.values())
    page = (run / "report.html").read_text()
    assert all(f">{name}</th>" in page for name in ("Acc-7", "Acc-7 (SDK)", "Acc-2 has0", "F1 non0", "MAE sentiment"))
    assert rows["student", "videoadviser"]["pearson"] > 0.5
    assert rows["student", "mst"]["pearson"] > 0.5


def test_rounding_costs_what_the_specification_allows(run, tmp_path):
    """fp32 is torch's answer to 1e-4; the mean absolute error moves by 0.005 in fp16 and 0.02 in int8 at most."""
    import onnxruntime

    inputs, truth = np.load(run / "evaluation" / "inputs.npy"), np.load(run / "evaluation" / "target.npy")[:, 0]
    fp32 = load_variant(run / "variants" / "fp32")
    wanted = np.load(run / "evaluation" / "student_logits.npy")[:, 0]
    said = {}
    made = {name: quantized(fp32, inputs[:32], tmp_path / name, name) for name in ("fp16", "int8-dynamic")}
    for name, variant in {"fp32": fp32, **made}.items():
        session = onnxruntime.InferenceSession(variant.model, providers=["CPUExecutionProvider"])
        said[name] = session.run(None, {"text": inputs})[0][:, 0].astype(np.float64)
    errors = {name: np.abs(numbers - truth).mean() for name, numbers in said.items()}
    assert np.abs(said["fp32"] - wanted).max() <= 1e-4
    assert abs(errors["fp16"] - errors["fp32"]) <= 0.005
    assert abs(errors["int8-dynamic"] - errors["fp32"]) <= 0.02


def test_the_app_says_a_number_and_its_class_of_every_line(bundle, said):
    file, texts, clean = said
    done = mst_edge("app", "triage", bundle, file, "--json")
    assert done.code == 0, done.err
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["text"] for answer in answers] == texts
    numbers = [answer["values"]["sentiment"] for answer in answers]
    assert np.corrcoef(numbers, clean)[0, 1] > 0.5
    assert [answer["ordinal_class"] for answer in answers] == np.clip(np.round(numbers), -3, 3).tolist()
    assert {answer["category"] for answer in answers} <= set(map(str, range(-3, 4)))


def test_a_bundle_on_its_own_says_the_same(bundle, said, tmp_path):
    """Nothing of ours beside it: the app that it carries, its program, and its self-test."""
    file, texts, _ = said
    wanted = mst_edge("app", "triage", bundle, file).out
    copy = shutil.copytree(bundle, tmp_path / "b")
    outputs = [
        subprocess.run([sys.executable, "-I", copy / name, *arguments], capture_output=True, text=True, check=False)
        for name, *arguments in (("app.py", file), ("run.py", "--self-test", "--text", texts[0]))
    ]
    assert [done.returncode for done in outputs] == [0, 0], outputs
    assert outputs[0].stdout == wanted
    tested, drift, answer = outputs[1].stdout.splitlines()
    assert tested.startswith("self-test passed: onnxruntime-int8")
    assert drift.startswith("correlation with the fp32 model: sentiment ")
    number, category = re.search(r"sentiment (\S+) \(class (\S+)\)", answer).groups()
    assert wanted.splitlines()[0].split()[1:4] == ["sentiment", f"{float(number):.3f}", category]


def test_a_label_off_the_scale_ends_the_run_with_one_line(tmp_path):
    data = write_opinions(tmp_path / "data", 40)
    target = np.load(data / "target.npy")
    target[7] = 3.5
    np.save(data / "target.npy", target)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**RECIPE, "dataset": {"path": str(data)}}))
    done = mst_edge("run", tmp_path / "r.yaml", "--out", tmp_path / "out")
    assert done.code == 2
    assert "label 3.5 of sample 7 is out of the ordinal range -3..3" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
