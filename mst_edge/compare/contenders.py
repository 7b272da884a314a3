"""Who is compared: methods by name and preset, MST-Distill with parts left out, and the teachers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.lab import Lab
from distill.methods.base import METHODS
from distill.methods.mst import MstDistill
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_json
from mst_edge.recipe import Recipe, parse_options
from mst_edge.stages.distill import method_options

FLAG = "--methods"
ALL, LONE = "all", "lone"


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        label: what people call it: ``kd``, ``mst:paper``, ``mst no masks``, ``multimodal teacher``.
        method: name of the method; of a teacher, the teacher's name.
        options: every option of the method, defaults spelt out, JSON-able.
    """

    label: str
    method: str
    preset: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    role: Literal["student", "teacher"] = "student"

    @property
    def slug(self) -> str:
        """Name of its folder: the same for the same method with the same options, and for nothing else."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.label)
        return f"{readable}-{sha256_json([self.role, self.method, dict(self.options)])[:8]}"

    def parsed_options(self) -> Any:
        """The method's options as the method wants them."""
        return parse_options(METHODS.get(self.method).Options, self.options, where="distill.options")


def teacher(name: str) -> Contender:
    """The row of a teacher that is trained alone."""
    return Contender(f"{name} teacher", name, role="teacher")


def choose(
    said: str | None,
    recipe: Recipe,
    lab: Lab,
    *,
    with_ablations: bool,
    say: Callable[[str], None] = lambda line: None,
) -> list[Contender]:
    """The students to compare: ``lone`` first, then the rest in the order that the user wrote.

    Args:
        said: ``NAME`` or ``NAME:PRESET``, comma-separated; ``all`` that can do the task with these networks; None for
            the recipe's method and ``compare``.
        say: told which of ``all`` are left out, and why.

    Raises:
        UserError: an unknown method or preset, two that are the same, options that contradict each other, or
            no MST-Distill to take parts from.
    """
    wanted = [recipe.distill.method, *recipe.distill.compare] if said is None else _names(said, recipe, lab, say)
    labels = list(dict.fromkeys([LONE, *wanted]))
    found = [contender_of(label, recipe) for label in labels]
    _require_distinct(found)
    methods = [METHODS.get(contender.method)(lab, contender.parsed_options()) for contender in found]
    for method in methods:
        method.check()
    if with_ablations:
        whole = next(((c, m) for c, m in zip(found, methods, strict=True) if isinstance(m, MstDistill)), None)
        if whole is None:
            raise UserError("needs mst among the methods", where="--ablations", fix=f"add mst to {FLAG}")
        found += _ablated(*whole, present=found)
    return found


def _names(said: str, recipe: Recipe, lab: Lab, say: Callable[[str], None]) -> list[str]:
    names = [name.strip() for name in said.split(",")]
    if not all(names):
        raise UserError(f"expected names between commas, received {said!r}", where=FLAG, fix=f"known: {_known()}")
    return [known for name in names for known in (_fitting(recipe, lab, say) if name == ALL else [name])]


def _fitting(recipe: Recipe, lab: Lab, say: Callable[[str], None]) -> list[str]:
    """Every method that can do the task, but for those that want other networks or modalities; of the recipe's own that
    is an error, told later."""
    fitting = []
    for name in METHODS.names():
        if lab.task.name not in METHODS.get(name).tasks:
            continue
        try:
            if name not in (LONE, recipe.distill.method):
                METHODS.get(name)(lab, contender_of(name, recipe).parsed_options()).check()
            fitting.append(name)
        except UserError as error:
            say(f"{name} is left out: {error}")
    return fitting


def contender_of(label: str, recipe: Recipe) -> Contender:
    """Options as the recipe says for its own method, defaults for others; a preset replaces the recipe's."""
    name, _, preset = label.partition(":")
    if "." in name:
        name, preset = label, ""  # package.module:Class
    METHODS.get(name, where=FLAG)
    mine = name == recipe.distill.method
    options = method_options(
        name, preset or (recipe.distill.preset if mine else ""), recipe.distill.options if mine else {}, FLAG
    )
    return Contender(label, name, preset, _plain(options))


def _ablated(whole: Contender, method: MstDistill, present: Sequence[Contender]) -> list[Contender]:
    rows = []
    for label, changes in method.ablations().items():
        options = dataclasses.replace(method.options, **changes)
        row = dataclasses.replace(whole, label=f"{whole.label} {label}", options=_plain(options))
        # What is the whole method, or another row, already (top_k=1 mostly) is not trained twice.
        if all(row.options != other.options or row.method != other.method for other in present):
            rows.append(row)
    return rows


def _require_distinct(found: Sequence[Contender]) -> None:
    for index, one in enumerate(found):
        for other in found[:index]:
            if (one.method, one.options) == (other.method, other.options):
                raise UserError(f"{one.label} is the same as {other.label} here", where=FLAG, fix="name one of them")


def _plain(options: Any) -> dict[str, Any]:
    """Options as JSON would give them back, so that rows read from disk equal rows made here."""
    return {key: _listed(value) for key, value in dataclasses.asdict(options).items()}


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _known() -> str:
    return ", ".join(METHODS.names())
