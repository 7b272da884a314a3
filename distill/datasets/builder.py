"""What turns raw public files, or data shipped with us, into a dataset folder; and where built ones are kept."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

from distill.datasets.arrays import open_arrays
from distill.datasets.sources import Source
from distill.datasets.spec import Dataset
from distill.datasets.splits import SplitRule
from mst_edge.core.cache import cache_root
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_json
from mst_edge.core.registry import Registry


@dataclass(frozen=True)
class NoOptions:
    """For a builder without options."""


class DatasetBuilder(ABC):
    """One public dataset.

    Pairs are made inside the splits, so the rule for splitting is an input of the build and the built
    folder carries its split.

    Class attributes:
        summary: one line for ``mst-edge data list``.
        version: raise it when the same options give other arrays.
        Options: frozen dataclass of what a recipe may set under ``dataset.options``.
        groupings: what ``dataset.split.by`` may be; the first is the default.
        sources: the raw files that a build with default options reads; empty where everything ships with us.
    """

    summary: ClassVar[str]
    licence: ClassVar[str]
    version: ClassVar[int] = 1
    Options: ClassVar[type] = NoOptions
    groupings: ClassVar[Sequence[str]] = ()
    sources: ClassVar[Sequence[Source]] = ()

    def needs(self, options: Any) -> Sequence[Source]:
        """The raw files that a build with ``options`` reads; all ``sources`` unless a builder knows better."""
        return self.sources

    def check_together(self, root: Path) -> None:  # noqa: B027
        """Checks what the raw files say of each other, after each was checked alone.

        Raises:
            UserError: they contradict each other; names the first sample.
        """

    @abstractmethod
    def build(self, options: Any, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        """Writes the dataset folder ``out``; the same inputs always give the same bytes."""


DATASETS: Registry[DatasetBuilder] = Registry("dataset", "distill.datasets.library", "mst_edge.datasets")


def find_data_root(flag: Path | None) -> Path | None:
    """The folder of raw public files: the flag, else ``MST_EDGE_DATA``, else what ``data fetch`` fills.

    Raises:
        UserError: a folder was named and does not exist.
    """
    for path, where in ((flag, "--data-root"), (os.environ.get("MST_EDGE_DATA"), "MST_EDGE_DATA")):
        if path:
            if not Path(path).is_dir():
                raise UserError(f"no such folder: {path}", where=where)
            return Path(path)
    fetched = default_data_root()
    return fetched if fetched.is_dir() else None


def default_data_root() -> Path:
    """Where ``mst-edge data fetch`` puts raw files unless told otherwise."""
    return cache_root() / "raw"


def build_dataset(name: str, options: object, rule: SplitRule, data_root: Path | None) -> Dataset:
    """Builds a named dataset, or opens the one built before from the same inputs.

    Raises:
        UserError: unknown name or grouping, or raw files missing.
    """
    builder = DATASETS.get(name, where="dataset.name")()
    if rule.by and rule.by not in builder.groupings:
        raise UserError(
            f"{name} cannot be split by {rule.by!r}",
            where="dataset.split.by",
            fix=f"one of: {', '.join(builder.groupings)}",
        )
    rule = replace(rule, by=rule.by or builder.groupings[0])
    key = {
        "name": name,
        "version": builder.version,
        "options": asdict(cast(Any, options)),
        "rule": asdict(rule),
        "raw": raw_identity(builder, options, data_root),
    }
    folder = cache_root() / "datasets" / f"{name}-{sha256_json(key)[:16]}"
    if not folder.is_dir():
        builder.build(options, rule, data_root, folder)
    return open_arrays(folder)


def raw_identity(builder: DatasetBuilder, options: object, data_root: Path | None) -> Mapping[str, object]:
    """Name, size and time of every raw file that a build reads; part of the key of what was built.

    Raises:
        UserError: no data folder, or a raw file is missing from it.
    """
    needed = builder.needs(options)
    if not needed:
        return {}
    names = sorted(DATASETS.names(), key=lambda name: DATASETS.get(name) is not type(builder))
    root = require_root(data_root, names[0])
    return {source.name: _stamps(source.locate(root, f"mst-edge data fetch {names[0]}")) for source in needed}


def require_root(data_root: Path | None, name: str) -> Path:
    """The folder of raw files, for a build that cannot do without.

    Raises:
        UserError: none is known; says how to get one.
    """
    if data_root is None:
        raise UserError(
            "needs raw files and no data folder is known",
            where=f"dataset {name}",
            fix=f"run `mst-edge data fetch {name}`, or give --data-root (or MST_EDGE_DATA)",
        )
    return data_root


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    stamps = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            status = file.stat()
            stamps.append((file.relative_to(path.parent).as_posix(), status.st_size, status.st_mtime_ns))
    return stamps
