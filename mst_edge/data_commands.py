"""What ``mst-edge data`` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from distill.datasets.arrays import open_arrays
from distill.datasets.builder import DATASETS, DatasetBuilder, default_data_root, find_data_root
from distill.datasets.sources import Source, fetch
from distill.datasets.splits import SplitRule
from mst_edge.core.errors import UserError
from mst_edge.recipe import parse_options


def fetch_dataset(name: str, data_root: Path | None, mirror: str, settings: Sequence[str]) -> None:
    """Brings the raw files that a build with these options reads into the data folder, each verified.

    Raises:
        UserError: unknown dataset, or a file that could not be fetched or does not verify.
    """
    sources = _sources(name, settings)
    configured = data_root or os.environ.get("MST_EDGE_DATA")
    root = Path(configured) if configured else default_data_root()
    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
    for source in sources:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(source.name, total=None)
            path = fetch(
                source,
                root,
                mirror=mirror,
                progress=lambda _url, done, total: progress.update(task, completed=done, total=total),  # noqa: B023
            )
        typer.echo(f"ok  {source.name}: {path}")


def verify_dataset(name: str, data_root: Path | None, settings: Sequence[str]) -> None:
    """Checks every raw file that a build with these options reads and says of each what it found.

    Raises:
        UserError: something is missing or malformed; the message counts, the lines before it tell.
    """
    root = find_data_root(data_root)
    if root is None:
        raise UserError(
            "no data folder is known", where=name, fix=f"run `mst-edge data fetch {name}`, or give --data-root"
        )
    sources, bad = _sources(name, settings), 0
    for source in sources:
        try:
            path = source.locate(root, f"mst-edge data fetch {name}")
            source.verify(path, path.relative_to(root).as_posix())
            typer.echo(f"ok   {source.name}: {path}")
        except UserError as error:
            bad += 1
            typer.echo(f"BAD  {source.name}: {error}")
    if bad:
        raise UserError(f"{bad} of {len(sources)} files are missing or malformed", where=root)
    DATASETS.get(name)().check_together(root)


def build_to_folder(name: str, out: Path, data_root: Path | None, seed: int, by: str, settings: Sequence[str]) -> None:
    """Writes a built-in dataset as a folder of arrays.

    Raises:
        UserError: the folder exists, or an option is wrong.
    """
    if out.exists():
        raise UserError("exists already", where=out, fix="give another --out")
    builder = DATASETS.get(name)()
    options = _options(builder, settings)
    rule = SplitRule(seed, by=by or builder.groupings[0])
    if rule.by not in builder.groupings:
        raise UserError(
            f"{name} cannot be split by {by!r}", where="--by", fix=f"one of: {', '.join(builder.groupings)}"
        )
    builder.build(options, rule, find_data_root(data_root), out)
    dataset = open_arrays(out)
    what = f"{len(dataset.classes)} classes" if dataset.classes else ", ".join(dataset.truth.names)
    typer.echo(f"{out}: {len(dataset)} samples, {', '.join(dataset.modalities)}, {what}")


def _options(builder: DatasetBuilder, settings: Sequence[str]) -> Any:
    said = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise UserError(f"expected key=value, received {setting!r}", where="--set")
        said[key] = yaml.safe_load(value)
    return parse_options(builder.Options, said, where="--set")


def _sources(name: str, settings: Sequence[str]) -> Sequence[Source]:
    builder = DATASETS.get(name)()
    sources = builder.needs(_options(builder, settings))
    if not sources:
        typer.echo(f"{name} ships with mst-edge: there is nothing to fetch")
    return sources
