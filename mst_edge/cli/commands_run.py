"""Commands that make runs: init, run, distill, quantize, deploy, check, report."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from mst_edge.core.errors import ExitCode, UserError

_current_run: list[Path] = []

RecipeArg = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one that ships with mst-edge.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder of the run. Default: runs/NAME-TIME.")]
TargetOption = Annotated[
    list[str] | None, typer.Option("--target", help="Target instead of the recipe's; may be repeated.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Overrides one key of the recipe: a.b=value.")]
RootOption = Annotated[
    Path | None, typer.Option("--data-root", help="Folder of raw public data. Default: MST_EDGE_DATA.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="Where to train: auto, cpu or cuda.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out; done already, print it again.")
]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan with time, memory and disk; change nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def current_run() -> Path | None:
    """The folder of the run in progress, where a traceback is kept."""
    return _current_run[-1] if _current_run else None


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(init)
    app.command()(run)
    app.command()(distill)
    app.command()(check)
    app.command()(report)


def init(
    data_dir: Annotated[Path, typer.Argument(help="Folder of arrays, class folders, or a CSV file.")],
    student: Annotated[str | None, typer.Option("--student", help="Modality that the deployed student reads.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Where to write the recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Write a working recipe for your own data."""
    from mst_edge.init import write_recipe

    write_recipe(data_dir, student, out, force=force, say=typer.echo)


def run(
    recipe: RecipeArg,
    out: OutOption = None,
    target: TargetOption = None,
    set_: SetOption = None,
    data_root: RootOption = None,
    device: DeviceOption = "auto",
    resume: ResumeOption = False,
    dry_run: DryOption = False,
    json_: JsonOption = False,
) -> None:
    """Distil, quantize, compile, check and pack: everything, end to end."""
    _run("", recipe, out, target, set_, data_root, device, resume, dry_run, json_)


def distill(
    recipe: RecipeArg,
    out: OutOption = None,
    target: TargetOption = None,
    set_: SetOption = None,
    data_root: RootOption = None,
    device: DeviceOption = "auto",
    resume: ResumeOption = False,
    dry_run: DryOption = False,
    json_: JsonOption = False,
) -> None:
    """Only train: the student, and what it is compared with."""
    _run("distill", recipe, out, target, set_, data_root, device, resume, dry_run, json_)


def _run(
    until: str,
    name: str,
    out: Path | None,
    targets: list[str] | None,
    overrides: list[str] | None,
    data_root: Path | None,
    device: str,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from mst_edge.recipe import find_recipe, load_recipe

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"expected auto, cpu or cuda, received {device!r}", where="--device")
    if resume and out is None:
        raise UserError("needs --out, the folder of the run to continue", where="--resume")
    recipe = load_recipe(find_recipe(name), overrides or (), targets or ())
    from distill.datasets.builder import find_data_root

    root = find_data_root(data_root)
    if dry_run:
        from mst_edge.plan import print_plan

        print_plan(recipe, root, device, as_json=as_json)
        return
    from mst_edge.cli.console import ConsoleWatcher
    from mst_edge.pipeline import RunOptions, run_recipe
    from mst_edge.report.table import print_result
    from mst_edge.run_folder import open_run

    folder = out or Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    store = open_run(folder, recipe, resume=resume)
    _current_run.append(folder)
    with ConsoleWatcher(store.path / "tensorboard", quiet=as_json) as watcher:
        result = run_recipe(recipe, store, RunOptions(root, device, until), watcher)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_result(result, store)
    if result["gate"] == "failed":
        raise typer.Exit(ExitCode.GATE_FAILED)


def check(
    path: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="Folder of a run, or a bundle.")],
    json_: JsonOption = False,
) -> None:
    """The gate: exit code 0 if every goal is met, 1 if not."""
    from mst_edge.check import check_path, print_check

    record = check_path(path)
    print_check(record, as_json=json_)
    if record["gate"] != "passed":
        raise typer.Exit(ExitCode.GATE_FAILED)


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write report.html from a run's results."""
    import webbrowser

    from mst_edge.report.page import write_report
    from mst_edge.run_folder import RunFolder

    path = write_report(RunFolder(run_dir))
    typer.echo(str(path))
    if open_:
        webbrowser.open(path.resolve().as_uri())
