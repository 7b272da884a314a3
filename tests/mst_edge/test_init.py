"""``mst-edge init``: your own data, in each of its layouts, to a recipe that runs."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from distill.datasets.files import FilesOptions, open_any
from distill.datasets.spec import Kind
from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from tests.conftest import mst_edge, mst_edge_here, write_arrays

SHORT = ("--set", "distill.epochs={collaborate: 1, masks: 1, distill: 1}", "--set", "measure.min_seconds=0.05")
FEW = ("--set", "measure.runtimes=[onnxruntime]", "--set", "quantize.schemes=[int8-static]")
LOOSE = ("--set", "goals={accuracy: {max_relative_drop_percent: 90}, min_int8_speedup: 0}")


def _sound(path, label, index, rate=8000):
    rng = np.random.default_rng(index)
    time = np.arange(rate // 2) / rate
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 300 * (1 + label) * time) + rng.normal(0, 0.05, len(time)), rate)


def _picture(path, label, index):
    rng = np.random.default_rng(index)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 80, (20, 24))
    pixels[:, label * 8 : label * 8 + 8] += 150
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_arrays_become_a_recipe_that_runs(tmp_path):
    data = write_arrays(tmp_path / "my data")
    done = mst_edge_here("init", data, "--student", "signal", "--out", tmp_path / "r.yaml")
    assert done.code == 0, done.err
    assert "240 samples, 3 classes" in done.out
    assert "signal: sequence (40, 3) float32" in done.out
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.student.network == "tcn"
    assert recipe.teachers.cross_modal["facts"].network == "mlp"
    assert (tmp_path / "r.yaml").read_text().count("#") > 8
    done = mst_edge("run", tmp_path / "r.yaml", "--out", tmp_path / "out", *SHORT, *FEW, *LOOSE)
    assert done.code == 0, done.err


@pytest.mark.parametrize("layout", ["class/stem", "modality/class"])
def test_class_folders_become_a_recipe_that_runs(tmp_path, layout):
    data = tmp_path / "animals"
    for label, name in enumerate(("cat", "dog", "owl")):
        for index in range(20):
            stem = f"{name}/{index}" if layout == "class/stem" else f"{{}}/{name}/{index}"
            _sound(data / f"{stem.format('voice')}.wav", label, index)
            _picture(data / f"{stem.format('photo')}.png", label, index)
    done = mst_edge(
        "init", data, "--student", "audio" if layout == "class/stem" else "voice", "--out", tmp_path / "r.yaml"
    )
    assert done.code == 0, done.err
    recipe = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert recipe["dataset"]["path"] == "animals"
    wanted = {"image_channels": 1, "image_size": [20, 24], "sample_rate_hz": 8000, "seconds": 0.5}
    assert recipe["dataset"]["options"] == wanted
    if layout == "modality/class":  # read as the other is
        done = mst_edge("run", tmp_path / "r.yaml", "--dry-run")
        assert done.code == 0, done.err
        return
    done = mst_edge("run", tmp_path / "r.yaml", "--out", tmp_path / "out", *SHORT, *FEW, *LOOSE)
    assert done.code == 0, done.err
    manifest = json.loads((tmp_path / "out" / "bundles" / "cpu" / "manifest.json").read_text())
    assert manifest["labels"] == ["cat", "dog", "owl"]
    assert manifest["input"]["shape"] == [4000]
    done = mst_edge("predict", tmp_path / "out" / "bundles" / "cpu", next(data.rglob("cat/*.wav")))
    assert done.code == 0, done.err


def _table(path, rows, columns):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def table(tmp_path):
    rows = []
    for index in range(60):
        label = index % 3
        _picture(tmp_path / "files" / f"{index}.png", label, index)
        np.save(tmp_path / "files" / f"{index}.npy", np.full(5, label, np.float32) + index * 0.01)
        rows.append(
            {"photo": f"files/{index}.png", "facts": f"files/{index}.npy", "target": "abc"[label], "group": index // 6}
        )
    _table(tmp_path / "table.csv", rows, ["photo", "facts", "target", "group"])
    return tmp_path / "table.csv", rows


def test_a_csv_is_a_dataset_with_groups(table):
    path, _ = table
    dataset = open_any(path, FilesOptions())
    assert dataset.modalities["photo"].kind is Kind.IMAGE
    assert dataset.modalities["photo"].shape == (20, 24)
    assert dataset.modalities["facts"].kind is Kind.VECTOR
    assert dataset.classes == ("a", "b", "c")
    assert dataset.groups["group"].tolist() == [str(index // 6) for index in range(60)]


def test_a_csv_becomes_a_recipe(table, tmp_path):
    path, _ = table
    done = mst_edge_here("init", path, "--student", "photo", "--out", tmp_path / "r.yaml")
    assert done.code == 0, done.err
    assert "grouped by group: 10 groups, never parted" in done.out
    assert load_recipe(tmp_path / "r.yaml").dataset.split.by == "group"
    assert mst_edge("run", tmp_path / "r.yaml", "--dry-run").code == 0


def test_a_csv_may_bring_its_split(table, tmp_path):
    path, rows = table
    for row, split in zip(rows, ["train"] * 36 + ["val"] * 12 + ["test"] * 12, strict=True):
        row["split"] = split
    _table(path, rows, ["photo", "facts", "target", "group", "split"])
    assert open_any(path, FilesOptions()).explicit_split.tolist() == [0] * 36 + [1] * 12 + [2] * 12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[4].update(photo=""), r"table\.csv:6: column photo is empty"),
        (lambda rows: rows[4].update(photo="none.png"), r"table\.csv:6: no such file: none\.png"),
        (lambda rows: rows[4].update(target=" "), r"table\.csv:6: column target is empty"),
        (lambda rows: rows[4].update(photo="files/3.npy"), r"3\.npy: is of another type than 0\.png"),
        (lambda rows: rows.clear(), "holds no rows"),
    ],
)
def test_a_wrong_row_is_told_by_its_number(table, change, says):
    path, rows = table
    change(rows)
    _table(path, rows, ["photo", "facts", "target", "group"])
    with pytest.raises(UserError, match=says):
        open_any(path, FilesOptions())


def test_a_csv_without_target_or_files_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("photo,klass\na.png,1\n")
    with pytest.raises(UserError, match="has no column target; its columns: photo, klass"):
        open_any(tmp_path / "t.csv", FilesOptions())
    (tmp_path / "t.csv").write_text("target\n1\n")
    with pytest.raises(UserError, match="has no column of files"):
        open_any(tmp_path / "t.csv", FilesOptions())


def test_a_sample_that_lacks_a_modality_is_named(tmp_path):
    for index in range(4):
        _sound(tmp_path / "d" / "cat" / f"{index}.wav", 0, index)
        _picture(tmp_path / "d" / "cat" / f"{index}.png", 0, index)
    (tmp_path / "d" / "cat" / "2.png").unlink()
    with pytest.raises(UserError, match="sample cat/2 has no image file"):
        open_any(tmp_path / "d", FilesOptions())


@pytest.mark.parametrize("suffix", [".wav", ".png"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    for index in range(4):
        _sound(tmp_path / "d" / "cat" / f"{index}.wav", 0, index)
        _picture(tmp_path / "d" / "cat" / f"{index}.png", 0, index)
    (tmp_path / "d" / "cat" / f"2{suffix}").write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"2\{suffix}: (cannot be decoded|not a picture)"):
        open_any(tmp_path / "d", FilesOptions(8000, 0.5, (20, 24), 1))


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MST_EDGE_CACHE", str(tmp_path / "cache"))
    _picture(tmp_path / "d" / "cat" / "0.png", 0, 0)
    (tmp_path / "d" / "cat" / "1.png").write_bytes((tmp_path / "d" / "cat" / "0.png").read_bytes()[:80])
    with pytest.raises(UserError, match=r"1\.png"):
        open_any(tmp_path / "d", FilesOptions(image_size=(8, 8), image_channels=1))
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_changed_files_are_converted_again(tmp_path):
    for index in range(3):
        _picture(tmp_path / "d" / "cat" / f"{index}.png", 0, index)
    first = open_any(tmp_path / "d", FilesOptions())
    assert open_any(tmp_path / "d", FilesOptions()).root == first.root
    _picture(tmp_path / "d" / "cat" / "1.png", 2, 99)
    assert open_any(tmp_path / "d", FilesOptions()).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (lambda: FilesOptions(image_size=(3,)), "image_size must be"),
        (lambda: FilesOptions(image_channels=2), "image_channels must be 1 or 3"),
        (lambda: FilesOptions(seconds=-1), "must be positive"),
    ],
)
def test_wrong_options_are_told(options, says):
    with pytest.raises(UserError, match=says):
        options()


def test_init_asks_for_the_students_modality(tmp_path):
    data = write_arrays(tmp_path / "d")
    done = mst_edge_here("init", data, "--out", tmp_path / "r.yaml")
    assert done.code == 2
    assert "which modality will the device have?; give --student, one of: facts, signal" in done.err
    assert not (tmp_path / "r.yaml").exists()
    assert (
        "did you mean 'signal'" in mst_edge_here("init", data, "--student", "singal", "--out", tmp_path / "r.yaml").err
    )


def test_init_does_not_overwrite_unasked(tmp_path):
    data = write_arrays(tmp_path / "d")
    (tmp_path / "r.yaml").write_text("precious")
    assert mst_edge_here("init", data, "--student", "facts", "--out", tmp_path / "r.yaml").code == 2
    assert (tmp_path / "r.yaml").read_text() == "precious"
    assert mst_edge_here("init", data, "--student", "facts", "--out", tmp_path / "r.yaml", "--force").code == 0


def test_init_of_one_modality_trains_alone(tmp_path):
    data = write_arrays(tmp_path / "d")
    (data / "facts.npy").unlink()
    assert mst_edge_here("init", data, "--out", tmp_path / "r.yaml").code == 0
    done = mst_edge(
        "distill",
        tmp_path / "r.yaml",
        "--out",
        tmp_path / "out",
        "--set",
        "distill.epochs={collaborate: 1, distill: 1}",
    )
    assert done.code == 0, done.err


def test_sound_without_a_known_rate_is_told(tmp_path):
    data = write_arrays(tmp_path / "d", audio=np.zeros((240, 2000), np.int16))
    done = mst_edge_here("init", data, "--student", "audio", "--out", tmp_path / "r.yaml")
    assert done.code == 2
    assert "its sample rate is not known" in done.err
    assert "sample_rate_hz: 16000" in done.err


def test_init_of_nothing_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds neither target.npy" in mst_edge_here("init", tmp_path / "empty").err
    assert "no such folder or CSV file" in mst_edge_here("init", tmp_path / "none").err
