"""The whole line: data, distill, variants, deploy per target, report. Every stage can be resumed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distill.training.parallel import ALONE, Processes, disconnect
from distill.training.phase import Reporter
from mst_edge.core.files import remove_leftovers, write_json
from mst_edge.core.provenance import provenance
from mst_edge.front import summary
from mst_edge.recipe import Recipe
from mst_edge.report.page import write_report
from mst_edge.run_folder import RunFolder
from mst_edge.search.stage import STAGE as SEARCH
from mst_edge.search.stage import run_search, said_of
from mst_edge.search.study import SearchOptions
from mst_edge.stages import deploy, variants
from mst_edge.stages.data import Data, prepare
from mst_edge.stages.distill import STAGE as DISTILL
from mst_edge.stages.distill import checked_methods, make_lab, pick_device, run_distill
from mst_edge.stages.mixed import check_search
from mst_edge.stages.qat import check_training
from mst_edge.stages.subject import overall
from quantize.schemes.base import require_schemes
from targets.target import get_target, require_runtimes


class Watcher(Reporter, Protocol):
    """Who is told how the run goes."""

    def stage(self, title: str) -> None:
        """A stage starts."""

    def step(self, text: str) -> None:
        """A step inside a stage is done."""

    def busy(self, text: str) -> None:
        """What goes on right now, of no lasting interest."""


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to a recipe.

    Attributes:
        until: ``distill`` ends after training; empty runs everything.
        processes: who trains together. They part afterwards; the first one does all the rest alone.
    """

    data_root: Path | None = None
    device: str = "auto"
    until: str = ""
    processes: Processes = ALONE


def run_recipe(recipe: Recipe, run: RunFolder, options: RunOptions, watcher: Watcher) -> dict[str, Any]:
    """Runs what is not finished yet and returns the result; writes ``result.json`` and ``report.html``.

    Nothing is written to the run's folder before all that the recipe names was found and fits. Of several
    processes, those that only help to train end with it, and return no more than a gate that was not run.

    Raises:
        UserError: something in the recipe or in the data is wrong.
    """
    with run.explained():
        return _run(recipe, run, options, watcher)


def _run(asked: Recipe, run: RunFolder, options: RunOptions, watcher: Watcher) -> dict[str, Any]:
    recipe = asked
    targets = [get_target(name) for name in recipe.targets]  # fail on a wrong name before training
    for name in recipe.goals.targets:
        get_target(name)
    require_runtimes(recipe.targets, recipe.measure.runtimes, "measure.runtimes")
    if options.until != "distill":
        for target in targets:
            target.require_here()
        require_schemes(recipe.quantize.schemes)
        check_search(recipe)
    processes = options.processes
    processes.wait()  # till all have seen the folder as it was
    if processes.first:
        remove_leftovers(run.path)
    recipe = run_search(
        asked, run, SearchOptions(options.data_root, options.device, quiet=True), processes.size, watcher
    )
    watcher.stage("data")
    with processes.first_alone():
        data = prepare(recipe, options.data_root)
    for note in data.dataset.notes if processes.first else ():
        watcher.step(f"NOTE of the data: {note}")
    trained = run.stage_result(DISTILL)
    if trained is None:
        with processes.first_alone():
            lab = make_lab(recipe, data, run.distill, pick_device(options.device), watcher, processes)
        methods = checked_methods(recipe, lab)
        if options.until != "distill":
            check_training(recipe, data, lab, methods)
        watcher.stage("distill")
        if processes.first:
            run.keep_recipe(asked)
        trained = run_distill(recipe, data, run, lab, methods)
    disconnect(processes)
    if not processes.first:
        return {"gate": overall([])}
    deployed = []
    made: dict[str, Any] = {"variants": [], "skipped": [], "sensitivity": None, "stream": None}
    if options.until != "distill":
        made = run.stage_result(variants.STAGE) or _make_variants(recipe, data, run, options.device, watcher)
        loaded = variants.load_variants(run, made)
        for target in targets:
            record = run.stage_result(deploy.stage_name(target.spec.name))
            if record is None:
                watcher.stage(f"deploy to {target.spec.name}")
                record = deploy.run_deploy(recipe, data, run, loaded, target.spec.name, watcher)
            deployed.append(record)
    result = {
        "name": recipe.name,
        "recipe": recipe.to_dict(),
        "data": data.summary(),
        "search": run.stage_result(SEARCH),
        "distill": {**trained, "diagnoses": [*said_of(run), *trained["diagnoses"]]},
        "variants": made["variants"],
        "skipped_schemes": made["skipped"],
        "sensitivity": made["sensitivity"],
        "stream": made.get("stream"),  # runs that were begun before there was one have none
        **summary(deployed),
        "provenance": provenance(recipe_sha256=recipe.sha256(), data_sha256=data.dataset.fingerprint, seed=recipe.seed),
    }
    write_json(run.result_file, result)
    write_report(run)
    return result


def _make_variants(recipe: Recipe, data: Data, run: RunFolder, device: str, watcher: Watcher) -> dict[str, Any]:
    watcher.stage("quantize")
    lab = functools.cache(lambda: make_lab(recipe, data, run.distill, pick_device(device), watcher))
    return variants.run_variants(recipe, data, run, lab, watcher.step)
