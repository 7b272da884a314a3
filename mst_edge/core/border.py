"""Parsing at the border: a schema's complaint becomes one line that names the key and its mend.

Works with any pydantic model without importing pydantic, so that this package stays a leaf.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mst_edge.core.errors import UserError

M = TypeVar("M")


def parse(model: type[M], data: object, *, where: object) -> M:
    """Validates ``data`` against a pydantic ``model``.

    Raises:
        UserError: names the first offending key by its dotted path; an unknown key gets the closest
            known one.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"expected keys and values, received {type(data).__name__}", where=where)
    try:
        return model.model_validate(data)  # type: ignore[attr-defined]
    except UserError as error:
        # A validator of the model itself said it best; add the file.
        raise UserError(error.problem, where=f"{where}: {error.where}", fix=error.fix) from None
    except ValueError as error:
        problems = error.errors() if hasattr(error, "errors") else None
        if problems is None:
            raise
        # An unknown key explains best what went wrong elsewhere (a misspelt required key, say).
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        raise _as_user_error(model, problems[0], where) from None


def _as_user_error(model: type, problem: dict[str, Any], where: object) -> UserError:
    path = [str(part) for part in problem["loc"]]
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.4)
        fix = f"did you mean {close[0]!r}? " if close else ""
        return UserError(
            f"unknown key {dotted!r}", where=where, fix=f"{fix}Known keys here: {', '.join(sorted(known))}"
        )
    if problem["type"] == "missing":
        return UserError(f"key {dotted!r} is missing", where=where)
    message = problem["msg"].removeprefix("Value error, ")
    return UserError(f"{dotted}: {message}; received {_short(problem['input'])}", where=where)


def _known_keys(model: Any, path: Sequence[str]) -> list[str]:
    """Field names of the model found by walking ``path`` from ``model``."""
    current: Any = model
    for part in path:
        current = _child(current, part)
        if current is None:
            return []
    current = _model_in(current)
    return list(current.model_fields) if current is not None else []


def _child(annotation: Any, part: str) -> Any:
    model = _model_in(annotation)
    if model is not None:
        field = model.model_fields.get(part)
        return None if field is None else field.annotation
    for option in _options(annotation):
        arguments = typing.get_args(option)
        if typing.get_origin(option) in (dict, list, tuple) and arguments:
            return arguments[-1] if arguments[-1] is not Ellipsis else arguments[0]
        if isinstance(option, type) and part == option.__name__:
            return option
    return None


def _model_in(annotation: Any) -> Any:
    for option in _options(annotation):
        if hasattr(option, "model_fields"):
            return option
    return None


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone; Annotated wrappers removed."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_yaml(path: Path) -> Any:
    """The value in a YAML file (safe loader).

    Raises:
        UserError: the file is missing, unreadable or not YAML; says the line.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=path) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"not valid YAML ({getattr(error, 'problem', error)})", where=place) from None
