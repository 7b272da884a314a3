"""Quantizing and deploying a model that came as a file, with a folder of samples or random ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from mst_edge.core.files import require_unused, sha256_file, write_json
from mst_edge.core.provenance import provenance
from mst_edge.core.scoring import scoring_of
from mst_edge.front import summary
from mst_edge.recipe import GoalsSection, MeasureSection, MixedSection, QuantizeSection
from mst_edge.run_folder import RunFolder
from mst_edge.stages.deploy import deploy
from mst_edge.stages.mixed import Judge, measurable, search_for
from mst_edge.stages.sensitivity import report_sensitivity
from mst_edge.stages.subject import DeployWatcher, Subject
from mst_edge.stages.variants import SEARCH, variant_row
from quantize.api import PreparedModel, make_variants, prepare_model
from quantize.foreign import Shapes
from quantize.in_torch import InTorch
from quantize.mixed import Search
from quantize.schemes.base import SCHEMES, Material, require_schemes
from quantize.schemes.int8_trained import Int8Qat
from quantize.variant import Variant
from targets import measure
from targets.examples import example_files
from targets.gate import AccuracyGoal, DriftGoal, Goals
from targets.target import get_target, require_runtimes

NO_LICENCE = "not stated"
# Without labels: what a build may differ from the fp32 model at most.
_DRIFT = {"classification": DriftGoal(min_agreement=0.99), "segmentation": DriftGoal(min_agreement=0.99)}
_NUMBERS_DRIFT = DriftGoal(min_correlation=0.999)


@dataclass(frozen=True)
class Request:
    """What the command line says of a model.

    Attributes:
        schemes: by default those of a recipe.
        exclude: layers that stay in float.
        runtimes: that build; by default those that bundles run with.
        tune: whether builds that pass are tuned.
    """

    file: Path
    out: Path
    calibration: Path | None = None
    shapes: Shapes = field(default_factory=dict)
    allow_random: bool = False
    schemes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    runtimes: tuple[str, ...] = ()
    tune: bool = False

    @property
    def name(self) -> str:
        """What results are called."""
        return self.file.stem


def quantize_model(
    request: Request, targets: Sequence[str], say: Callable[[str], None]
) -> tuple[dict[str, Any], PreparedModel, list[Variant]]:
    """Makes the variants of a model, says what int8 does to its layers, and writes ``result.json``.

    Args:
        targets: where schemes that search measure.

    Raises:
        UserError: something is wrong with model, samples or schemes; then nothing was written.
    """
    schemes = request.schemes or QuantizeSection().schemes
    _require_fitting(schemes, request, targets)
    require_unused(request.out, "model's variants")
    made = prepare_model(
        request.file,
        request.out,
        calibration=request.calibration,
        shapes=request.shapes,
        allow_random=request.allow_random,
        seed=request.seed,
    )
    place, material = RunFolder(request.out), made.material(exclude=request.exclude)
    judge = Judge(made.calibration, _goals(made), MeasureSection().threads)

    def search(target: str) -> Search:
        return search_for(made.source, judge, MixedSection(), target, place.variants / SEARCH / target, say)

    try:
        variants, skipped = make_variants(material, schemes, place.variants, dict.fromkeys(targets, search))
    except UserError:
        shutil.rmtree(request.out)  # it was not there, or empty
        raise
    scoring, reference = scoring_of(made.source.output), made.reference
    record = {
        "name": request.name,
        "model": made.said,
        "real": made.said["real"],
        "output": {"task": made.source.output.task, "names": list(made.source.output.names)},
        "variants": [variant_row(variant) for variant in (made.source, *variants)],
        "skipped_schemes": skipped,
        "sensitivity": _sensitivity(made, material, place.variants),
        "targets": [],
        "gate": "not run",
        "provenance": provenance(**_origin(request, made)),
    }
    if made.truth is not None:
        record["fp32"] = {scoring.metric: scoring.value(scoring.statistics(reference.answers, made.truth))}
    write_json(RunFolder(request.out).result_file, record)
    return record, made, [made.source, *variants]


def deploy_model(request: Request, targets: Sequence[str], watcher: DeployWatcher) -> dict[str, Any]:
    """Quantizes, and builds, measures, judges and packs for each target.

    Raises:
        UserError: as ``quantize_model``; an unknown target or runtime.
    """
    require_runtimes(targets, request.runtimes, "--runtime")
    for name in targets:
        get_target(name).require_here()
    record, made, variants = quantize_model(request, measurable(targets), watcher.step)
    watcher.step(f"made {', '.join(variant.name for variant in variants)}")
    subject = _subject(request, made, variants)
    with subject.place.explained():
        record |= summary([deploy(subject, name, watcher) for name in targets])
    write_json(subject.place.result_file, record)
    return record


def _require_fitting(schemes: Sequence[str], request: Request, targets: Sequence[str]) -> None:
    """A file has no student to train, random samples nothing to search by.

    Raises:
        UserError: a scheme that this model cannot have.
    """
    require_schemes(schemes)
    for name in schemes:
        scheme = SCHEMES.get(name)
        if issubclass(scheme, (Int8Qat, InTorch)):
            raise UserError(f"{name} takes a run, not an ONNX file", where="--scheme", fix="take int8-static")
        if scheme.per_target and not targets:
            raise UserError(f"{name} measures on a target", where="--scheme", fix="take `mst-edge deploy --target cpu`")
        if scheme.per_target and request.calibration is None:
            raise UserError(f"{name} judges by real samples", where="--scheme", fix="give them as --calibration")


def _sensitivity(made: PreparedModel, material: Material, folder: Path) -> dict[str, Any] | None:
    """What int8 does to each layer, on samples that judge; nothing where they are random."""
    if not made.said["real"]:
        return None
    return report_sensitivity(material, np.load(made.inputs, mmap_mode="r", allow_pickle=False), folder)


def _origin(request: Request, made: PreparedModel) -> dict[str, Any]:
    data = sha256_file(made.inputs)
    return {"model_sha256": sha256_file(request.file), "data_sha256": data, "seed": request.seed}


def _subject(request: Request, made: PreparedModel, variants: list[Variant]) -> Subject:
    inputs = np.load(made.inputs, mmap_mode="r", allow_pickle=False)
    nameless = np.zeros((len(inputs), 1))  # samples without a class are numbered

    def sample(number: int) -> NDArray[Any]:
        return np.array(inputs[number])

    said = MeasureSection()
    return Subject(
        name=request.name,
        place=RunFolder(request.out),
        variants=variants,
        inputs=made.inputs,
        reference=made.reference,
        truth=made.truth,
        goals=_goals(made),
        protocol=measure.QUICK,
        threads=said.threads,
        licence=NO_LICENCE,
        origin=_origin(request, made),
        examples=example_files(
            made.source.input, sample, nameless if made.truth is None else made.truth, made.source.output.names
        ),
        readme="samples that did not calibrate" if made.said["real"] else "random samples",
        material=made.material(exclude=request.exclude),
        real=made.said["real"],
        ours=False,
        runtimes=request.runtimes,
        tune_seconds=60 * said.tune_minutes if request.tune else 0.0,
    )


def _goals(made: PreparedModel) -> Goals:
    """A recipe's own by default; without labels, limits on drift."""
    section = GoalsSection()
    accuracy, drift = AccuracyGoal(**section.accuracy.model_dump()), DriftGoal()
    if made.truth is None:
        accuracy, drift = AccuracyGoal(), _DRIFT.get(made.source.output.task, _NUMBERS_DRIFT)
    return Goals(accuracy=accuracy, drift=drift, min_int8_speedup=section.min_int8_speedup)
