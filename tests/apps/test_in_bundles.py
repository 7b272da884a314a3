"""What a bundle carries beside its models: the app, a service, and a start that refuses a bad build."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import numpy_helper

from apps.runtime import Bundle, BundleError
from apps.runtime.drift import Drift, further
from apps.runtime.start import REFUSED
from mst_edge.core.files import sha256_file
from mst_edge.core.scoring import OutputSpec
from quantize.variant import InputSpec
from targets import carried
from targets.carried import App, app_files, app_of
from targets.jetson import JetsonTarget
from targets.service import Needs, guide, service_files, unit_name
from tests.apps.bundles import sound_bundle, text_bundle
from tests.conftest import Finished
from tests.texts import make_texts

CLASSES = OutputSpec("classification", ("a", "b"))
NO_SYSTEMD = shutil.which("systemd-analyze") is None
# What an app may import beside the standard library, numpy and what is carried: the extras of its own input.
EXTRAS = {"rich", "numpy", "onnxruntime", "openvino", "tensorrt", "soundfile", "sounddevice", "PIL", "cv2", "av"}
APPS = sorted(
    {app.name for app in [*carried._BY_KIND.values(), carried._EMOTION, carried._PREDICT] if carried._part(app.name)}
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return {"triage": text_bundle(folder / "t", *make_texts()), "spoken-digits": sound_bundle(folder / "s")}


@pytest.fixture
def reader(made, tmp_path) -> Path:
    """A copy of a bundle that reads, with nothing of ours around."""
    return Path(shutil.copytree(made["triage"], tmp_path / "bundle"))


def run(bundle: Path, *arguments: object, given: str = "", **environment: str) -> Finished:
    """A script of a bundle, as on a device: no mst-edge anywhere."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=bundle,
        input=given,
        env={**clean, **environment},
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def _edit(bundle: Path, change) -> None:
    """Changes the manifest, and renews the checksums of files that were changed on purpose."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    manifest["files"] = {name: sha256_file(bundle / name) for name in manifest["files"]}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_that_reads_sorts_texts_by_itself(reader):
    done = run(reader, "-I", "app.py", "--json", "-", given="the river flooded Köln\nlovely coffee at Solano\n")
    assert done.code == 0, done.err
    assert [json.loads(line)["category"] for line in done.out.splitlines()] == ["flood", "calm"]
    assert "self-test passed: onnxruntime-fp32" in done.err
    assert run(reader, "-I", "app.py", "--help").code == 0


def test_a_bundle_that_hears_tells_words_by_itself(made, tmp_path):
    bundle = shutil.copytree(made["spoken-digits"], tmp_path / "b")
    time = np.arange(8000) / 8000
    soundfile.write(tmp_path / "x.wav", 0.3 * np.sin(2 * np.pi * 440 * time), 8000)
    done = run(bundle, "-I", "app.py", "--json", tmp_path / "x.wav")
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[0])


def test_its_modules_are_those_of_the_bundle(reader):
    """Also where another version of mst-edge is installed."""
    other = reader.parent / "other"
    (other / "apps").mkdir(parents=True)
    (other / "apps" / "__init__.py").write_text("raise SystemError('another version')")
    done = run(reader, "app.py", "--text", "x", PYTHONPATH=str(other))
    assert done.code == 0, done.err
    assert not [path for path in reader.rglob("*") if path.suffix == ".pyc"]


@pytest.mark.parametrize("name", APPS)
def test_an_app_takes_along_all_that_it_imports_and_no_more(name):
    app = App(name, "")
    files = app_files(app)
    assert not any(path.startswith("apps/runtime") for path in files)
    for path, source in files.items():
        if not path.endswith(".py"):
            continue
        tree = ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 10))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
        for module in names:
            first, _, rest = module.partition(".")
            if first == "apps":
                part = rest.partition(".")[0]
                assert part in ("", "runtime") or {f"apps/{part}.py", f"apps/{part}/__init__.py"} & set(files)
            else:
                assert first in EXTRAS | set(sys.stdlib_module_names), f"{path} imports {module}"


def test_packages_of_apps_are_found_and_carried_whole(tmp_path, monkeypatch):
    texts = {
        "__init__.py": "",
        "one.py": "import apps.two.deep\ndef late():\n    from apps import three\n",
        "two/__init__.py": "from . import deep\nfrom apps.runtime import Bundle",
        "two/deep.py": "from apps.four.x import y",
        "two/page/index.html": "<p>",
        "two/__pycache__/deep.pyc": "",
        "three.py": "",
        "four/__init__.py": "",
        "four/x.py": "import apps.one",
        "five.py": "",
        "runtime/__init__.py": "",
    }
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr("targets.carried.resources.files", lambda package: tmp_path)
    left = {"two/__pycache__/deep.pyc", "five.py", "runtime/__init__.py"}
    assert set(app_files(App("one", ""))) == {f"apps/{path}" for path in set(texts) - left}
    assert app_of(CLASSES, InputSpec("x", "text", (8,), "int32")).name == "predict", "an app that is not there"


@pytest.mark.parametrize(
    ("output", "kind", "shape", "dtype", "app"),
    [
        (CLASSES, "audio", (8000,), "float32", "spoken_digits"),
        (CLASSES, "image", (28, 28), "uint8", "digits_camera"),
        (CLASSES, "image", (28, 28, 3), "uint8", "predict"),
        (CLASSES, "image", (28, 28), "float32", "predict"),
        (CLASSES, "text", (48,), "int32", "triage"),
        (CLASSES, "vector", (4,), "float32", "predict"),
        (CLASSES, "video", (8, 32, 32, 3), "uint8", "watch"),
        (CLASSES, "video", (10, 7, 7, 512), "float32", "predict"),
        (OutputSpec("regression", ("K",), ("K",), scale=(1.0,)), "audio", (8000,), "float32", "predict"),
        (OutputSpec("regression", ("stars",), ("",), scale=(1.0,)), "text", (48,), "int32", "triage"),
    ],
)
def test_the_app_fits_the_student(output, kind, shape, dtype, app):
    assert app_of(output, InputSpec("x", kind, shape, dtype)).name == app


def test_a_changed_build_is_not_served(reader):
    model = reader / "models" / "onnxruntime-fp32" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    done = run(reader, "app.py", "--text", "fire")
    assert (done.code, done.out) == (REFUSED, "")
    assert "error: refused to start triage: " in done.err
    assert "file models/onnxruntime-fp32/model.onnx was changed" in done.err
    assert run(reader, "run.py", "--self-test").code == 2


def _other_weights(bundle: Path, change) -> None:
    path = bundle / "models" / "onnxruntime-fp32" / "model.onnx"
    model = onnx.load(path)
    (table,) = (tensor for tensor in model.graph.initializer if tensor.name == "table")
    table.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(table)), "table"))
    onnx.save(model, path)


def test_a_build_that_computes_something_else_is_not_served(reader):
    """As a kernel with a bug would, or a damaged chip: every checksum is right."""
    _other_weights(reader, lambda table: table * np.float32(1.01))
    _edit(reader, lambda manifest: None)
    done = run(reader, "app.py", "--text", "fire")
    assert (done.code, done.out) == (REFUSED, "")
    assert "onnxruntime-fp32 is off by 0." in done.err


def test_a_build_whose_answers_drift_is_not_served(reader):
    """Though each number is within a tolerance, as wide as that of eight bits may be."""
    _other_weights(reader, lambda table: np.roll(table, 1, axis=1))
    _edit(reader, lambda manifest: manifest["builds"][0].update(tolerance=1e9))
    done = run(reader, "app.py", "--text", "fire")
    assert (done.code, done.out) == (REFUSED, "")
    assert "onnxruntime-fp32 drifts: 0.0% of labels as the fp32 model, 100.0% where it was packed" in done.err
    with Bundle.open(reader) as bundle:
        assert bundle.self_test() > 0.01
        with pytest.raises(BundleError, match="drifts"):
            bundle.prove()


def test_drift_is_what_lies_clearly_further_than_where_it_was_packed():
    packed = Drift(0.9, 0.01, 0.1, {}, 10)
    assert further(packed, packed) == ""
    assert further(Drift(0.8, 0.05, 0.5, {}, 10), packed) == "", "one answer of ten"
    assert "70.0% of labels" in further(Drift(0.7, 0.05, 0.5, {}, 10), packed)
    assert "84.0% of labels" in further(Drift(0.84, 0.05, 0.5, {}, 1000), Drift(0.9, 0.01, 0.1, {}, 1000))
    assert "distance 0.12" in further(Drift(0.9, 0.12, 0.5, {}, 10), packed)
    assert "distance nan" in further(Drift(0.9, float("nan"), 0.5, {}, 10), packed)
    numbers = Drift(None, None, None, {"K": 0.999, "still": None}, 10)
    assert further(numbers, numbers) == ""
    assert "K correlates with 0.98" in further(Drift(None, None, None, {"K": 0.98, "still": None}, 10), numbers)
    assert "K correlates with None" in further(Drift(None, None, None, {"K": None, "still": None}, 10), numbers)


@pytest.mark.skipif(NO_SYSTEMD, reason="needs systemd-analyze (apt-get install systemd)")
@pytest.mark.parametrize("kind", ["audio", "image", "text", "sequence"])
@pytest.mark.parametrize("needs", [Needs(), JetsonTarget.needs])
def test_the_units_are_valid_and_may_do_little(tmp_path, kind, needs):
    files = service_files("My run, v2", carried._BY_KIND[kind], needs)
    units = []
    for path, text in files.items():
        (tmp_path / Path(path).name).write_text(text)
        units += [str(tmp_path / Path(path).name)] if not path.endswith(".sh") else []
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    unit = str(tmp_path / "mst-edge-my-run-v2.service")
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=15", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout  # exposure at most 1.5 of 10


def test_a_unit_opens_what_its_app_and_its_chip_need():
    audio, text = carried._BY_KIND["audio"], carried._BY_KIND["text"]
    (plain,) = (text for path, text in service_files("x", audio, Needs()).items() if path.endswith(".service"))
    assert "DevicePolicy=closed\nDeviceAllow=char-alsa rw\nSupplementaryGroups=audio\nMemoryMax=512M" in plain
    assert f"RestartPreventExitStatus={REFUSED}" in plain
    (board,) = (t for path, t in service_files("x", audio, JetsonTarget.needs).items() if path.endswith(".service"))
    assert "DeviceAllow=/dev/nvmap rw" in board
    assert "SupplementaryGroups=audio render video\nMemoryMax=2048M" in board
    reads = service_files("x", text, Needs())
    assert "PrivateDevices=yes" in reads["service/mst-edge-x.service"]
    assert "Requires=mst-edge-x.socket" in reads["service/mst-edge-x.service"]
    assert "ListenFIFO=/run/mst-edge-x" in reads["service/mst-edge-x.socket"]
    assert service_files("x", carried._PREDICT, Needs()) == {}
    assert "service" not in guide("x", carried._PREDICT)
    assert unit_name("../; rm -rf /\n") == "mst-edge-rm-rf"
    assert unit_name("東京") == "mst-edge-bundle"


def test_what_the_unit_starts_reads_lines_from_its_pipe(reader, tmp_path):
    """Its own command, with standard input as systemd opens a pipe: for reading and writing, so it never ends."""
    unit = (reader / "service" / "mst-edge-text-on-paper.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    (given,) = re.findall(r'^Environment="APP_ARGUMENTS=(.*)"$', unit, re.MULTILINE)
    words = (
        command.replace("$APP_ARGUMENTS", given).replace("/opt/mst-edge/mst-edge-text-on-paper", str(reader)).split()
    )
    assert words[0] == "/usr/bin/python3"
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    with subprocess.Popen([sys.executable, *words[1:]], stdin=pipe, stdout=subprocess.PIPE, cwd=reader) as process:
        for text, category in (("smoke and flames over Solano", "fire"), ("the river flooded Köln", "flood")):
            os.write(pipe, f"{text}\n".encode())
            assert json.loads(process.stdout.readline())["category"] == category
        process.terminate()
    os.close(pipe)


def _install(bundle: Path, *arguments: str, **environment: str) -> Finished:
    done = subprocess.run(
        ["sh", str(bundle / "service" / "install.sh"), *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, **environment},
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def test_the_script_installs_and_removes(reader, tmp_path):
    root = tmp_path / "root"
    for _ in range(2):  # the second time over the first
        done = _install(reader, DESTDIR=str(root))
        assert done.code == 0, done.err
    place = root / "opt" / "mst-edge" / "mst-edge-text-on-paper"
    units = root / "etc" / "systemd" / "system"
    assert (
        f"ExecStart={sys.executable} -B /opt/mst-edge/mst-edge-text-on-paper/app.py"
        in (units / "mst-edge-text-on-paper.service").read_text()
    )
    assert run(place, "app.py", "--text", "the river flooded Houston").code == 0
    assert sorted(path.name for path in place.parent.iterdir()) == ["mst-edge-text-on-paper"]
    assert not [path for path in place.rglob("*") if path.stat().st_mode & 0o022]
    assert _install(reader, "--remove", DESTDIR=str(root)).code == 0
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_the_script_installs_no_bad_build(reader, tmp_path):
    for arguments, environment, says in (
        (["--help"], {}, "usage: "),
        ([], {"PYTHON": "python3"}, "PYTHON must be a whole path, received python3"),
    ):
        done = _install(reader, *arguments, DESTDIR=str(tmp_path / "root"), **environment)
        assert done.code == 2
        assert says in done.err
    (reader / "README.md").write_text("changed")
    done = _install(reader, DESTDIR=str(tmp_path / "root"))
    assert done.code == 2
    assert "file README.md was changed" in done.err
    assert "not installed: this device does not compute what it should" in done.err
    assert not (tmp_path / "root").exists()
