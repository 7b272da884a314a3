"""The folder of one run: what lies where, how it begins and how it is continued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from mst_edge.core.cache import journal
from mst_edge.core.errors import UserError
from mst_edge.core.files import read_json, require_unused, write_json, write_text
from mst_edge.recipe import Recipe, require_same

TRAINING = "distill"  # the stage that trains


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def distill(self) -> Path:
        """Student, training phases, histories."""
        return self.path / "distill"

    @property
    def histories_file(self) -> Path:
        """Epoch by epoch of every phase."""
        return self.distill / "histories.json"

    @property
    def variants(self) -> Path:
        """Exported variants and calibration samples."""
        return self.path / "variants"

    @property
    def stream(self) -> Path:
        """The model of one frame after another, of a student that streams."""
        return self.path / "stream"

    @property
    def evaluation(self) -> Path:
        """Raw test inputs, their targets, and the fp32 student's logits for them."""
        return self.path / "evaluation"

    @property
    def result_file(self) -> Path:
        """The whole result, for machines."""
        return self.path / "result.json"

    @property
    def report_file(self) -> Path:
        """The whole result, for people."""
        return self.path / "report.html"

    def keep_recipe(self, recipe: Recipe) -> None:
        """Writes the resolved recipe, which makes the folder a run's."""
        write_text(self.recipe_file, recipe.to_yaml())

    def builds(self, target: str) -> Path:
        """Builds for one target."""
        return self.path / "builds" / target

    def bundle(self, target: str) -> Path:
        """The bundle for one target."""
        return self.path / "bundles" / target

    @property
    def lookups_file(self) -> Path:
        """What the cache was asked for, a line of JSON each, see ``explained``."""
        return self.path / "cache.jsonl"

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Keeps what the cache is asked for meanwhile; nothing where the folder has nothing else at the end."""
        with journal() as lookups:
            try:
                yield
            finally:
                if lookups and self.path.is_dir() and any(self.path.iterdir()):
                    now = datetime.now(UTC).isoformat(timespec="seconds")
                    with self.lookups_file.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps({"at": now, **asdict(lookup)}) + "\n" for lookup in lookups)

    def lookups(self) -> list[dict[str, Any]]:
        """What the cache was asked for in all executions of this run, in order.

        Raises:
            UserError: nothing was asked for, or the folder is something else.
        """
        if not self.lookups_file.is_file():
            raise UserError(
                "holds no record of what the cache was asked for", where=self.path, fix="give a run's folder"
            )
        return [json.loads(line) for line in self.lookups_file.read_text(encoding="utf-8").splitlines()]

    def stage_result(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage recorded; None where it has not finished."""
        file = self.path / "stages" / f"{stage}.json"
        return read_json(file) if file.is_file() else None

    def finish_stage(self, stage: str, record: dict[str, Any]) -> None:
        """Marks a stage as finished; its files must be whole by now."""
        write_json(self.path / "stages" / f"{stage}.json", record)

    def result(self) -> dict[str, Any]:
        """The run's result.

        Raises:
            UserError: there is none.
        """
        if not self.result_file.is_file():
            raise UserError(
                "holds no result.json",
                where=self.path,
                fix="give a finished run's folder, or continue it with --resume",
            )
        result: dict[str, Any] = read_json(self.result_file)
        return result


def open_run(path: Path, recipe: Recipe, *, resume: bool) -> RunFolder:
    """A new run's folder, or with ``resume`` an earlier one of the same recipe. Writes nothing yet.

    Raises:
        UserError: the folder is in use, or was begun by another recipe.
    """
    run = RunFolder(path)
    if run.recipe_file.is_file():
        if not resume:
            raise UserError("holds a run already", where=path, fix="continue it with --resume, or use another --out")
        require_same(recipe, yaml.safe_load(run.recipe_file.read_text(encoding="utf-8")), path)
    else:
        require_unused(path, "run")
    return run
