"""Runs that begin with a trained student: what is left of them is to quantize, deploy and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.student import Student, save_student
from mst_edge.core.files import require_unused, write_json
from mst_edge.recipe import Recipe
from mst_edge.run_folder import RunFolder
from mst_edge.stages.distill import HISTORIES, STAGE


def begin_with(
    student: Student, recipe: Recipe, record: Mapping[str, Any], histories: Mapping[str, Any], folder: Path
) -> RunFolder:
    """A run's folder whose student is there already; ``mst-edge run FOLDER/recipe.yaml --out FOLDER --resume`` does the
    rest.

    Args:
        recipe: that such a run would have. record: of the stage that trains, for the report. histories: of the phases
            that it names.

    Raises:
        UserError: the folder is in use.
    """
    require_unused(folder, "run")
    run = RunFolder(folder)
    save_student(run.distill, student)
    write_json(run.distill / HISTORIES, histories)
    run.keep_recipe(recipe)
    run.finish_stage(STAGE, dict(record))
    return run
