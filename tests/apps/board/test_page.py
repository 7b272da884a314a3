"""docs/jetson.md does what it says: its commands, in its order, on a board of paper."""

from __future__ import annotations

import os
import re
import shlex
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from apps.runtime.board.dialect import ALWAYS_TYPED, TYPED, WEAK
from apps.runtime.board.tools import Said
from mst_edge.cli.app import app
from targets.board import BoardTarget
from targets.jetson import JetsonTarget
from targets.target import get_target, target_names
from tests.apps.board.fakes import paper_board
from tests.conftest import ROOT
from tests.quantize.foreign_models import classifier, pictures, save
from tests.sshd import WHY_NOT, running

SHORT = ("--seconds", "0.05", "--idle-seconds", "0.05")
PAGE = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
HOST, SSH, COPY, BOARD, HOME = (block.split("\n") for block in re.findall(r"```sh\n(.*?)\n```", PAGE, re.DOTALL))


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in of libcudart")
def test_its_commands_lead_from_a_model_to_a_verdict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(classifier(), tmp_path / "net.onnx")
    (tmp_path / "samples").mkdir()
    np.save(tmp_path / "samples" / "inputs.npy", pictures(60))
    for command in HOST[1:]:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    (copied,) = COPY
    place = tmp_path / shlex.split(copied)[2]
    bundle = shutil.copytree(place, tmp_path / "bundle")
    board = paper_board(tmp_path / "bin")
    commands = [shlex.split(line) for line in BOARD]
    assert [line[0] for line in commands[:3]] == ["sudo", "sudo", "cd"]
    for command in commands[3:]:
        short = [*SHORT] if "bench.py" in command else []
        files = [str(file) for pattern in command if "*" in pattern for file in bundle.glob(pattern)]
        done = board.run(bundle, *[part for part in command if "*" not in part], *files, *short)
        assert (done.code, done.err) == (0, ""), command
    fetched, judged = (shlex.split(line) for line in HOME)
    for path in fetched[2:-1]:
        name = path.rpartition("/")[2]
        copy = shutil.copytree if (bundle / name).is_dir() else shutil.copy
        copy(bundle / name, place / name)
    done = CliRunner().invoke(app, judged[1:])
    assert done.exit_code == 0, done.output
    assert "gate passed with tensorrt-" in done.output
    if not WHY_NOT:
        by_ssh(tmp_path, board, monkeypatch)


def by_ssh(tmp_path, board, monkeypatch):
    """The same in one command, to a server that stands for user@board."""
    monkeypatch.setitem(JetsonTarget.steps, "bench", (*JetsonTarget.steps["bench"], *SHORT))
    (command,) = SSH
    with running(tmp_path / "server", **board.environment()) as server:
        monkeypatch.setenv("PATH", f"{server.folder / 'bin'}:{os.environ['PATH']}")
        done = CliRunner().invoke(app, shlex.split(command.replace("user@board", server.address))[1:])
        assert done.exit_code == 0, done.output
        assert "gate passed with tensorrt-" in done.output
        assert server.bundle.parent == server.home / ".cache" / "mst-edge"  # where the page says it is


def test_it_has_the_words_of_every_failure():
    places = ("targets/ssh/*.py", "apps/runtime/board/courier.py", "mst_edge/found.py")
    files = [file for place in places for file in ROOT.glob(place)]
    said = "".join(file.read_text(encoding="utf-8") for file in files) + f"trtexec {Said(-9, '').ended}"
    rows = re.findall(r"^\| (`[^|]+`) \|", PAGE.split("| it says |")[1].split("##")[0], re.MULTILINE)
    assert len(rows) == 11
    for row in rows:
        for words in re.findall(r"`([^`]+)`", row):
            assert words.removesuffix("...").strip() in said, words


def test_a_finished_run_is_packed_beside_what_it_has(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "runs" / "small")
    command = shlex.split(HOST[0])
    command[2] = str(run)
    done = CliRunner().invoke(app, command[1:])
    assert done.exit_code == 0, done.output
    assert "gate not judged" in done.output
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Target jetson-orin-nano" in page
    assert "tensorrt-int8-symmetric" in page
    verdict = CliRunner().invoke(app, ["check", str(run)])
    assert verdict.exit_code == 1
    assert "jetson-orin-nano: gate not judged" in verdict.output
    assert "cpu: gate passed with" in verdict.output


def test_it_names_every_board_and_the_flags_as_they_are():
    for name in target_names():
        if isinstance(get_target(name), BoardTarget) and name.startswith("jetson"):
            assert f"`{name}`" in PAGE
    for dialect in (WEAK, TYPED, ALWAYS_TYPED):
        told = (dialect.flags[precision] for precision in ("fp32", "fp16", "int8"))  # of what boards are sent
        flags = (f"`{' '.join(said)}`" if said else "none" for said in told)
        assert f"| {dialect.name} | {' | '.join(flags)} |" in PAGE
