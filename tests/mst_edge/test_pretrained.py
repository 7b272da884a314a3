"""Teachers that come trained: files that one run leaves and another recipe names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from distill.training.phase import Silent
from mst_edge.cli.app import app
from mst_edge.compare.comparison import CompareOptions, compare
from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import checked_methods, make_lab
from tests.conftest import write_small_recipe, write_vectors

SHORT = {"collaborate": 2, "masks": 1, "distill": 2}
TEACHERS = {"multimodal": {"network": "fusion", "options": {"hidden": 16}}, "cross_modal": {"b": {"network": "mlp"}}}


def _distill(recipe: Path, out: Path, *more: str) -> dict:
    app(["distill", str(recipe), "--out", str(out), "--device", "cpu", *more], standalone_mode=False)
    return json.loads((out / "result.json").read_text())


def _recipe(path: Path, data: Path, **changes: object) -> Path:
    return write_small_recipe(path, data, **{"student": {"modality": "a"}, "teachers": TEACHERS, **changes})


def _lab(recipe: Path, folder: Path):
    parsed = load_recipe(recipe)
    lab = make_lab(parsed, prepare(parsed, None), folder, torch.device("cpu"), Silent())
    return lab, checked_methods(parsed, lab)


def _other_weights(file: Path) -> None:
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    about = yaml.safe_load(file.with_suffix(".yaml").read_text())
    file.with_suffix(".yaml").write_text(yaml.safe_dump({**about, "weights_sha256": ""}))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run on three modalities that trains its multimodal teacher and the one that reads b."""
    folder = tmp_path_factory.mktemp("first")
    data = write_vectors(folder / "data", modalities=3)
    said = {"method": "kd", "options": {"teacher": "b"}, "compare": ["lone"], "epochs": SHORT}
    _distill(_recipe(folder / "r.yaml", data, distill=said), folder / "out")
    return folder


@pytest.fixture
def second(first, tmp_path):
    """Writes a recipe that names the first run's teachers, copied to ``teachers`` beside it."""
    shutil.copytree(first / "out" / "distill" / "teachers", tmp_path / "teachers")

    def write(**changes: object) -> Path:
        teachers = {
            "multimodal": {"weights": "teachers/multimodal.safetensors"},
            "cross_modal": {"b": {"weights": "teachers/b.safetensors"}, "c": {"network": "mlp"}},
        }
        distill = {"method": "mst", "compare": ["kd", "c2kd"], "epochs": SHORT}
        return _recipe(tmp_path / "r.yaml", first / "data", **{"teachers": teachers, "distill": distill, **changes})

    return write


def test_a_run_leaves_its_lone_trained_teachers_with_what_they_read_and_answer(first):
    folder = first / "out" / "distill" / "teachers"
    assert {path.name for path in folder.iterdir()} == {
        "multimodal.safetensors", "multimodal.yaml", "b.safetensors", "b.yaml",
    }  # fmt: skip
    about = yaml.safe_load((folder / "multimodal.yaml").read_text())
    assert list(about["reads"]) == ["a", "b", "c"]
    assert about["classes"] == ["0", "1", "2"]
    assert about["network"] == {"network": "fusion", "options": {"hidden": 16}}
    train = np.load(first / "data" / "b.npy")
    assert about["reads"]["b"]["frontend"] == "VectorScale"
    assert np.allclose(-np.array(about["reads"]["b"]["shift"]) / about["reads"]["b"]["scale"], train.mean(0), atol=0.3)


def test_trained_teachers_are_loaded_in_place_of_being_trained(first, second, tmp_path):
    result = _distill(second(), tmp_path / "out")
    folder = tmp_path / "out" / "distill"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "kd", "c2kd", "mst_collaborate", "mst_masks", "mst",
    }  # fmt: skip
    teacher, before = (r["distill"]["models"][0] for r in (result, json.loads((first / "out/result.json").read_text())))
    assert teacher["role"] == "teacher"
    assert teacher["test"] == before["test"]
    assert teacher["phases"] == []
    names = {row["name"].split(":")[0] for row in result["distill"]["insights"]["mst"]["teachers"]}
    assert names == {"multimodal", "b", "c"}
    # Stage 1 trains the student and the teacher that was not trained yet, for as long as ever.
    history = json.loads((folder / "mst_collaborate" / "history.json").read_text())
    assert len(history) == SHORT["collaborate"]
    assert {name for name in history[0] if name.startswith("task_")} == {"task_student", "task_c"}
    assert history[0]["mutual"] > 0
    states = set(load_file(folder / "mst_collaborate" / "final.safetensors"))
    assert {name.split("/")[0] for name in states} == {"student", "c"}
    assert "trained on another split" not in (tmp_path / "out" / "report.html").read_text()


def test_with_trained_teachers_alone_the_student_learns_from_them_in_stage_1(first, second, tmp_path):
    only = {"method": "mst", "compare": [], "epochs": SHORT, "options": {"teachers": "multimodal"}}
    _distill(second(distill=only), tmp_path / "out")
    phase = tmp_path / "out" / "distill" / "mst_collaborate"
    assert {name.split("/")[0] for name in load_file(phase / "final.safetensors")} == {"student"}
    assert json.loads((phase / "history.json").read_text())[0]["mutual"] > 0


def test_a_trained_teacher_sees_the_features_that_it_was_trained_on_whatever_the_split(first, second, tmp_path):
    there, _ = _lab(first / "r.yaml", first / "out" / "distill")
    other = second(dataset={"path": str(first / "data"), "split": {"seed": 5}})
    here, _ = _lab(other, tmp_path / "none")
    assert not np.array_equal(there.store.splits["train"], here.store.splits["train"])
    ids = np.arange(len(there.store.dataset))
    answers = []
    for lab in (there, here):
        teacher = lab.trained_teacher("multimodal")
        answers.append(teacher(lab.store.gather(ids, teacher.reads, torch.device("cpu")).inputs))
    assert torch.equal(*answers)
    result = _distill(other, tmp_path / "out", "--set", "distill={method: kd, compare: [], epochs: {collaborate: 1}}")
    said = [row["text"] for row in result["distill"]["diagnoses"] if row["level"] == "warning"]
    assert any("the multimodal teacher comes from" in text and "may have seen samples" in text for text in said)


def test_a_description_by_hand_needs_modalities_and_classes_only(second, tmp_path):
    save_file(load_file(tmp_path / "teachers/b.safetensors"), tmp_path / "mine.safetensors")
    (tmp_path / "mine.yaml").write_text("reads: {b: {}}\nclasses: ['0', '1', '2']\n")
    recipe = second(teachers={"cross_modal": {"b": {"network": "mlp", "weights": "mine.safetensors"}}})
    lab, _ = _lab(recipe, tmp_path / "none")
    assert not lab.trained_teacher("b").module.training


def test_a_run_is_not_continued_with_other_weights(second, tmp_path):
    recipe = second(distill={"method": "kd", "compare": [], "epochs": SHORT})
    _distill(recipe, tmp_path / "out")
    (tmp_path / "out" / "stages" / "distill.json").unlink()
    _other_weights(tmp_path / "teachers" / "multimodal.safetensors")
    with pytest.raises(UserError, match=r"teachers\.multimodal\.weights: .* changed since .*/distill was begun"):
        _distill(recipe, tmp_path / "out", "--resume")


def test_a_comparison_is_not_continued_with_other_weights(second, tmp_path):
    recipe = second(distill={"method": "kd", "compare": [], "epochs": SHORT})
    options = CompareOptions("kd", (0,), "both", ablations=False, data_root=None, device="cpu", quiet=True)
    compare(load_recipe(recipe), tmp_path / "out", options, str)
    _other_weights(tmp_path / "teachers" / "multimodal.safetensors")
    with pytest.raises(UserError, match=r"teachers\.multimodal\.weights: .* changed since .*/out was begun"):
        compare(load_recipe(recipe), tmp_path / "out", replace(options, seeds=(0, 1)), str)


def _describe(name, change):
    def edit(folder):
        path = folder / f"{name}.yaml"
        about = yaml.safe_load(path.read_text())
        change(about)
        path.write_text(yaml.safe_dump(about))

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda folder: (folder / "b.safetensors").unlink(), r"cross_modal\.b\.weights: no such file: .*b\.safe"),
        (lambda folder: (folder / "b.yaml").unlink(), r"b\.yaml is missing, which says what the weights read"),
        (lambda folder: (folder / "b.yaml").write_text("read: [b]"), r"b\.yaml: unknown key 'read'; did you mean"),
        (lambda folder: (folder / "b.safetensors").write_bytes(b"x"), r"holds other weights than b\.yaml describes"),
        (
            _describe("b", lambda about: about.update(classes=["yes", "no"])),
            r"b\.safetensors answers with 2 classes \(yes, no\), but the data has 3 classes \(0, 1, 2\)",
        ),
        (
            _describe("b", lambda about: about.update(classes=["1", "0", "2"])),
            r"answers with 3 classes \(1, 0, 2\), but the data has 3 classes \(0, 1, 2\); .* in the same order",
        ),
        (
            _describe("multimodal", lambda about: about["reads"].pop("c")),
            r"multimodal\.safetensors reads a \+ b, but this teacher has to read a \+ b \+ c",
        ),
        (
            _describe("b", lambda about: about["reads"]["b"].update(frontend="LogMel", options={"mels": 64})),
            r"was trained on LogMel \{'mels': 64\} of b, but this recipe makes VectorScale \{\}; set modalities\.b",
        ),
        (
            _describe("b", lambda about: about["reads"]["b"].update(scale=[1.0] * 9, shift=[0.0] * 9)),
            r"was trained on other b: 9 features, but the data has 6",
        ),
        (
            _describe("b", lambda about: about["reads"]["b"].update(scale=[1.0] * 6)),
            r"b\.safetensors and another teacher were trained on b that was prepared differently",
        ),
        (
            _describe("b", lambda about: about["network"].update(options={"width": 2.0})),
            r"tensor 'hidden\.\S+' is \(\S+ ?\S*\) in b\.safetensors and is \(\S+ ?\S*\) in network 'mlp'",
        ),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_trained(second, tmp_path, edit, says):
    recipe = second()
    edit(tmp_path / "teachers")
    with pytest.raises(UserError, match=says):
        _distill(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_contradicts_the_file_is_refused(second, tmp_path):
    teachers = {"cross_modal": {"b": {"network": "tcn", "weights": "teachers/b.safetensors"}}}
    with pytest.raises(UserError, match=r"holds weights of mlp \{\}, not of tcn \{\}; leave network and options out"):
        _lab(second(teachers=teachers), tmp_path / "none")
