"""Layer by layer, builds of a finished run against torch: kept in its folder as json and markdown."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.student import load_student
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.files import write_json, write_text
from mst_edge.report.layers import numerics_markdown
from mst_edge.run_folder import RunFolder
from mst_edge.stages.variants import TUNING
from quantize.calibration import load_calibration
from quantize.numerics import Built, compare_layers
from quantize.variant import Variant, load_variant
from targets.spec import Build, load_build
from targets.target import get_target

ALL = "all"
_SAMPLES = 8


def report_numerics(run: RunFolder, names: Sequence[str], say: Callable[[str], None]) -> Path:
    """Writes ``numerics.{json,md}`` into the run's folder; returns the latter.

    Args:
        names: of builds; ``all`` of them.

    Raises:
        UserError: no such build.
    """
    student = load_student(run.distill)
    source = load_variant(run.variants / "fp32")
    raw = np.array(load_calibration(run.variants / TUNING).inputs[:_SAMPLES])
    built = [
        Built(build.id, _variant(run, build), build.precision, _runner(build, raw)) for build in _chosen(run, names)
    ]
    found = compare_layers(student, source, built, raw, say).to_dict()
    write_json(run.path / "numerics.json", found)
    path = run.path / "numerics.md"
    write_text(path, numerics_markdown(found))
    return path


def _chosen(run: RunFolder, names: Sequence[str]) -> list[Build]:
    """Builds called ``names``, of all targets on this machine.

    Raises:
        UserError: there is none of that name.
    """
    every = {
        row["id"]: target["target"]
        for target in run.result()["targets"]
        if target["on_host"]
        for row in target["builds"]
        if row["deployable"]  # the others compile torch programs, and what is cut off is a graph
    }
    if not every:
        raise UserError("has no builds", where=run.path, fix="finish the run")
    for name in names:
        if name not in (ALL, *every):
            raise unknown_name("build", name, [ALL, *every], where="--layers")
    wanted = every if ALL in names else names
    return [load_build(run.builds(every[name]) / name) for name in wanted]


def _variant(run: RunFolder, build: Build) -> Variant:
    """What ``build`` was made of: of the run, or what its target wanted beyond that."""
    own = run.builds(build.target) / "variants" / build.variant
    return load_variant(own if own.is_dir() else run.variants / build.variant)


def _runner(build: Build, raw: NDArray[Any]) -> Callable[[Variant], NDArray[np.float32]]:
    """Compiles a variant as ``build`` was, and runs it on ``raw``."""
    target = get_target(build.target)
    runtime = target.runtime(build.runtime)

    def run(variant: Variant) -> NDArray[np.float32]:
        with tempfile.TemporaryDirectory(prefix="mst-edge-") as folder:
            cut = runtime.build(variant, build.precision, int(build.options["threads"]), Path(folder) / "build")
            with target.load(cut) as runner:
                return np.concatenate([runner.run(raw[number : number + 1]) for number in range(len(raw))])

    return run
