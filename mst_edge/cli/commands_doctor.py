"""The command that looks at this machine: doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from mst_edge.core.errors import ExitCode


def register(app: typer.Typer) -> None:
    """Adds this file's command."""
    app.command()(doctor)


def doctor(
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Target to look at; may be repeated. Default: all.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What works here, proved by inferences; what is missing, and the command that installs it. Exit code 1 if
    something installed does not work.
    """
    from mst_edge.doctor.report import examine

    if not examine(target or (), as_json=json_):
        raise typer.Exit(ExitCode.GATE_FAILED)
