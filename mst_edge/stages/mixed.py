"""The search for mixed precision, with its measurements on a target's runtimes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from mst_edge.core.scoring import Predictions, scoring_of
from mst_edge.recipe import Recipe
from mst_edge.stages.goals import goals_of
from quantize.calibration import Calibration
from quantize.mixed import Search, Tried
from quantize.qdq import in_float
from quantize.variant import MODEL, Variant
from targets.gate import compare_accuracy, shortfall
from targets.measure import Measurement, Protocol, measure
from targets.spec import Build
from targets.target import Target, get_target

# A trial only has to tell what is worth a closer look.
_PROTOCOL = Protocol("search", min_runs=30, min_seconds=0.3, max_seconds=3.0)


def search_for(
    recipe: Recipe,
    source: Variant,
    samples: Calibration,
    target_name: str,
    folder: Path,
    progress: Callable[[str], None],
) -> Search:
    """What the search for mixed precision needs on one target.

    Args:
        source: the fp32 variant.
        samples: of the validation split, with their targets.
        folder: where trials are kept.
    """
    said, target = recipe.quantize.mixed, get_target(target_name)

    def tried(models: Sequence[Path]) -> list[list[Tried]]:
        return _try(models, source, samples, target, recipe)

    return Search(tried, samples, folder, said.trials, 60 * said.minutes, target_name, progress)


def _try(
    models: Sequence[Path], source: Variant, samples: Calibration, target: Target, recipe: Recipe
) -> list[list[Tried]]:
    """Builds models for every runtime and measures all of them in turns, and with them the float network."""
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as name:
        folder = Path(name)
        reference = _builds(target, source, recipe, folder / "reference")[0]
        builds = [
            _builds(target, _variant(model, source, folder / f"{number}"), recipe, folder / f"built-{number}")
            for number, model in enumerate(models)
        ]
        every = [reference, *(build for some in builds for build in some)]
        measured = measure(every, samples.file, source.output, _PROTOCOL)
        exact = measured[reference.id]
        return [
            [_tried(build, measured[build.id], exact, samples, source, recipe) for build in some] for some in builds
        ]


def _variant(model: Path, source: Variant, folder: Path) -> Variant:
    folder.mkdir()
    shutil.copyfile(model, folder / MODEL)
    left = tuple(in_float(onnx.load(model)))
    return replace(source, name=folder.name, scheme="int8-mixed", precision="int8", folder=folder, in_float=left)


def _builds(target: Target, variant: Variant, recipe: Recipe, folder: Path) -> list[Build]:
    made = [one for one in target.build_all([variant], recipe.measure.threads, folder) if isinstance(one, Build)]
    if not made:
        raise RuntimeError(f"no runtime of target {target.spec.name} runs {variant.scheme}")
    return made


def _tried(
    build: Build,
    found: tuple[Measurement, Predictions],
    exact: tuple[Measurement, Predictions],
    samples: Calibration,
    source: Variant,
    recipe: Recipe,
) -> Tried:
    assert samples.target is not None
    accuracy = compare_accuracy(
        found[1].answers, exact[1].answers, np.asarray(samples.target), scoring_of(source.output)
    )
    return Tried(
        build=f"{build.runtime}-{build.precision}",
        value=accuracy.value,
        loss=accuracy.drop.estimate,
        short_by=shortfall(accuracy, goals_of(recipe).accuracy),
        ratio=found[0].latency.p50_ms / exact[0].latency.p50_ms,
    )
