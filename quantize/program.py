"""A student as a torch program in a file: what ``torch.export.save`` writes, read without unpickling anything."""

from __future__ import annotations

import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_TENSORS = re.compile(r"data/(weights|constants)/(weight|tensor)_\d+$")
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_GRAPH, _EXAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_MARKS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
# torch hands expressions to sympy, which evaluates them: these words make arithmetic with sizes, and nothing else.
_WORDS = "Symbol|Integer|Add|Mul|FloorDiv|Mod|positive|integer|nonnegative|True|False"
_EXPRESSION = re.compile(rf"(?:\b(?:{_WORDS})\b|'[su]\d+'|\b[su]?\d+\b|[-+*=(), ])+$")


def write_program(program: ExportedProgram, path: Path) -> None:
    """Writes a program of plain tensors, without the inputs that it was traced with: torch pickles those."""
    import torch

    program._example_inputs = None
    with atomic_path(path) as temporary, quiet():
        torch.export.save(program, temporary)


def read_program(path: Path) -> ExportedProgram:
    """A program as ``write_program`` wrote it.

    Raises:
        UserError: not such a file, or it holds something that torch would unpickle or evaluate.
    """
    problem = _unsafe(path)
    if problem:
        raise UserError(f"is no torch program of ours: {problem}", where=path, fix="make the variants again")
    import torch
    import torch.ao.quantization.fx._decomposed

    with quiet():
        return torch.export.load(path)


def _unsafe(path: Path) -> str:
    """Why a file is not loaded; empty where it holds a graph, raw tensors and nothing else.

    ``torch.export.load`` unpickles weights of a legacy layout, tensors marked so, other objects, and example inputs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            members = dict(zip(names, archive.infolist(), strict=True))
            if len(members) != len(archive.namelist()):
                return "it names a member twice"
            for name, member in members.items():
                if name == _EXAMPLES and member.file_size:
                    return "it holds pickled inputs"
                if name not in (*_CONFIGS, *_MARKS, _GRAPH, _EXAMPLES) and not _TENSORS.match(name):
                    return f"it holds {name}"
            for name in _CONFIGS:
                for key, payload in json.loads(archive.read(members[name]))["config"].items():
                    if payload["use_pickle"] or "/" in payload["path_name"]:
                        return f"{key} is pickled"
            return _evaluated(json.loads(archive.read(members[_GRAPH])))
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _evaluated(said: Any) -> str:
    """The first expression in a graph that is more than arithmetic with sizes; empty where there is none."""
    if isinstance(said, dict):
        expression = said.get("expr_str")
        if expression is not None and not (isinstance(expression, str) and _EXPRESSION.match(expression)):
            return f"it holds the expression {str(expression)[:40]!r}"
        said = list(said.values())
    if isinstance(said, list):
        return next((found for one in said if (found := _evaluated(one))), "")
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences libraries that export and compile: they warn about their own internals, about versions of one another,
    and of what they cannot load."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
