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
        list[Path], typer.Argument(metavar="FILE...", help="wav, picture or .npy files, or folders of them.")
    ],
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    maps: Annotated[
        Path | None, typer.Option("--maps", metavar="DIR", help="Write label maps there as png (segmentation).")
    ] = None,
    runtime: Annotated[str, typer.Option("--runtime", help="Inference runtime instead of the preferred one.")] = "",
) -> None:
    """Answers for files: labels, numbers with their units, or the share of each class in a picture."""
    from apps.predict import predict_files

    raise typer.Exit(predict_files(bundle, files, runtime=runtime or None, maps=maps, as_json=json_))


def app_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the app.")],
) -> None:
    """Run a sample app on a bundle: spoken-digits, digits-camera."""
    from mst_edge.cli.apps import run_app

    raise typer.Exit(run_app(name, context.args))
