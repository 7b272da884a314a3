"""Trains every contender on every seed, continuing where an earlier call stopped, and writes what came out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.training.phase import Silent
from mst_edge.compare.contenders import LONE, Contender, choose, teacher
from mst_edge.compare.summary import VARY, Vary, summarise
from mst_edge.compare.trial import Request, Trial
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.files import read_json, remove_leftovers, require_unused, write_json
from mst_edge.core.provenance import provenance
from mst_edge.recipe import Recipe, require_same
from mst_edge.report.comparison import write_files
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import keep_identity, make_lab, pick_device

_SETTINGS = "comparison.json"


@dataclass(frozen=True)
class CompareOptions:
    """What the command line adds to a recipe.

    Attributes:
        methods: as the user wrote them; None for the recipe's.
        vary: what a seed changes; the other seed stays the recipe's.
        quiet: show no progress.
    """

    methods: str | None
    seeds: tuple[int, ...]
    vary: Vary
    ablations: bool
    data_root: Path | None
    device: str
    quiet: bool


class TrialError(Exception):
    """A trial's process ended by a bug of ours, or was killed; carries what it said."""


def parse_seeds(said: str) -> tuple[int, ...]:
    """Seeds from ``0,1,2``.

    Raises:
        UserError: not distinct whole numbers from 0.
    """
    words = [word.strip() for word in said.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise UserError(f"expected whole numbers from 0, received {said!r}", where="--seeds", fix="write them as 0,1,2")
    seeds = tuple(int(word) for word in words)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"expected distinct seeds, received {said!r}", where="--seeds", fix="name each once")
    return seeds


def parse_vary(said: str) -> Vary:
    """What a seed changes.

    Raises:
        UserError: an unknown word.
    """
    for known in VARY:
        if said == known:
            return known
    raise unknown_name("choice", said, VARY, where="--vary")


def compare(recipe: Recipe, out: Path, options: CompareOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains what is not trained yet; writes compare.csv, .md, .svg and .json into ``out`` and returns the last.

    Raises:
        UserError: anything wrong with recipe, data, methods or ``out``; nothing was written then.
        TrialError: a trial ended without a result.
    """
    device = pick_device(options.device)
    first = seeded(recipe, options.seeds[0], options.vary)
    lab = make_lab(first, prepare(first, options.data_root), out, device, Silent())
    students = choose(options.methods, recipe, lab, with_ablations=options.ablations, say=say)
    _begin(out, {"recipe": recipe.to_dict(), "device": device.type, "vary": options.vary}, recipe)
    keep_identity(lab, out / "teachers.json")
    known = list(lab.teachers)
    del lab  # the processes that train need the memory more
    results = [_Seed(recipe, seed, out, options, known, say).train(students) for seed in options.seeds]
    teachers = [row for row in map(teacher, known) if row.label in results[0]]
    record = {
        "name": recipe.name,
        "recipe": recipe.to_dict(),
        "device": device.type,
        "vary": options.vary,
        **summarise(recipe, options.seeds, options.vary, [*teachers, *students], results),
        "trials": [
            {**trial.record, "seed": seed}
            for seed, trials in zip(options.seeds, results, strict=True)
            for trial in trials.values()
        ],
        "provenance": provenance(
            recipe_sha256=recipe.sha256(),
            data_sha256={str(s): t[LONE].record["data_sha256"] for s, t in zip(options.seeds, results, strict=True)},
            seeds=list(options.seeds),
        ),
    }
    write_files(record, out)
    return record


def seeded(recipe: Recipe, seed: int, vary: Vary) -> Recipe:
    """The recipe on one seed: another initialisation, another split, or both."""
    if vary != "split":
        recipe = recipe.model_copy(update={"seed": seed})
    if vary != "initialisation":
        split = recipe.dataset.split.model_copy(update={"seed": seed})
        recipe = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"split": split})})
    return recipe


def _begin(out: Path, settings: Mapping[str, Any], recipe: Recipe) -> None:
    """Opens a new folder, or an earlier one of the same recipe on the same device, where seeds meant the same."""
    file = out / _SETTINGS
    if file.is_file():
        earlier = read_json(file)
        require_same(recipe, earlier["recipe"], out)
        for flag in ("device", "vary"):
            if earlier[flag] != settings[flag]:
                raise UserError(
                    f"the comparison was begun with --{flag} {earlier[flag]}, not {settings[flag]}",
                    where=out,
                    fix=f"use --{flag} {earlier[flag]}, or another --out",
                )
        remove_leftovers(out)
        return
    require_unused(out, "comparison")
    write_json(file, settings)


class _Seed:
    """All trials of one seed: same split, same features, same initial student, same teachers."""

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        out: Path,
        options: CompareOptions,
        teachers: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self._main_teacher = next(iter(teachers), "")
        self._recipe, self._seed = seeded(recipe, seed, options.vary), seed
        self._options, self._say = options, say
        self._folder = out / "seeds" / str(seed)

    def train(self, students: Sequence[Contender]) -> dict[str, Trial]:
        """Trials by label.

        Raises:
            UserError: the data changed since the first of them.
        """
        done: dict[str, Trial] = {}
        if any(student.method != LONE for student in students):
            self._train_teacher(self._main_teacher, done)
        for student in students:
            while isinstance(answer := self._ask(student), str):
                if teacher(answer).label in done:
                    raise TrialError(f"{student.label} does not find the {answer} teacher in {self._folder}")
                self._train_teacher(answer, done)
            for name in answer.record["borrowed"]:
                self._train_teacher(name, done)
            done[student.label] = answer
        hashes = {trial.record["data_sha256"] for trial in done.values()}
        if len(hashes) > 1:
            raise UserError("the data changed while methods were compared", where=self._folder, fix="use another --out")
        return done

    def _train_teacher(self, name: str, done: dict[str, Trial]) -> None:
        contender = teacher(name)
        if contender.label not in done:
            answer = self._ask(contender)
            assert isinstance(answer, Trial)  # a teacher needs no teacher
            done[contender.label] = answer

    def _ask(self, contender: Contender) -> Trial | str:
        """The finished trial; or the name of a teacher that has to be trained before."""
        request = Request(
            self._recipe.to_dict(),
            contender,
            self._folder,
            self._options.data_root,
            self._options.device,
            self._options.quiet,
        )
        title = f"[bold]seed {self._seed}: {contender.label}[/bold]"
        earlier = request.finished()
        if earlier is not None:
            self._say(f"{title} done already")
            return earlier
        self._say(title)
        answer = run_apart(request)
        if "needs" in answer:
            return str(answer["needs"])
        trial = request.finished()
        assert trial is not None
        return trial


def run_apart(request: Request) -> dict[str, Any]:
    """Trains what is asked for in a process of its own; its answer names a teacher that it ``needs`` first, if any.

    Raises:
        UserError: what is wrong with recipe or data.
        TrialError: the process ended without an answer, or by a bug.
    """
    command = [sys.executable, "-m", "mst_edge.compare.trial", request.to_json()]
    # The process ends itself when its standard input closes, whatever becomes of this one.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode or not said:
        raise TrialError(
            f"the process that trained {request.contender.label} on seed {request.folder.name} ended with code "
            f"{process.returncode} (-9 is mostly too little memory); the same command continues"
        )
    answer: dict[str, Any] = json.loads(said)
    if "error" in answer:
        problem, where, fix = answer["error"]
        raise UserError(problem, where=where, fix=fix)
    if "bug" in answer:
        error = TrialError(f"in {request.contender.label}, {answer['bug'].strip().splitlines()[-1]}")
        error.add_note(answer["bug"])
        raise error
    return answer
