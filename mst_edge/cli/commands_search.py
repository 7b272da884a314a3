"""The command that chooses a student: search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mst_edge.cli.commands_run import (
    DeviceOption,
    JsonOption,
    RecipeArg,
    RootOption,
    SetOption,
    TargetOption,
    current_folder,
    read_recipe,
)
from mst_edge.core.errors import UserError


def register(app: typer.Typer) -> None:
    """Adds this file's command."""
    app.command()(search)


def search(
    recipe: RecipeArg,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the search. Default: runs/NAME-search.")] = None,
    prove: Annotated[
        int | None,
        typer.Option("--prove", min=0, metavar="N", help="Train N candidates short, to see what the score is worth."),
    ] = None,
    target: TargetOption = None,
    set_: SetOption = None,
    data_root: RootOption = None,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in --out.")] = False,
    json_: JsonOption = False,
) -> None:
    """Choose a student before training it: score, measured latency and size; some trained as a proof."""
    settings = [*(set_ or ()), *([] if prove is None else [f"search.prove.candidates={prove}"])]
    parsed, root = read_recipe(recipe, settings, data_root, device, target)
    from distill.training.parallel import launched
    from mst_edge.cli.console import ConsoleWatcher
    from mst_edge.report.search import print_search
    from mst_edge.search.study import SearchOptions
    from mst_edge.search.study import search as run_search

    if launched() > 1:
        raise UserError("works in one process", where="search", fix="start it without a launcher")
    folder = out or Path("runs") / f"{parsed.name}-search"
    current_folder(folder)
    with ConsoleWatcher(None, quiet=json_) as watcher:
        record = run_search(parsed, folder, SearchOptions(root, device, json_), watcher, resume=resume)
    if json_:
        typer.echo(json.dumps(record))
    else:
        print_search(record, folder)
