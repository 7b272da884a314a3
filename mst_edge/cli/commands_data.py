"""Commands about datasets: list, fetch, build, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(help="Datasets: list, fetch, build, verify.", no_args_is_help=True, rich_markup_mode=None)
NameArg = Annotated[str, typer.Argument(help="Name of a built-in dataset.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Option of the dataset: key=value.")]
RootOption = Annotated[
    Path | None, typer.Option("--data-root", help="Folder of raw public data. Default: MST_EDGE_DATA.")
]


def register(app: typer.Typer) -> None:
    """Adds ``mst-edge data``."""
    app.add_typer(data_app, name="data")


@data_app.command("list")
def list_(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What can be named in a recipe."""
    from distill.datasets.builder import DATASETS

    rows = [
        {
            "name": name,
            "summary": DATASETS.get(name).summary,
            "split_by": list(DATASETS.get(name).groupings),
            "licence": DATASETS.get(name).licence,
            "files": [source.files[0] for source in DATASETS.get(name).sources],
        }
        for name in DATASETS.names()
    ]
    if json_:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['name']:12} {row['summary']}\n{'':12} licence: {row['licence']}")


@data_app.command()
def fetch(
    name: NameArg,
    data_root: RootOption = None,
    mirror: Annotated[str, typer.Option("--from", help="Address of a mirror laid out like the data folder.")] = "",
    set_: SetOption = None,
) -> None:
    """Download a dataset's raw files: resumable, and verified."""
    from mst_edge.data_commands import fetch_dataset

    fetch_dataset(name, data_root, mirror, set_ or [])


@data_app.command()
def verify(name: NameArg, data_root: RootOption = None, set_: SetOption = None) -> None:
    """Check a dataset's raw files: says precisely what is missing or malformed."""
    from mst_edge.data_commands import verify_dataset

    verify_dataset(name, data_root, set_ or [])


@data_app.command()
def build(
    name: NameArg,
    out: Annotated[Path, typer.Option("--out", help="Folder of arrays to write.")],
    data_root: RootOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the split and the pairing.")] = 0,
    by: Annotated[str, typer.Option("--by", help="Grouping that is never split.")] = "",
    set_: SetOption = None,
) -> None:
    """Write a built-in dataset as a folder of arrays."""
    from mst_edge.data_commands import build_to_folder

    build_to_folder(name, out, data_root, seed, by, set_ or [])
