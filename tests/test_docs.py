"""Every command in a ``bash`` block of the README works as written, on less data and without a latency goal."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import torch
import yaml

from distill.augment import augmentation_options
from distill.datasets.spec import Kind
from distill.methods.base import METHODS
from distill.networks.registry import NETWORKS, NetworkChoice, build_model
from distill.tokens import TokenShape
from mst_edge.capabilities import markdown
from mst_edge.recipe import Recipe, SearchSection, load_recipe
from quantize.ranges import CalibratorChoice
from quantize.schemes.base import SCHEMES
from tests.conftest import ROOT

_SMALLER = {
    "distill.epochs": "{collaborate: 1, masks: 1, distill: 1}",
    "quantize.calibration.samples": "32",
    "goals.accuracy": "{max_relative_drop_percent: 100}",
    "goals.latency.p90_ms": "null",
    "goals.min_int8_speedup": "0",
    "measure.min_runs": "20",
    "measure.min_seconds": "0.05",
}


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def _smaller(command: str) -> str:
    """The same command on 300 pairs and a few epochs."""
    words = shlex.split(command)
    if words[:2] == ["mst-edge", "run"]:
        settings = dict(_SMALLER)
        if words[2] == "av_digits":
            settings["dataset.options.pairs"] = "300"
        command += "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in settings.items())
    if words[:3] == ["mst-edge", "data", "build"]:
        command += " --set pairs=300"
    return command


def test_the_quick_start_works_as_written(tmp_path):
    """In one shell's order, in one folder, as a reader would type them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    launcher = programs / "mst-edge"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mst_edge "$@"\n', encoding="utf-8")
    launcher.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    outputs = {}
    for command in _commands():
        done = subprocess.run(
            _smaller(command), shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        outputs[command] = done.stdout
    assert len(outputs) == 11
    predicted = next(text for command, text in outputs.items() if command.startswith("mst-edge predict"))
    assert all(f"{digit}.wav" in predicted for digit in range(10))
    assert "self-test passed" in next(text for command, text in outputs.items() if command.endswith("--self-test"))


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_page_of_recipe_keys_is_complete_and_shows_the_defaults(tmp_path):
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block
    file = tmp_path / "recipe.yaml"
    file.write_text(block[1], encoding="utf-8")
    documented = _flat(load_recipe(file).to_dict())
    said = set(_flat(yaml.safe_load(block[1])))
    defaults = Recipe(name="x", dataset={"name": "av_digits"}, student={"modality": "audio"})
    for key, value in _flat(defaults.to_dict()).items():
        if key in _EXAMPLES:
            continue
        if value == {}:
            assert any(other.startswith(key) for other in said), f"{key} is not on the page"
        else:
            assert key in said, f"{key} is not on the page"
            assert documented[key] == value, key


def test_the_page_of_search_shows_every_key_with_its_default():
    block = re.search(r"```yaml\nsearch:\n.*?```", (ROOT / "docs" / "search.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block
    said = yaml.safe_load(block[0].removeprefix("```yaml").removesuffix("```"))["search"]
    defaults = SearchSection(networks=said["networks"]).model_dump(mode="json")
    assert {**said, "features": {}} == defaults
    SearchSection(**said)


_DENSE = {"segnet", "fusenet", "small_unet", "map_fusion"}

# What the page sets to something, for illustration.
_EXAMPLES = {"name", "dataset.path", "dataset.name", "student.modality"}


def test_every_method_and_each_of_its_options_is_on_a_page():
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    mst = (ROOT / "docs" / "mst_distill.md").read_text(encoding="utf-8")
    for name in METHODS.names():
        assert f"| `{name}` |" in methods
        for option in dataclasses.fields(METHODS.get(name).Options):
            assert f"`{option.name}" in (mst if name == "mst" else methods), f"{name}: {option.name}"


def test_every_method_has_a_section_that_says_loss_defaults_and_test():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == METHODS.names()
    for name, section in sections.items():
        said = dict(re.findall(r"^- ([A-Z]\w+).*?:(.*?)(?=^- |\Z)", section, re.MULTILINE | re.DOTALL))
        assert {"For", "Loss", "Test"} <= set(said), name
        assert re.search(r"\(\.\./tests/[\w/]+\.py\)", said["Test"]), name
        if name == "mst":
            continue  # its options are on its own page
        shown = {key: yaml.safe_load(value) for key, value in re.findall(r"`(\w+): ([^`]+)`", said.get("Options", ""))}
        defaults = {key: _listed(value) for key, value in vars(METHODS.get(name).Options()).items() if key != "teacher"}
        assert shown == defaults, name


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_every_augmentation_is_on_the_page_of_the_recipe():
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    for kind in Kind:
        for option in dataclasses.fields(augmentation_options(kind)):
            rows = [line for line in page.splitlines() if line.startswith("| ") and f"`{option.name}`" in line]
            assert any(kind.value in row.split("|")[1] for row in rows), f"{kind}: {option.name}"


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {k: v for name, child in tree.items() for k, v in _flat(child, f"{prefix}.{name}".strip(".")).items()}


def _shape(shape: tuple[int, ...], ids: str) -> tuple[int, ...]:
    return TokenShape(shape[0], int(ids)) if ids else shape


def test_the_table_of_schemes_is_what_the_code_says():
    page = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    made = re.search(r"<!-- python -m mst_edge.capabilities -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert made
    assert made[1] == markdown()
    assert all(f"| `{name}` |" in made[1] for name in SCHEMES.names())
    assert all(f"| `{name}` |" in page for name in get_args(CalibratorChoice))


def test_the_python_on_the_page_of_quantization_runs_as_written(tmp_path):
    page = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown = "print([(v.name, v.input.shape) for v in variants], skipped)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{shown}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[('int8', (None, 4)), ('fp16', (None, 4))] []"


def test_every_network_is_on_its_page_with_its_size_and_options():
    page = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\| (`\([^|]*) \| (\d+) \| ([\d ]+) \|$", page, re.MULTILINE)
    assert sorted(row[0] for row in rows) == NETWORKS.names()
    block = re.search(r"```yaml\n(- .*?)```", page, re.DOTALL)
    assert block
    examples = {example["network"]: example["options"] for example in yaml.safe_load(block[1])}
    for name, options, features, outputs, parameters in rows:
        said = re.findall(r"`(\([^`]*)`(?: of (\d+) ids)?", features)
        shapes = {f"m{i}": _shape(ast.literal_eval(shape), ids) for i, (shape, ids) in enumerate(said)}
        takes = list(inspect.signature(NETWORKS.get(name)).parameters)[2:]
        assert re.findall(r"`(\w+)`", options) == takes, name
        assert (name in examples) == bool(takes), name
        dense = next(iter(shapes.values()))[1:] if name in _DENSE else None
        with torch.device("meta"):
            model = build_model(name, NetworkChoice(name), shapes, int(outputs), where=name, map_size=dense)
            example = NetworkChoice(name, examples.get(name, {}))
            build_model(name, example, shapes, int(outputs), where=name, map_size=dense)
        assert f"{model.parameters:,}".replace(",", " ") == parameters, name
