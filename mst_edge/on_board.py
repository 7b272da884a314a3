"""``mst-edge deploy --ssh``: a bundle is built, checked and measured on its board, and the verdict kept in the run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from apps.runtime import Bundle
from apps.runtime.errors import BundleError
from mst_edge.core.errors import UserError
from mst_edge.core.files import write_json
from mst_edge.found import read_found
from mst_edge.front import summary
from mst_edge.homecoming import judge_board
from mst_edge.report.page import write_report
from mst_edge.run_folder import RunFolder
from mst_edge.stages.deploy import stage_name
from mst_edge.stages.subject import DeployWatcher
from targets.board import BoardTarget
from targets.ssh.address import Address, parse_address
from targets.ssh.link import reach
from targets.ssh.remote import COURIER, Remote
from targets.target import get_target


@dataclass(frozen=True)
class Board:
    """A device of a target's kind, and where it is."""

    target: BoardTarget
    address: Address

    @property
    def name(self) -> str:
        """The target's name."""
        return self.target.spec.name


def find_board(said: str, targets: Sequence[str]) -> Board:
    """The board that the command line names; it can be reached, its host key is known.

    Raises:
        UserError: no address, not one target that is a device of its own, or no connection.
    """
    address = parse_address(said)
    boards = [get_target(name) for name in targets]
    if len(boards) != 1:
        raise UserError(f"leads to one board, received {len(boards)} targets", where="--ssh", fix="give one --target")
    (target,) = boards
    if not isinstance(target, BoardTarget):
        raise UserError(
            f"{target.spec.name} is {target.spec.summary}",
            where="--ssh",
            fix="leave it out, or name a board as --target",
        )
    if not target.steps:
        raise UserError(f"{target.spec.name} says nothing of what is done there", where="--ssh", fix="go there by hand")
    reach(address)
    return Board(target, address)


def packed_before(place: RunFolder, board: Board, goals: Mapping[str, Any] | None, made_of: Mapping[str, str]) -> bool:
    """Whether the bundle that is there is of these variants and goals: then it goes on, with what a board knows of it.

    Args:
        goals: of the run.
        made_of: name of each variant to the sha256 of its model.
    """
    record = place.stage_result(stage_name(board.name))
    if record is None or record.get("made_of") != made_of or record["goals"] != goals:
        return False
    try:
        with Bundle.open(place.bundle(board.name)) as bundle:
            return COURIER in bundle.manifest.files
    except BundleError:
        return False


def run_on_board(place: RunFolder, board: Board, watcher: DeployWatcher) -> dict[str, Any]:
    """Takes the bundle to the board and its findings home; returns the result, which holds the verdict from now on.

    Raises:
        UserError: the board cannot be reached, refuses, is lost, or could not go on; the same command then does.
    """
    folder = place.bundle(board.name)
    command = _command(place.path, board)
    with Bundle.open(folder) as bundle:
        remote = Remote(
            folder,
            bundle.manifest,
            board.address,
            command,
            say=lambda text: watcher.step(escape(text)),
            busy=lambda text: watcher.busy(escape(text)),
        )
        try:
            there = remote.deploy(board.target.steps, board.target.finds)
        except KeyboardInterrupt:
            watcher.step(f"interrupted; a step that began goes on there; go on with: {command}")
            raise
        verdict = judge_board(bundle)
        found = read_found(folder, bundle.manifest)
    return _keep(place, board, verdict, {"address": str(board.address), "folder": there, **_of_interest(found)})


def _of_interest(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("board", "tensorrt", "builds")}


def _keep(place: RunFolder, board: Board, verdict: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the verdict into the run's result, its stage and its page."""
    result = place.result()
    record = next((record for record in result["targets"] if record["target"] == board.name), None)
    if record is None:
        raise UserError(f"does not tell of {board.name}", where=place.result_file, fix="pack it again, without --ssh")
    chosen = verdict["build"] if verdict["gate"] != "failed" else None
    record |= {"gate": verdict["gate"], "chosen": chosen, "found": {**found, "judged": verdict}}
    result |= summary(result["targets"])
    write_json(place.result_file, result)
    if place.stage_result(stage_name(board.name)) is not None:
        place.finish_stage(stage_name(board.name), record)
    if "distill" in result:
        write_report(place)
    return result


def require_new(place: Path, board: Board) -> None:
    """Makes sure that a model's folder does not hold a bundle for the board already.

    Raises:
        UserError: it does; says how to go on with that.
    """
    if holds_bundle(place, board.name):
        raise UserError(
            f"holds a bundle for {board.name} already",
            where=place,
            fix=f"go on with it: {_command(place, board)}; or use another --out",
        )


def _command(place: Path, board: Board) -> str:
    """What goes on with a bundle."""
    return shlex.join(["mst-edge", "deploy", str(place), "--target", board.name, "--ssh", str(board.address)])


def holds_bundle(path: Path, name: str) -> bool:
    """Whether ``path`` is the folder of a model that came as a file and was packed for the target ``name``."""
    place = RunFolder(path)
    return place.result_file.is_file() and "model" in place.result() and place.bundle(name).is_dir()
