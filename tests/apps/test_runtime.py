"""The bundle format and the runtime that a device carries."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from apps.runtime import Bundle, BundleError, memory_mb, read_sample
from apps.runtime import engines as engines_module
from apps.runtime.answers import softmax
from apps.runtime.manifest import InputSpec, inside


@pytest.fixture
def bundle_folder(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run / "bundles" / "cpu", tmp_path / "bundle"))


def _edit(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_five_lines_are_enough(bundle_folder):
    with Bundle.open(bundle_folder) as bundle:
        said = bundle.predict(np.zeros((40, 3), np.float32))
    assert said.label in ("0", "1", "2")
    assert sum(said.probabilities.values()) == pytest.approx(1)
    assert said.confidence == max(said.probabilities.values())


def test_the_self_test_reproduces_the_reference(bundle_folder):
    with Bundle.open(bundle_folder) as bundle:
        assert bundle.self_test() <= bundle.build.tolerance


def test_a_device_that_computes_something_else_fails_the_self_test(bundle_folder):
    with Bundle.open(bundle_folder) as bundle:
        reference = bundle_folder / bundle.build.reference_outputs
        np.save(reference, np.load(reference) + 100)
        with pytest.raises(BundleError, match="is off by 1.* on the reference inputs"):
            bundle.self_test()
        np.save(reference, np.load(reference) * np.nan)
        with pytest.raises(BundleError, match="is off by nan"):
            bundle.self_test()


@pytest.mark.parametrize("file", ["run.py", "README.md", "reference/inputs.npy", "apps/runtime/engines.py"])
def test_a_changed_file_is_refused_by_name(bundle_folder, file):
    with (bundle_folder / file).open("ab") as changed:
        changed.write(b" ")
    with pytest.raises(BundleError, match=f"file {file} was changed"):
        Bundle.open(bundle_folder)


def test_a_changed_model_is_refused_by_name(bundle_folder):
    model = next(path for path in (bundle_folder / "models").rglob("*") if path.is_file())
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"file models/\S+ was changed"):
        Bundle.open(bundle_folder)


def test_a_missing_file_is_refused_by_name(bundle_folder):
    (bundle_folder / "run.py").unlink()
    with pytest.raises(BundleError, match=r"file run\.py is missing; copy the bundle again"):
        Bundle.open(bundle_folder)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "..", "C:\\x", "a\\..\\b", "file:///x"])
def test_paths_cannot_leave_the_bundle(tmp_path, name):
    with pytest.raises(BundleError, match="outside the bundle"):
        inside(tmp_path, name)


def test_links_cannot_leave_the_bundle(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("secret")
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "x").symlink_to(outside)
    with pytest.raises(BundleError, match="link that leads out"):
        inside(folder, "x")


def test_a_manifest_that_points_outside_is_refused(bundle_folder):
    _edit(bundle_folder, lambda m: m["builds"][0].update(model="../../etc/passwd"))
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.open(bundle_folder)


def test_a_model_without_a_checksum_is_refused(bundle_folder):
    _edit(bundle_folder, lambda m: m["files"].pop(m["builds"][0]["model"]))
    with pytest.raises(BundleError, match="has no checksum"):
        Bundle.open(bundle_folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(format="other"), "not a manifest of format mst-edge-bundle"),
        (lambda m: m.update(version=99), "is of version 99, this runtime reads version 3"),
        (lambda m: m.pop("labels"), "lacks or misstates 'labels'"),
        (lambda m: m.update(builds=[]), "builds"),
        (lambda m: m.update(input=None), "lacks or misstates"),
        (lambda m: m["input"].update(shape=["x"]), "lacks or misstates"),
    ],
)
def test_a_manifest_that_is_wrong_is_told(bundle_folder, change, says):
    _edit(bundle_folder, change)
    with pytest.raises(BundleError, match=says):
        Bundle.open(bundle_folder)


def test_what_is_no_bundle_is_told(tmp_path):
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"hello")
    with pytest.raises(BundleError, match="not a whole zip"):
        Bundle.open(tmp_path / "x.zip")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="not readable JSON"):
        Bundle.open(tmp_path)


def test_a_zip_that_escapes_or_explodes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../evil.py", "x")
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.open(tmp_path / "x.zip")
    assert not (tmp_path.parent / "evil.py").exists()


def test_the_zip_opens_and_leaves_nothing_behind(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Bundle.open(finished_run / "bundles" / "cpu.zip") as bundle:
        assert bundle.self_test() <= bundle.build.tolerance
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_is_told_or_replaced_loudly(bundle_folder, monkeypatch):
    with Bundle.open(bundle_folder) as bundle:
        first, *others = bundle.manifest.builds
        assert others, "the bundle carries a second choice"
        monkeypatch.setattr(engines_module.ENGINES[first.runtime], "installed", classmethod(lambda cls: False))
        bundle.load()
        assert bundle.build.id == others[0].id
        assert bundle.notes == [f"{first.runtime} is not installed: running {others[0].id} instead of {first.id}"]
        assert bundle.self_test() <= bundle.build.tolerance
    for engine in engines_module.ENGINES.values():
        monkeypatch.setattr(engine, "installed", classmethod(lambda cls: False))
    with Bundle.open(bundle_folder) as bundle, pytest.raises(BundleError, match="which is not installed; pip install"):
        bundle.load()


def test_a_named_runtime_is_used_or_refused(bundle_folder):
    with Bundle.open(bundle_folder) as bundle:
        other = bundle.manifest.builds[-1].runtime
        bundle.load(other)
        assert bundle.build.runtime == other
        assert bundle.notes == []
    with Bundle.open(bundle_folder) as bundle, pytest.raises(BundleError, match="needs tensorrt"):
        bundle.load("tensorrt")


def test_inputs_that_do_not_fit_are_told(bundle_folder):
    with Bundle.open(bundle_folder) as bundle:
        with pytest.raises(BundleError, match=r"samples of \(40, 3\) float32 in a batch, received \(1, 3, 40\)"):
            bundle.outputs(np.zeros((1, 3, 40), np.float32))
        with pytest.raises(BundleError, match="received .* float64"):
            bundle.outputs(np.zeros((1, 40, 3)))


def test_softmax_is_stable():
    assert softmax(np.array([[1000.0, 1000.0]])).tolist() == [[0.5, 0.5]]


def test_memory_of_the_process_is_told():
    found = memory_mb()
    assert 10 < found["now"] <= found["peak"]


def test_npy_files_are_checked(tmp_path):
    spec = InputSpec("facts", "vector", (3,), "float32", None)
    np.save(tmp_path / "ok.npy", np.arange(3))
    assert read_sample(tmp_path / "ok.npy", spec).array.dtype == np.float32
    for name, array, says in (
        ("shape", np.zeros(4), r"holds \(4,\) float64, the bundle takes \(3,\)"),
        ("nan", np.array([1.0, np.nan, 0]), "NaN"),
        ("text", np.array(["a", "b", "c"]), r"not a readable \.npy array"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(BundleError, match=says):
            read_sample(tmp_path / f"{name}.npy", spec)
    (tmp_path / "bad.npy").write_bytes(b"x")
    with pytest.raises(BundleError, match="not a readable"):
        read_sample(tmp_path / "bad.npy", spec)
    with pytest.raises(BundleError, match="no such file"):
        read_sample(tmp_path / "none.npy", spec)
    with pytest.raises(BundleError, match=r"read from \.npy files"):
        read_sample(tmp_path / "x.txt", spec)


def test_prediction_never_imports_torch(bundle_folder, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((40, 3), np.float32))
    code = (
        "import sys; from apps.predict import main\n"
        f"code = main([{str(bundle_folder)!r}, {str(tmp_path / 'x.npy')!r}])\n"
        "assert code == 0 and 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_runtime_is_written_in_python_3_10(bundle_folder):
    """Its grammar; `make types` checks the names that it uses against the standard library of 3.10."""
    files = list((bundle_folder / "apps" / "runtime").glob("*.py"))
    assert len(files) > 5
    for file in files:
        ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=(3, 10))
    with pytest.raises(SyntaxError):
        ast.parse("try:\n  pass\nexcept* OSError:\n  pass\n", feature_version=(3, 10))
