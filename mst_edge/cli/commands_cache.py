"""Commands about the cache: list, explain, clear."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

cache_app = typer.Typer(
    help="What is kept so that it is computed once: list, explain, clear.", no_args_is_help=True, rich_markup_mode=None
)
KindsArg = Annotated[
    list[str] | None, typer.Argument(metavar="[KIND]...", help="features, tables or builds. Default: all.")
]


_MOST_CHARACTERS = 60


def register(app: typer.Typer) -> None:
    """Adds ``mst-edge cache``."""
    app.add_typer(cache_app, name="cache")


@cache_app.command("list")
def list_(kinds: KindsArg = None, json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What is kept: its kind, its size, when it was last used, and with --json all that it depends on."""
    from mst_edge.core.cache import KINDS, cache_root, entries

    rows = entries(cache_root(), _known(kinds))
    if json_:
        typer.echo(json.dumps([{**asdict(row), "folder": str(row.folder)} for row in rows]))
        return
    for row in rows:
        days = (time.time() - row.used_s) / 86400
        typer.echo(f"{row.kind:9} {row.bytes / 1e6:10.1f} MB  used {days:5.1f} days ago  {row.what}")
    for kind in _known(kinds):
        total = sum(row.bytes for row in rows if row.kind == kind)
        typer.echo(f"{kind}: {total / 1e6:.1f} MB, {KINDS[kind]}")
    typer.echo(f"in {cache_root()}")


@cache_app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Why a run reused what was kept, or did not: the facts in which the most similar entry differs."""
    from mst_edge.run_folder import RunFolder

    lookups = RunFolder(run).lookups()
    if json_:
        typer.echo(json.dumps(lookups))
        return
    for lookup in lookups:
        typer.echo(f"{lookup['at']}  {lookup['kind']:9} {lookup['what']}: {_why(lookup)}")
        for fact, (kept, asked) in lookup["differs"].items():
            typer.echo(f"{'':22}{fact}: {_short(kept)} in the cache, {_short(asked)} here")


def _why(lookup: dict[str, Any]) -> str:
    if lookup["reused"]:
        return "reused"
    if not lookup["differs"]:
        return "made: nothing like it was kept"
    return "made: the most similar that was kept differs in"


def _short(value: object) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


@cache_app.command()
def clear(kinds: KindsArg = None) -> None:
    """Remove what is kept; it is computed again when it is needed."""
    from mst_edge.core.cache import cache_root
    from mst_edge.core.cache import clear as clear_kinds

    typer.echo(f"freed {clear_kinds(cache_root(), _known(kinds)) / 1e6:.1f} MB")


def _known(kinds: list[str] | None) -> list[str]:
    """The kinds asked for, or all.

    Raises:
        UserError: an unknown one.
    """
    from mst_edge.core.cache import KINDS
    from mst_edge.core.errors import unknown_name

    for kind in kinds or []:
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
    return list(kinds or KINDS)
