"""More of a finished run: further variants of its student, and builds for further targets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.student import Student, load_student
from mst_edge.core.errors import UserError
from mst_edge.core.files import require_unused, write_json
from mst_edge.front import summary
from mst_edge.on_board import Board, holds_bundle, packed_before, run_on_board
from mst_edge.pipeline import Watcher
from mst_edge.recipe import Recipe, load_recipe
from mst_edge.report.page import write_report
from mst_edge.run_folder import RunFolder
from mst_edge.search.stage import settled_by
from mst_edge.stages import variants
from mst_edge.stages.board import made_of
from mst_edge.stages.data import prepare
from mst_edge.stages.deploy import run_deploy, stage_name
from mst_edge.stages.distill import make_lab, pick_device
from mst_edge.stages.goals import goals_of
from mst_edge.stages.mixed import Judge, measurable, search_for
from mst_edge.stages.qat import teaching
from quantize.api import make_variants
from quantize.calibration import FOLDER, Calibration, load_calibration, save_calibration
from quantize.mixed import Search
from quantize.samples import read_samples, split_samples
from quantize.schemes.base import SCHEMES, Material, Teach, require_schemes
from quantize.schemes.int8_trained import Int8Qat
from quantize.variant import InputSpec, Variant, load_variant
from targets.target import require_runtimes


def quantize_run(
    path: Path,
    schemes: Sequence[str],
    *,
    calibration: Path | None,
    exclude: Sequence[str],
    out: Path | None,
    data_root: Path | None,
    device: str,
    watcher: Watcher,
) -> dict[str, Any]:
    """Makes variants of a run's student: beside those it has, or in ``out``.

    Args:
        calibration: folder of other samples than those that the run kept.
        exclude: layers that stay in float, instead of the recipe's.

    Raises:
        UserError: the run has no variants yet; whatever is wrong with schemes or samples.
    """
    run, recipe, done = _open(path)
    names = tuple(schemes) or recipe.quantize.schemes
    require_schemes(names)
    if calibration is not None and out is None:
        raise UserError(
            "a run keeps the samples that its variants were calibrated with", where="--calibration", fix="add --out DIR"
        )
    source = load_variant(run.variants / "fp32")
    kept = load_calibration(run.variants / FOLDER)
    place = run.variants
    if out is not None:
        require_unused(out, "variants")
        place = out / "variants"
    student = load_student(run.distill)
    inputs = np.load(run.evaluation / "inputs.npy", mmap_mode="r", allow_pickle=False)
    material = Material(
        source,
        kept,
        recipe.quantize.calibration.calibrator,
        tuple(exclude) or recipe.quantize.exclude,
        student=student,
        raw=inputs[: variants.PARITY_SAMPLES],
    )
    if any(issubclass(SCHEMES.get(name), Int8Qat) for name in names):
        material = replace(material, teach=_teaching(run, recipe, student, data_root, device, watcher))
    if calibration is not None:
        material = replace(material, calibration=_calibration(calibration, source.input, recipe.seed, place / FOLDER))
    made, skipped = make_variants(material, names, place, _searches(run, recipe, source, watcher))
    rows = [variants.variant_row(variant) for variant in made]
    if out is None:
        fresh = {row["name"] for row in rows}
        kept_rows = [row for row in done["variants"] if row["name"] not in fresh]
        run.finish_stage(variants.STAGE, {**done, "variants": [*kept_rows, *rows], "skipped": skipped})
    return {
        "name": recipe.name,
        "real": material.calibration.real,
        "variants": rows,
        "skipped_schemes": skipped,
        "folder": str(place),
    }


def deploy_there(path: Path, board: Board, data_root: Path | None, watcher: Watcher) -> dict[str, Any]:
    """Takes a run's variants to a board, or a model's that is packed for it already; a bundle that is still right goes
    on where it was.

    Raises:
        UserError: as ``deploy_run``; whatever keeps the board from building, checking and measuring.
    """
    if not holds_bundle(path, board.name):
        run, recipe, done = _open(path)
        parts = made_of(variants.load_variants(run, done))
        if packed_before(run, board, asdict(goals_of(recipe, board.name)), parts):
            watcher.step(f"packed before: {run.bundle(board.name)}")
        else:
            deploy_run(path, [board.name], data_root, watcher)
    return run_on_board(RunFolder(path), board, watcher)


def deploy_run(
    path: Path,
    targets: Sequence[str],
    data_root: Path | None,
    watcher: Watcher,
    *,
    runtimes: Sequence[str] = (),
    tune: bool = False,
) -> dict[str, Any]:
    """Builds, measures, judges and packs a run's variants for targets; its result and report then hold them.

    Args:
        runtimes: that build, instead of the recipe's.
        tune: whether builds are tuned though the recipe does not ask for it.

    Raises:
        UserError: the run is not finished, or its data is not there; an unknown runtime.
    """
    run, recipe, done = _open(path)
    said = recipe.measure
    named = tuple(runtimes) or said.runtimes
    require_runtimes(targets, named, "--runtime" if runtimes else "measure.runtimes")
    wanted = said.model_copy(update={"runtimes": named, "tune": tune or said.tune})
    recipe = recipe.model_copy(update={"measure": wanted})
    result = run.result()
    data = prepare(recipe, data_root)
    loaded = variants.load_variants(run, done)
    for name in targets:
        watcher.stage(f"deploy to {name}")
        with run.explained():
            record = run_deploy(recipe, data, run, loaded, name, watcher)
        others = [target for target in result["targets"] if stage_name(target["target"]) != stage_name(name)]
        result["targets"] = [*others, record]
    result |= {
        "variants": done["variants"],
        "skipped_schemes": done["skipped"],
        **summary(result["targets"]),
    }
    write_json(run.result_file, result)
    write_report(run)
    return result


def _open(path: Path) -> tuple[RunFolder, Recipe, dict[str, Any]]:
    run = RunFolder(path)
    done = run.stage_result(variants.STAGE)
    if not run.recipe_file.is_file() or done is None:
        raise UserError(
            "neither a run with variants nor an ONNX file",
            where=path,
            fix="finish the run with `mst-edge run RECIPE --out DIR --resume`, or give a MODEL.onnx",
        )
    return run, settled_by(run, load_recipe(run.recipe_file)), done


def _teaching(
    run: RunFolder, recipe: Recipe, student: Student, data_root: Path | None, device: str, watcher: Watcher
) -> Teach:
    data = prepare(recipe, data_root)
    lab = functools.cache(lambda: make_lab(recipe, data, run.distill, pick_device(device), watcher))
    return teaching(recipe, lab, student)


def _searches(run: RunFolder, recipe: Recipe, source: Variant, watcher: Watcher) -> dict[str, Callable[[str], Search]]:
    """By target, what schemes need that measure on it."""

    def search(target: str) -> Search:
        judge = Judge(
            load_calibration(run.variants / variants.TUNING), goals_of(recipe, target), recipe.measure.threads
        )
        place = run.variants / variants.SEARCH / target
        return search_for(source, judge, recipe.quantize.mixed, target, place, watcher.step)

    return dict.fromkeys(measurable(recipe.targets), search)


def _calibration(folder: Path, spec: InputSpec, seed: int, place: Path) -> Calibration:
    """Half of a folder's samples, kept beside the variants."""
    samples = read_samples(folder, spec)
    numbers, _ = split_samples(samples.count, None, seed)
    return save_calibration(
        place,
        len(numbers),
        lambda portion: samples.read(numbers[portion]),
        real=samples.real,
        about={"numbers": numbers.tolist()},
    )
