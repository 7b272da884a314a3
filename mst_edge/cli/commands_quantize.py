"""Commands that take a model as it is, or a finished run: quantize, deploy, profile."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from mst_edge.cli.commands_run import DeviceOption, JsonOption, RootOption, TuneOption, current_folder
from mst_edge.core.errors import ExitCode, UserError

SourceArg = Annotated[Path, typer.Argument(metavar="RUN|MODEL.onnx", help="Folder of a run, or an ONNX file.")]
CalibrationOption = Annotated[
    Path | None, typer.Option("--calibration", metavar="DIR", help="Folder of samples (.npy), maybe with target.npy.")
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1,3,224,224", help="Fixes axes that the model's input leaves free."),
]
RandomOption = Annotated[
    bool, typer.Option("--allow-random", help="Without samples, take random ones: not for accuracy, nothing is judged.")
]
SchemeOption = Annotated[
    list[str] | None, typer.Option("--scheme", metavar="S", help="Scheme of quantization; may be repeated.")
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="LAYER", help="Layer that stays in float; may be repeated.")
]
RuntimeOption = Annotated[
    list[str] | None,
    typer.Option("--runtime", metavar="R", help="Runtime that builds; may be repeated. Default: those of bundles."),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to. Default: runs/NAME-TIME.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Draws the samples that calibrate.")]


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(quantize)
    app.command()(deploy)
    app.command()(profile)


def quantize(
    source: SourceArg,
    calibration: CalibrationOption = None,
    shape: ShapeOption = None,
    allow_random: RandomOption = False,
    scheme: SchemeOption = None,
    exclude: ExcludeOption = None,
    out: OutOption = None,
    seed: SeedOption = 0,
    data_root: RootOption = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Quantize an ONNX file, or make further variants of a run's student (in the run, without --out)."""
    from mst_edge.cli.console import ConsoleWatcher
    from mst_edge.report.table import print_model

    with ConsoleWatcher(None, quiet=json_) as watcher:
        if source.is_dir():
            _refuse(source, {"--shape": bool(shape), "--allow-random": allow_random, "--seed": bool(seed)})
            from distill.datasets.builder import find_data_root
            from mst_edge.finished import quantize_run

            result = quantize_run(
                source,
                scheme or (),
                calibration=calibration,
                exclude=tuple(exclude or ()),
                out=out,
                data_root=find_data_root(data_root),
                device=device,
                watcher=watcher,
            )
            place = Path(result["folder"])
        else:
            from mst_edge.stages.foreign import Request, quantize_model

            place = out or _default_out(source)
            current_folder(place)
            shapes = parse_shapes(shape or [])
            request = Request(
                source, place, calibration, shapes, allow_random, tuple(scheme or ()), tuple(exclude or ()), seed
            )
            result, _, _ = quantize_model(request, (), watcher.step)
    if json_:
        typer.echo(json.dumps(result))
    else:
        print_model(result, place)


def deploy(
    source: SourceArg,
    target: Annotated[list[str], typer.Option("--target", metavar="T", help="Target; may be repeated.")],
    calibration: CalibrationOption = None,
    shape: ShapeOption = None,
    allow_random: RandomOption = False,
    scheme: SchemeOption = None,
    exclude: ExcludeOption = None,
    runtime: RuntimeOption = None,
    tune: TuneOption = False,
    out: OutOption = None,
    seed: SeedOption = 0,
    data_root: RootOption = None,
    ssh: Annotated[
        str | None,
        typer.Option("--ssh", metavar="USER@HOST[:PORT]", help="The board: build, check and measure there. Resumable."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Build, measure, judge and pack an ONNX file, or a run's variants for further targets."""
    from mst_edge.cli.console import ConsoleWatcher
    from mst_edge.report.table import print_model, print_result
    from mst_edge.run_folder import RunFolder

    place, board = source, None
    if ssh is not None:
        from mst_edge.on_board import find_board, require_new, run_on_board

        board = find_board(ssh, target)
    with ConsoleWatcher(None, quiet=json_) as watcher:
        if source.is_dir():
            given = {
                "--calibration": calibration,
                "--shape": shape,
                "--scheme": scheme,
                "--exclude": exclude,
                "--out": out,
            }
            _refuse(source, {**given, "--allow-random": allow_random, "--seed": seed})
            from distill.datasets.builder import find_data_root
            from mst_edge.finished import deploy_run, deploy_there

            root = find_data_root(data_root)
            if board is None:
                result = deploy_run(source, target, root, watcher, runtimes=runtime or (), tune=tune)
            else:
                result = deploy_there(source, board, root, watcher)
        else:
            from mst_edge.stages.foreign import Request, deploy_model

            place = out or _default_out(source)
            if board is not None:
                require_new(place, board)
            current_folder(place)
            shapes = parse_shapes(shape or [])
            request = Request(
                source,
                place,
                calibration,
                shapes,
                allow_random,
                tuple(scheme or ()),
                tuple(exclude or ()),
                seed,
                tuple(runtime or ()),
                tune,
            )
            result = deploy_model(request, target, watcher)
            if board is not None:
                result = run_on_board(RunFolder(place), board, watcher)
    if json_:
        typer.echo(json.dumps(result))
    elif "distill" in result:
        print_result(result, RunFolder(place))
    else:
        print_model(result, place)
    judged = [record for record in result["targets"] if record["on_host"] or record["found"] is not None]
    if any(record["gate"] != "passed" for record in judged):
        raise typer.Exit(ExitCode.GATE_FAILED)


def profile(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|MODEL.onnx", help="A bundle, or an ONNX file.")],
    target: Annotated[str, typer.Option("--target", metavar="T", help="Target to measure on.")],
    protocol: Annotated[
        str, typer.Option("--protocol", help="How to measure: quick, or mlperf (20 minutes a build).")
    ] = "quick",
    shape: ShapeOption = None,
    json_: JsonOption = False,
) -> None:
    """Latency only: nothing is calibrated or judged."""
    import tempfile

    from mst_edge.cli.console import ConsoleWatcher
    from mst_edge.core.errors import unknown_name
    from mst_edge.report.table import print_profile
    from mst_edge.stages.profile import PROTOCOLS
    from mst_edge.stages.profile import profile as time_builds

    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS, where="--protocol")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mst-edge-")))
        watcher = stack.enter_context(ConsoleWatcher(None, quiet=json_))
        shapes = parse_shapes(shape or [])
        result = time_builds(source, target, place, watcher, shapes=shapes, protocol=PROTOCOLS[protocol])
    if json_:
        typer.echo(json.dumps(result))
    else:
        print_profile(result)


def parse_shapes(said: list[str]) -> dict[str, tuple[int, ...]]:
    """Input name to shape from ``name=1,3,224,224``.

    Raises:
        UserError: something else.
    """
    shapes = {}
    for text in said:
        name, separator, sizes = text.rpartition("=")
        if not (separator and name and all(size.strip().isdecimal() for size in sizes.split(","))):
            raise UserError(f"expected NAME=1,3,224,224, received {text!r}", where="--shape")
        shapes[name] = tuple(int(size) for size in sizes.split(","))
    return shapes


def _refuse(run: Path, given: dict[str, object]) -> None:
    """A run has its own samples, variants and place.

    Raises:
        UserError: an option that is for ONNX files alone.
    """
    for option, value in given.items():
        if value:
            raise UserError(f"is for ONNX files; {run} is a folder", where=option, fix="leave it out")


def _default_out(model: Path) -> Path:
    return Path("runs") / f"{model.stem}-{datetime.now():%Y%m%d-%H%M%S}"
