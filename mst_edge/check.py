"""``mst-edge check``: the gate's verdict of a run or a bundle, as an exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from apps.runtime import Bundle
from apps.runtime.board.check import INPUTS
from apps.runtime.manifest import MANIFEST
from mst_edge.core.errors import UserError
from mst_edge.homecoming import judge_board
from mst_edge.run_folder import RunFolder


def check_path(path: Path) -> dict[str, Any]:
    """The verdict on a run folder, or on a bundle.

    A bundle is verified file by file, and its reference inputs are run on this machine; one for a board is judged by
    what the board found.

    Raises:
        UserError: neither a run nor a bundle.
    """
    if (path / MANIFEST).is_file() or path.suffix == ".zip":
        return _check_bundle(path)
    if (path / "result.json").is_file():
        return _check_run(RunFolder(path))
    raise UserError("neither a finished run nor a bundle", where=path)


def print_check(record: dict[str, Any], *, as_json: bool) -> None:
    """One line per target, with the failed goals."""
    if as_json:
        typer.echo(json.dumps(record))
        return
    for entry in record["checks"]:
        build = "" if entry["build"] is None else f" with {entry['build']}"
        typer.echo(f"{entry['target']}: gate {entry['gate']}{build}")
        for check in entry["goals"]:
            typer.echo(f"  {'ok  ' if check['passed'] else 'FAIL'}  {check['goal']}: {check['text']}")
    against = record.get("against")
    if against is not None:
        typer.echo(f"{against['target']}: against {against['path']}")
        for one in against["comparisons"]:
            mark = {True: "FAIL", False: "ok  ", None: "?   "}[one["regression"]]
            typer.echo(f"  {mark}  {one['what']}: {one['text']}")


def _check_run(run: RunFolder) -> dict[str, Any]:
    result = run.result()
    if not result["targets"]:
        raise UserError("the run has no target yet", where=run.path, fix="finish it: mst-edge run ... --resume")
    checks = []
    for target in result["targets"]:
        chosen = next((row for row in target["builds"] if row["id"] == target["chosen"]), None)
        checks.append(
            {
                "target": target["target"],
                "gate": target["gate"],
                "build": target["chosen"],
                "goals": _goals_of(target, chosen),
            }
        )
    return {"path": str(run.path), "gate": result["gate"], "checks": checks}


def _goals_of(target: dict[str, Any], chosen: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What the gate said of the chosen build; of a board, what it said of what came home."""
    if not target["on_host"]:
        return target["found"]["judged"]["goals"] if target["found"] else []
    return [] if chosen is None else chosen["verdict"]["checks"]


def _check_bundle(path: Path) -> dict[str, Any]:
    with Bundle.open(path) as bundle:
        if INPUTS in bundle.manifest.files:  # it carries samples to be judged by where it runs
            entry = judge_board(bundle)
            return {"path": str(path), "gate": entry["gate"], "checks": [entry]}
        difference = bundle.self_test()
        manifest = bundle.manifest
        goals = [
            {
                "goal": "self_test",
                "passed": True,
                "text": f"reference outputs reproduced here to {difference:.2g}, {bundle.build.tolerance:.2g} allowed",
            },
            *manifest.gate["checks"],
        ]
        entry = {
            "target": manifest.target,
            "gate": manifest.gate["verdict"],
            "build": bundle.build.id,
            "goals": goals,
        }
        return {"path": str(path), "gate": manifest.gate["verdict"], "checks": [entry]}
