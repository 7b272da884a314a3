"""The search as the first stage of a run."""

from __future__ import annotations

from typing import Any, Protocol

from distill.training.phase import Reporter
from mst_edge.core.errors import UserError
from mst_edge.recipe import Recipe
from mst_edge.run_folder import RunFolder
from mst_edge.search.space import Candidate, settled
from mst_edge.search.study import SearchOptions, Study
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import checked_methods, make_lab, pick_device

STAGE = "search"


class Watcher(Reporter, Protocol):
    """Who is told how the stage goes."""

    def stage(self, title: str) -> None: ...

    def step(self, text: str) -> None: ...

    def busy(self, text: str) -> None: ...


def settled_by(run: RunFolder, recipe: Recipe) -> Recipe:
    """The run's recipe with the student that its search chose; as it is where nothing was searched."""
    record = run.stage_result(STAGE)
    return recipe if record is None else settled(recipe, Candidate.from_dict(record["chosen"]))


def run_search(recipe: Recipe, run: RunFolder, options: SearchOptions, processes: int, watcher: Watcher) -> Recipe:
    """Searches where the recipe asks for it and it is not done yet; returns the recipe with the chosen student.

    All that the run will train is built once for one of the candidates before the search begins.

    Raises:
        UserError: as ``Study`` and ``checked_methods``; or several processes were started.
    """
    if recipe.search is None:
        return recipe
    if run.stage_result(STAGE) is None:
        if processes > 1:
            raise UserError(
                "a search works in one process",
                where="search",
                fix="run `mst-edge search` first and its chosen.yaml with many, or start this without a launcher",
            )
        study = Study(recipe, run.path / STAGE, options, watcher)
        first = settled(recipe, study.first)
        data = prepare(first, options.data_root)
        checked_methods(first, make_lab(first, data, run.distill, pick_device(options.device), watcher))
        watcher.stage("search")
        run.keep_recipe(recipe)
        run.finish_stage(STAGE, _summary(study.run()))
    return settled_by(run, recipe)


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    """What later stages and the report need of a search; the rest lies in ``search/search.json``."""
    return {name: record[name] for name in ("chosen", "verdict", "space", "targets", "correlations")}


def said_of(run: RunFolder) -> list[dict[str, str]]:
    """What people should hear of the run's search, as a diagnosis has it; nothing where there was none."""
    record = run.stage_result(STAGE)
    if record is None:
        return []
    chosen = record["chosen"]
    text = f"the search chose {chosen['label']}: {chosen['text']}; {record['verdict']['text']}"
    return [{"level": "note", "text": text}]
