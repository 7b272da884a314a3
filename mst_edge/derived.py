"""Runs that begin with a trained student: what is left of them is to quantize, deploy and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.student import Student, save_student
from mst_edge.core.files import atomic_path, write_json
from mst_edge.recipe import Recipe
from mst_edge.run_folder import TRAINING, RunFolder


def begin_with(
    student: Student, recipe: Recipe, record: Mapping[str, Any], histories: Mapping[str, Any], folder: Path
) -> RunFolder:
    """A run's folder whose student is there already; ``mst-edge run FOLDER/recipe.yaml --out FOLDER --resume`` does the
    rest.

    Args:
        recipe: that such a run would have. record: of the stage that trains, for the report. histories: of the phases
            that it names. folder: one that is there is replaced.
    """
    with atomic_path(folder) as temporary:
        run = RunFolder(temporary)
        save_student(run.distill, student)
        write_json(run.histories_file, histories)
        run.keep_recipe(recipe)
        run.finish_stage(TRAINING, dict(record))
    return RunFolder(folder)
