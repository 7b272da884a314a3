"""Commands that use bundles: predict, app. They never import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(predict)
    app.command("app", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(app_command)


def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle: folder or zip.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE...", help="wav, picture, text or .npy files, or folders of them."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text to label; may be repeated.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Label every line of the text files by itself.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    maps: Annotated[
        Path | None, typer.Option("--maps", metavar="DIR", help="Write label maps there as png (segmentation).")
    ] = None,
    runtime: Annotated[str, typer.Option("--runtime", help="Inference runtime instead of the preferred one.")] = "",
) -> None:
    """Answers for files and texts: labels, numbers with their units, or the share of each class in a picture."""
    from apps.predict import predict_files

    code = predict_files(
        bundle,
        files or [],
        texts=text or [],
        by_line=lines,
        runtime=runtime or None,
        maps=maps,
        as_json=json_,
    )
    raise typer.Exit(code)


def app_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the app.")],
) -> None:
    """Run an app on a bundle: serve (a page to look at), spoken-digits, emotion, digits-camera, activity, triage."""
    from mst_edge.cli.apps import run_app

    raise typer.Exit(run_app(name, context.args))
