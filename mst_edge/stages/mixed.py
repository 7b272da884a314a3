"""The search for mixed precision, with its measurements on a target's runtimes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from mst_edge.core.errors import UserError
from mst_edge.core.scoring import Predictions, scoring_of
from mst_edge.recipe import MixedSection, Recipe
from quantize.calibration import Calibration
from quantize.mixed import Search, Tried
from quantize.qdq import in_float
from quantize.schemes.base import SCHEMES
from quantize.schemes.int8_mixed import Int8Mixed
from quantize.variant import MODEL, Variant
from targets.gate import Goals, accuracy_limits, compare_accuracy, drift_limits, halved, shortfall
from targets.measure import Measurement, Protocol, measure
from targets.spec import Build
from targets.target import Target, gather, get_target

# A trial only has to tell what is worth a closer look.
_PROTOCOL = Protocol("search", min_runs=30, min_seconds=0.3, max_seconds=3.0, idle_seconds=0.0)


@dataclass(frozen=True)
class Judge:
    """What builds of a search are held to.

    Attributes:
        samples: neither of training nor of test. Without targets, agreement with the float network decides.
        goals: of the gate; the search asks for half the loss that they allow.
        threads: that builds run with.
    """

    samples: Calibration
    goals: Goals
    threads: int


def measurable(targets: Iterable[str]) -> tuple[str, ...]:
    """Those of the targets that a search can measure on: this machine."""
    return tuple(name for name in targets if get_target(name).spec.on_host)


def check_search(recipe: Recipe) -> None:
    """Makes sure that schemes which measure have a target to measure on.

    Raises:
        UserError: all of the recipe's targets are devices of their own.
    """
    searching = [name for name in recipe.quantize.schemes if SCHEMES.get(name).per_target]
    if searching and not measurable(recipe.targets):
        raise UserError(
            f"{searching[0]} measures on a target, and none of {', '.join(recipe.targets)} is this machine",
            where="quantize.schemes",
            fix="leave it out, or add cpu to targets",
        )


def search_for(
    source: Variant, judge: Judge, said: MixedSection, target_name: str, folder: Path, progress: Callable[[str], None]
) -> Search:
    """What the search for mixed precision needs on one target.

    Args:
        source: the fp32 variant.
        folder: where trials are kept.
    """
    target = get_target(target_name)

    def tried(models: Sequence[Path]) -> list[list[Tried]]:
        return _try(models, source, judge, target)

    return Search(tried, judge.samples, folder, said.trials, 60 * said.minutes, target_name, progress)


def _try(models: Sequence[Path], source: Variant, judge: Judge, target: Target) -> list[list[Tried]]:
    """Builds models for every runtime and measures all of them in turns, and with them the float network."""
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as name:
        folder = Path(name)
        reference = _builds(target, source, judge, folder / "reference")[0]
        builds = [
            _builds(target, _variant(model, source, folder / f"{number}"), judge, folder / f"built-{number}")
            for number, model in enumerate(models)
        ]
        every = [reference, *(build for some in builds for build in some)]
        measured = measure(every, judge.samples.file, source.output, _PROTOCOL)
        exact = measured[reference.id]
        return [[_tried(build, measured[build.id], exact, source, judge) for build in some] for some in builds]


def _variant(model: Path, source: Variant, folder: Path) -> Variant:
    folder.mkdir()
    shutil.copyfile(model, folder / MODEL)
    left = tuple(in_float(onnx.load(model)))
    made = replace(source, name=folder.name, scheme=Int8Mixed.name, precision="int8", folder=folder, in_float=left)
    return replace(made, program="")


def _builds(target: Target, variant: Variant, judge: Judge, folder: Path) -> list[Build]:
    made = target.build_all([variant], judge.threads, folder)
    return gather(made, target.spec.name, f"{variant.scheme} of the search")[0]


def _tried(
    build: Build,
    found: tuple[Measurement, Predictions],
    exact: tuple[Measurement, Predictions],
    source: Variant,
    judge: Judge,
) -> Tried:
    scoring, truth = scoring_of(source.output), judge.samples.target
    if truth is None:
        drift = scoring.drift(found[1], exact[1])
        value, loss = drift.agreement, 1 - drift.agreement
        limits = drift_limits(drift, halved(judge.goals).drift)
    else:
        accuracy = compare_accuracy(found[1].answers, exact[1].answers, np.asarray(truth), scoring)
        value, loss = accuracy.value, accuracy.drop.estimate
        limits = accuracy_limits(accuracy, halved(judge.goals).accuracy)
    return Tried(
        build=f"{build.runtime}-{build.precision}",
        value=value,
        loss=loss,
        short_by=shortfall(limits),
        ratio=found[0].latency.p50_ms / exact[0].latency.p50_ms,
    )
