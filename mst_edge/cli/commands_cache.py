"""Commands about the cache: list, clear."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

cache_app = typer.Typer(
    help="What is kept so that it is computed once: list, clear.", no_args_is_help=True, rich_markup_mode=None
)
KindsArg = Annotated[list[str] | None, typer.Argument(metavar="[KIND]...", help="features or tables. Default: both.")]


def register(app: typer.Typer) -> None:
    """Adds ``mst-edge cache``."""
    app.add_typer(cache_app, name="cache")


@cache_app.command("list")
def list_(kinds: KindsArg = None, json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What is kept: its kind, its size, when it was last used, and with --json all that it depends on."""
    from distill.datasets.builder import cache_root
    from mst_edge.core.cache import KINDS, entries

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
def clear(kinds: KindsArg = None) -> None:
    """Remove what is kept; it is computed again when it is needed."""
    from distill.datasets.builder import cache_root
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
