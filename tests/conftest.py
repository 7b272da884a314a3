"""Shared fixtures: small datasets made on the spot, one small finished run, and where real data lies."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are named by their length: compressed ones carry the second, and workers must agree on names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few tests first: they hold the long ones, and two workers that share out files should end together."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: tests[item.path])


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Datasets and features are built into a cache of this test session's own."""
    os.environ["MST_EDGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public data; tests that need it skip where there is none."""
    for candidate in (os.environ.get("MST_EDGE_DATA"), ROOT.parent / "shared" / "data"):
        if candidate and Path(candidate, "mnist").is_dir():
            return Path(candidate)
    pytest.skip("no real data: set MST_EDGE_DATA to a folder filled by `mst-edge data fetch avmnist`")


def write_arrays(
    folder: Path,
    *,
    samples: int = 240,
    classes: int = 3,
    seed: int = 0,
    noise: float = 0.8,
    **more: NDArray[np.generic],
) -> Path:
    """A learnable two-modality dataset: ``signal`` (40 times, 3 channels) and ``facts`` (12 values)."""
    rng = np.random.default_rng(seed)
    target = np.arange(samples) % classes
    waves = np.sin(np.linspace(0, 4 * np.pi, 40)[:, None] * (1 + target)[:, None, None] + np.arange(3))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "signal.npy", (waves + rng.normal(0, noise, (samples, 40, 3))).astype(np.float32))
    means = rng.normal(0, 1, (classes, 12))
    np.save(folder / "facts.npy", (means[target] + rng.normal(0, noise, (samples, 12))).astype(np.float32))
    np.save(folder / "target.npy", target)
    for name, array in more.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def write_vectors(folder: Path, *, samples: int = 240, modalities: int = 2, noise: float = 1.5) -> Path:
    """A learnable dataset of three classes, with ``modalities`` vectors of 6 values: ``a``, ``b``, ..."""
    rng = np.random.default_rng(0)
    target = np.arange(samples) % 3
    folder.mkdir(parents=True)
    for name in "abcdefgh"[:modalities]:
        means = rng.normal(0, 1, (3, 6))
        np.save(folder / f"{name}.npy", (means[target] + rng.normal(0, noise, (samples, 6))).astype(np.float32))
    np.save(folder / "target.npy", target)
    return folder


def write_numbers(folder: Path, *, samples: int = 200, seed: int = 0) -> Path:
    """A learnable regression dataset: from ``signal`` and ``facts`` as above, two numbers in very different units.

    ``temperature`` is 300 K give or take a tenth: what is lost in eight bits of 300 shows.
    """
    rng = np.random.default_rng(seed)
    hidden = rng.normal(0, 1, (samples, 2))
    waves = np.sin(np.linspace(0, 6, 40)[:, None] + np.arange(3)) * hidden[:, :1, None] + hidden[:, 1:, None]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "signal.npy", (waves + rng.normal(0, 0.3, (samples, 40, 3))).astype(np.float32))
    np.save(folder / "facts.npy", (hidden @ rng.normal(0, 1, (2, 12)) + rng.normal(0, 0.1, (samples, 12))))
    np.save(folder / "target.npy", np.stack([300 + 0.1 * hidden[:, 0], 5000 * hidden[:, 1]], axis=1))
    (folder / "dataset.yaml").write_text(
        "task: regression\ntarget_names: [temperature, speed]\ntarget_units: [K, 1/min]\n", encoding="utf-8"
    )
    return folder


def write_label_maps(folder: Path, *, samples: int = 60, size: tuple[int, int] = (20, 24), seed: int = 0) -> Path:
    """A learnable segmentation dataset of three classes and unlabelled borders (255): ``colour`` and ``depth``."""
    rng = np.random.default_rng(seed)
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    target = np.zeros((samples, height, width), np.uint8)
    for label in (1, 2):
        top, left = rng.integers(0, (height - 8, width - 8), (samples, 2)).T[:, :, None, None]
        inside = (rows >= top) & (rows < top + 8) & (columns >= left) & (columns < left + 8)
        target[inside] = label
    colour = np.array([[40, 40, 40], [200, 60, 60], [60, 90, 200]])[target] + rng.normal(0, 40, (*target.shape, 3))
    depth = np.array([1.0, 0.6, 0.3])[target] + rng.normal(0, 0.1, target.shape)
    target[:, 0] = 255
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "colour.npy", np.clip(colour, 0, 255).astype(np.uint8))
    np.save(folder / "depth.npy", depth[..., None].astype(np.float32))
    np.save(folder / "target.npy", target)
    (folder / "dataset.yaml").write_text(
        "task: segmentation\nclasses: [floor, box, ball]\nignore_label: 255\n", encoding="utf-8"
    )
    return folder


def write_small_recipe(path: Path, data: Path, **changes: object) -> Path:
    """A recipe that runs in seconds and has no latency goal: no timing decides a test."""
    recipe: dict[str, object] = {
        "name": "small",
        "dataset": {"path": str(data)},
        "student": {"modality": "signal", "network": "tcn"},
        "distill": {"method": "mst", "preset": "improved", "epochs": {"collaborate": 2, "masks": 1, "distill": 2}},
        "quantize": {"calibration": {"samples": 32}},
        "measure": {"min_runs": 20, "min_seconds": 0.05},
        "goals": {"accuracy": {"max_relative_drop_percent": 50.0}, "min_int8_speedup": 0.0},
        **changes,
    }
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Finished:
    """A command that ran."""

    code: int
    out: str
    err: str


def mst_edge(*arguments: object, cwd: Path | None = None, **environment: str) -> Finished:
    """Runs the command line as a user does: in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mst_edge", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def mst_edge_here(*arguments: object) -> Finished:
    """The same in this process, which has imported what another takes seconds for: to ask for many errors."""
    from mst_edge.cli.app import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["mst-edge", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.argv = before
    return Finished(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, end to end through the command line: arrays to bundle."""
    folder = tmp_path_factory.mktemp("run")
    data = write_arrays(folder / "data")
    recipe = write_small_recipe(folder / "small.yaml", data)
    done = mst_edge("run", recipe, "--out", folder / "out")
    assert done.code == 0, done.err
    return folder / "out"
