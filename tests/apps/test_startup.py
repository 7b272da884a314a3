"""The base install answers by itself, starts with few imports, and its start-up is measured step by step."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from benchmarks.startup import STEPS, measure, table
from tests.apps.base_install import base_install
from tests.apps.bundles import sound_bundle, text_bundle
from tests.conftest import ROOT
from tests.texts import make_texts

HEAVY = {"torch", "sklearn", "scipy", "pydantic", "typer", "rich", "jinja2", "yaml", "PIL", "soundfile", "openvino"}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return text_bundle(tmp_path_factory.mktemp("reader"), *make_texts())


@pytest.fixture(scope="module")
def ear(tmp_path_factory):
    return sound_bundle(tmp_path_factory.mktemp("ear"))


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of a base install."""
    return base_install(tmp_path_factory.mktemp("base") / "venv")


@pytest.fixture
def call(python, tmp_path):
    """Runs the base install's Python, far from this checkout."""

    def run(*arguments: object) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(python), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_base_install_has_no_extras(call):
    wanted = sorted(HEAVY - {"pydantic", "typer", "rich", "jinja2", "yaml"} | {"onnx", "nncf"})
    found = call("-c", f"import importlib.util as u; print([m for m in {wanted!r} if u.find_spec(m)])")
    assert found.strip() == "[]"


def test_the_base_install_predicts(call, reader, tmp_path):
    said = call("-m", "mst_edge", "predict", reader, "--text", "the wildfire burns near Houston", "--json")
    assert json.loads(said)["label"] == "fire"
    assert json.loads(said)["memory_mb"]["peak"] > 10
    (tmp_path / "x.txt").write_text("the river flooded Houston", encoding="utf-8")
    assert "flood" in call("-m", "mst_edge", "app", "predict", reader, "x.txt")


def test_the_base_install_hears(call, ear, tmp_path):
    sound = 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    soundfile.write(tmp_path / "x.wav", sound, 8000, subtype="PCM_16")
    said = call("-m", "mst_edge", "app", "spoken-digits", ear, "x.wav", "--threshold", "0.01", "--json")
    assert json.loads(said.splitlines()[0])["label"] in "0123456789"
    assert len(call(ear / "run.py", "x.wav", "--json", "x.wav").splitlines()) == 2  # files behind options, too


def test_five_lines_are_a_program(ear, tmp_path):
    """Those on the page, as written."""
    page = (ROOT / "docs" / "apps.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page.partition("## As a library")[2].partition("\n## ")[0], re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    (tmp_path / "runs" / "av_digits" / "bundles").mkdir(parents=True)
    (tmp_path / "runs" / "av_digits" / "bundles" / "cpu").symlink_to(ear)
    soundfile.write(tmp_path / "seven.wav", np.full(8000, 0.1), 8000)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in "0123456789"


def _imported(code: str) -> set[str]:
    """Modules of a process that runs ``code``; only the first part of their names."""
    show = "import sys; print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_runtime_imports_numpy_and_nothing_else():
    """Everything but the standard library, and of that nothing that only a zip or a text needs."""
    found = _imported("import apps.runtime")
    third = {name for name in found - set(sys.stdlib_module_names) if not name.startswith(("_", "sitecustomize"))}
    assert third - {"apps", "numpy", "__main__"} == set()
    assert not {"zipfile", "tempfile", "unicodedata", "asyncio", "multiprocessing"} & found


@pytest.mark.parametrize("app", ["predict", "triage"])
def test_an_app_imports_the_inference_runtime_beside(app, reader):
    text = ["--text", "smoke and flames over Solano"]
    found = _imported(f"from apps.{app} import main; assert main({[str(reader), *text]!r}) == 0")
    assert "onnxruntime" in found
    assert not HEAVY & found


def test_start_ups_are_measured_step_by_step(reader, ear):
    starts = measure([reader, ear], 1, {"nothing": [sys.executable, "-c", "pass"]})
    for start in starts:
        assert [step.name for step in start.steps] == list(STEPS)
        held = [step.memory_mb for step in start.steps if step.memory_mb]
        assert 10 < held[0] <= held[-1]
        assert start.runtime_ms[0] < start.total_ms[0]
        shown = table(start)
        assert all(f"| {what} |" in shown for what in STEPS.values())
        assert "`nothing`" in shown
    assert "`run.py FILE`" in table(starts[0])  # of the bundle that has examples
