"""Commands that make runs: init, run, distill, compare, check, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mst_edge.core.errors import ExitCode, UserError

if TYPE_CHECKING:  # help must not wait for pydantic and torch
    from mst_edge.recipe import Recipe

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
TuneOption = Annotated[
    bool, typer.Option("--tune", help="Choose threads and other settings of the builds by measurement.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def current_run() -> Path | None:
    """The folder of the run in progress, where a traceback is kept."""
    return _current_run[-1] if _current_run else None


def current_folder(folder: Path) -> None:
    """Says where a traceback is to be kept from now on."""
    _current_run.append(folder)


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(init)
    app.command("run", help="Distil, quantize, compile, check and pack: everything, end to end.")(_training_command(""))
    app.command("distill", help="Only train: the student, and what it is compared with.")(_training_command("distill"))
    app.command()(compare)
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


def _training_command(until: str) -> Callable[..., None]:
    """``run`` and ``distill`` are one command that ends in two places."""

    def command(
        recipe: RecipeArg,
        out: OutOption = None,
        target: TargetOption = None,
        set_: SetOption = None,
        tune: TuneOption = False,
        data_root: RootOption = None,
        device: DeviceOption = "auto",
        resume: ResumeOption = False,
        dry_run: DryOption = False,
        json_: JsonOption = False,
    ) -> None:
        if resume and out is None:
            raise UserError("needs --out, the folder of the run to continue", where="--resume")
        settings = [*(set_ or ()), *(["measure.tune=true"] if tune else [])]
        parsed, root = read_recipe(recipe, settings, data_root, device, target)
        if dry_run:
            from mst_edge.plan import print_plan

            print_plan(parsed, root, device, as_json=json_)
            return
        _run(parsed, out, root, device, until, resume=resume, as_json=json_)

    return command


def read_recipe(
    name: str,
    overrides: list[str] | None,
    data_root: Path | None,
    device: str,
    targets: list[str] | None = None,
) -> tuple[Recipe, Path | None]:
    """The recipe with its overrides, and the folder of raw public data.

    Raises:
        UserError: no such recipe, a wrong key or override, or an unknown device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"expected auto, cpu or cuda, received {device!r}", where="--device")
    from mst_edge.recipe import find_recipe, load_recipe

    recipe = load_recipe(find_recipe(name), overrides or (), targets or ())
    from distill.datasets.builder import find_data_root

    return recipe, find_data_root(data_root)


def _run(
    recipe: Recipe, out: Path | None, root: Path | None, device: str, until: str, *, resume: bool, as_json: bool
) -> None:
    from distill.training.parallel import connect, launched
    from mst_edge.cli.console import ConsoleWatcher
    from mst_edge.pipeline import RunOptions, run_recipe
    from mst_edge.report.table import print_result
    from mst_edge.run_folder import open_run
    from mst_edge.stages.distill import pick_device

    if out is None and launched() > 1:
        raise UserError("several processes need to be told their common folder", where="--out", fix="add --out FOLDER")
    processes = connect(pick_device(device))
    folder = out or Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    store = open_run(folder, recipe, resume=resume)
    current_folder(folder)
    scalars = store.path / "tensorboard" if processes.first else None
    with ConsoleWatcher(scalars, quiet=as_json or not processes.first) as watcher:
        result = run_recipe(recipe, store, RunOptions(root, device, until, processes), watcher)
    if not processes.first:
        return
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_result(result, store)
    if result["gate"] == "failed":
        raise typer.Exit(ExitCode.GATE_FAILED)


def compare(
    recipe: RecipeArg,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B:PRESET,...",
            help="Methods, with a preset where wanted, or all. Default: the recipe's method and what it compares.",
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="0,1,...", help="Each is a new split and a new initialisation.")
    ] = "0,1,2",
    vary: Annotated[
        str, typer.Option("--vary", help="What a seed changes: both, or initialisation or split alone.")
    ] = "both",
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Add rows for MST-Distill with one part left out each.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; used before, goes on there. Default: runs/NAME-compare.")
    ] = None,
    set_: SetOption = None,
    data_root: RootOption = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Train a recipe's student by several methods on several seeds; one table."""
    parsed, root = read_recipe(recipe, set_, data_root, device)
    from rich.console import Console

    from distill.training.parallel import launched
    from mst_edge.compare.comparison import CompareOptions, parse_seeds, parse_vary
    from mst_edge.compare.comparison import compare as run_comparison
    from mst_edge.report.comparison import print_comparison

    if launched() > 1:
        raise UserError(
            "trains one network after another, each in a process of its own",
            where="compare",
            fix="start it without a launcher; run and distill take several processes",
        )
    folder = out or Path("runs") / f"{parsed.name}-compare"
    current_folder(folder)
    console = Console(stderr=True, quiet=json_)
    options = CompareOptions(methods, parse_seeds(seeds), parse_vary(vary), ablations, root, device, quiet=json_)
    record = run_comparison(parsed, folder, options, console.print)
    if json_:
        typer.echo(json.dumps(record))
    else:
        print_comparison(record, folder)


def check(
    path: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="Folder of a run, or a bundle.")],
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="BUNDLE", help="An earlier bundle: nothing may have got worse."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """The gate: exit code 0 if every goal is met and nothing got worse, 1 if not."""
    from mst_edge.check import check_path, print_check

    record = check_path(path)
    if against is not None:
        from mst_edge.baseline import compare_with
        from mst_edge.cli.console import ConsoleWatcher
        from targets import measure

        with ConsoleWatcher(None, quiet=json_) as watcher:
            record["against"] = compare_with(path, against, measure.QUICK, watcher.busy)
    print_check(record, as_json=json_)
    if record["gate"] != "passed" or record.get("against", {}).get("regressions"):
        raise typer.Exit(ExitCode.GATE_FAILED)


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layers", metavar="BUILD", help="Compare its layers with torch; may be repeated, or all."),
    ] = None,
) -> None:
    """Write report.html from a run's results."""
    import webbrowser

    from mst_edge.report.page import write_report
    from mst_edge.run_folder import RunFolder

    if layers:
        from mst_edge.stages.numerics import report_numerics

        typer.echo(str(report_numerics(RunFolder(run_dir), layers, lambda said: typer.echo(said, err=True))))
    path = write_report(RunFolder(run_dir))
    typer.echo(str(path))
    if open_:
        webbrowser.open(path.resolve().as_uri())
