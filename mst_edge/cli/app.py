"""``mst-edge``: the commands, and what becomes of errors."""

from __future__ import annotations

import sys
import tempfile
import traceback
from datetime import datetime
from pathlib import Path

import typer

from mst_edge.cli import (
    commands_bundle,
    commands_cache,
    commands_data,
    commands_doctor,
    commands_quantize,
    commands_run,
    commands_search,
)
from mst_edge.core.errors import ExitCode, UserError
from mst_edge.core.extras import EXTRA_OF, missing_module

app = typer.Typer(
    name="mst-edge",
    help="Distil a small one-modality student, quantize it, compile it per target, prove it, ship it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
commands_run.register(app)
commands_search.register(app)
commands_quantize.register(app)
commands_data.register(app)
commands_bundle.register(app)
commands_cache.register(app)
commands_doctor.register(app)


def main() -> None:
    """Entry point: a user's error is one line and exit code 2, a bug leaves its traceback in a file and 3."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(ExitCode.USER_ERROR)
    except SystemExit as ended:
        if ended.code == ExitCode.INTERRUPTED:  # Typer turns Ctrl-C into this code, without a word
            typer.echo(
                "interrupted; continue a run with --resume, a search too, a comparison with the same command", err=True
            )
        raise
    except BrokenPipeError:
        # Whoever read our output (head, less) has seen enough.
        sys.stderr.close()
        sys.exit(ExitCode.OK)
    except Exception as error:
        from apps.runtime.errors import BundleError  # here, not above: help must not wait for numpy

        if isinstance(error, BundleError):
            typer.echo(f"error: {error}", err=True)
            sys.exit(ExitCode.USER_ERROR)
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRA_OF:
            typer.echo(f"error: {missing_module(str(error.name).partition('.')[0])}", err=True)
            sys.exit(ExitCode.USER_ERROR)
        place = _keep_traceback()
        typer.echo(f"internal error: {type(error).__name__}: {error}\nthe traceback is in {place}", err=True)
        sys.exit(ExitCode.INTERNAL_ERROR)


def _keep_traceback() -> Path:
    """Writes the current traceback into the run's folder, or a temporary one where there is no run."""
    folder = commands_run.current_run()
    if folder is None or not folder.is_dir():
        folder = Path(tempfile.mkdtemp(prefix="mst-edge-"))
    path = folder / f"traceback-{datetime.now():%Y%m%d-%H%M%S}.txt"
    path.write_text(traceback.format_exc(), encoding="utf-8")
    return path
