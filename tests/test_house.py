"""The house rules that a machine can check: who may import whom, what may be imported, how files look."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"mst_edge", "distill", "quantize", "targets", "apps"}
MAY_IMPORT = {
    "mst_edge/core": set(),
    "distill": {"mst_edge.core", "apps.runtime.tokenizer", "apps.runtime.clips", "apps.runtime.errors"},
    "quantize": {"mst_edge.core", "distill"},
    "targets": {"mst_edge.core", "quantize.variant", "quantize.program", "apps.runtime"},
    "apps": {"mst_edge.core", "apps.runtime"},
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def _files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_follow_the_arrows_of_the_house(room):
    own = room.replace("/", ".")
    for path in _files(room):
        for name in _imports(path):
            if name.split(".")[0] in OURS and not name.startswith(own):
                assert any(name.startswith(allowed) for allowed in MAY_IMPORT[room]), f"{path} imports {name}"


def test_the_bundles_runtime_imports_nothing_of_ours_and_little_else():
    allowed = {"numpy", "onnxruntime", "openvino", "tensorrt", "soundfile", "PIL", "av"} | set(sys.stdlib_module_names)
    for path in _files("apps/runtime"):
        for name in _imports(path):
            assert name.split(".")[0] in allowed, f"{path} imports {name}"


def test_apps_never_import_torch():
    for path in _files("apps"):
        assert not any(name.split(".")[0] == "torch" for name in _imports(path)), path


_HEAVY = {"torch", "onnxruntime", "openvino", "numpy", "sklearn"}


@pytest.mark.parametrize(
    ("command", "shows", "heavy"),
    [
        ([], "Commands", {*_HEAVY, "pydantic"}),
        (["run"], "--dry-run", _HEAVY),  # typer itself takes pydantic to describe a command's options
        (["compare"], "--ablations", _HEAVY),
        (["search"], "--prove", _HEAVY),
        (["quantize"], "--allow-random", {*_HEAVY, "onnx"}),
        (["deploy"], "--calibration", {*_HEAVY, "onnx"}),
        (["profile"], "--protocol", {*_HEAVY, "onnx"}),
        (["doctor"], "--target", _HEAVY),
    ],
)
def test_the_command_line_answers_help_without_heavy_imports(command, shows, heavy):
    code = (
        f"import sys; sys.argv = {['mst-edge', *command, '--help']}\n"
        "from mst_edge.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"heavy = {heavy} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert shows in done.stdout


def test_no_module_grows_beyond_500_lines():
    for folder in (*OURS, "tests"):
        for path in _files(folder):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path


def test_no_pickle_anywhere():
    for folder in OURS:
        for path in _files(folder):
            text = path.read_text(encoding="utf-8")
            assert not any(
                word in text for word in ("torch.load(", "import pickle", "allow_pickle=True", "yaml.load(")
            ), path
