"""``mst-edge deploy --ssh``: from a model to a verdict, over a real OpenSSH server, on a board of paper."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from mst_edge.cli.app import app
from mst_edge.cli.console import ConsoleWatcher
from mst_edge.core.errors import UserError
from targets.jetson import JetsonTarget
from tests.apps.board.fakes import paper_board
from tests.quantize.foreign_models import classifier, pictures, save
from tests.sshd import WHY_NOT, running

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in of libcudart"),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
BOARD = "jetson-orin-nano"


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return paper_board(tmp_path_factory.mktemp("board") / "bin")


@pytest.fixture
def server(board, tmp_path, monkeypatch):
    short = (*JetsonTarget.steps["bench"], "--seconds", "0.05", "--idle-seconds", "0.05")
    monkeypatch.setitem(JetsonTarget.steps, "bench", short)
    with running(tmp_path / "server", **board.environment()) as server:
        monkeypatch.setenv("PATH", f"{server.folder / 'bin'}:{os.environ['PATH']}")
        yield server


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A model's folder with a bundle; without labels, so it is judged by how it drifts."""
    folder = tmp_path_factory.mktemp("packed")
    save(classifier(), folder / "net.onnx")
    (folder / "samples").mkdir()
    np.save(folder / "samples" / "inputs.npy", pictures(60))
    done = CliRunner().invoke(app, ["deploy", str(folder / "net.onnx"), *_about(folder), "--target", BOARD])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def model(packed, tmp_path):
    """Folder of the model, as ``deploy`` left it."""
    return shutil.copytree(packed / "out", tmp_path / "out")


def _about(folder):
    return ["--calibration", str(folder / "samples"), "--out", str(folder / "out")]


def deploy(server, source, *more):
    return CliRunner().invoke(app, ["deploy", str(source), "--target", BOARD, "--ssh", server.address, *more])


def asked(board, flag):
    """How often trtexec was asked for something since the last time that somebody wanted to know."""
    log = board.folder / "log.jsonl"
    commands = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return sum(any(part.startswith(flag) for part in command) for command in commands)


def test_a_model_goes_out_and_its_verdict_comes_home(server, board, packed, model, monkeypatch):
    asked(board, "")
    step, cuts = ConsoleWatcher.step, ["build: tensorrt-fp16: built in", "bench: tensorrt-fp32: p50"]

    def cut(self, text):
        step(self, text)
        if cuts and cuts[0] in text:
            cuts.pop(0)
            server.wire.cut()

    monkeypatch.setattr(ConsoleWatcher, "step", cut)
    command = f"mst-edge deploy {model} --target {BOARD} --ssh {server.address}"
    while cuts:
        lost = deploy(server, model)
        assert "the connection was lost (" in str(lost.exception), lost.output
        assert str(lost.exception).endswith(f"what is done stays done; go on with: {command}")
    done = deploy(server, model, "--json")
    assert done.exit_code == 0, done.output
    assert asked(board, "--saveEngine") == 3  # one build per model, however often the connection was lost
    result = json.loads(done.stdout)
    assert result == json.loads((model / "result.json").read_text())
    (target,) = result["targets"]
    assert result["gate"] == target["gate"] == "passed"
    assert target["chosen"] in target["found"]["builds"]
    assert target["found"]["board"]["power_mode"] == {"name": "MAXN_SUPER", "number": 2}
    assert {goal["goal"] for goal in target["found"]["judged"]["goals"]} >= {"board.numerics", "board.measurement"}
    # The run now tells it by itself, as does the bundle.
    for place in (model, model / target["bundle"]):
        checked = CliRunner().invoke(app, ["check", str(place)])
        assert checked.exit_code == 0
        assert f"{BOARD}: gate passed with {target['chosen']}" in checked.output
    # The folder that holds it is not packed over.
    again = deploy(server, packed / "net.onnx", "--calibration", str(packed / "samples"), "--out", str(model))
    assert f"go on with it: {command}" in str(again.exception)
    refuses_other_results(server, model)


def refuses_other_results(server, model):
    """Garbage, and what is of another bundle, is neither built upon there nor believed here."""
    before = (model / "result.json").read_text()
    there, here = server.bundle / "result.json", model / "bundles" / BOARD / "result.json"
    found = json.loads(there.read_text())
    for garbage, said in (
        ("not JSON", "not readable JSON"),
        (json.dumps(found | {"manifest_sha256": "0" * 64}), "is of another bundle; delete it and start again"),
    ):
        there.write_text(garbage)
        done = deploy(server, model)
        assert said in str(done.exception)
        assert ", build: " in str(done.exception)
    build = found["builds"]["tensorrt-fp32"]
    for wrong, said in (
        (json.dumps(found).replace("0.25", "NaN", 1), "NaN is no number"),
        (json.dumps(found)[:-1] + ', "name": "x"}', "'name' twice"),
        (json.dumps(found | {"chosen": "../x"}), "builds that the bundle has not: ../x"),
        (json.dumps(found | {"builds": {"tensorrt-fp32": build | {"check": {"passed": "yes"}}}}), "check.passed"),
        (json.dumps(found | {"builds": [build]}), "builds: Input should be a valid dictionary"),
    ):
        here.write_text(wrong)
        done = CliRunner().invoke(app, ["check", str(here.parent)])
        assert isinstance(done.exception, UserError), done.output
        assert said in str(done.exception)
    assert (model / "result.json").read_text() == before


def test_what_the_board_could_not_do_or_cannot_use_any_more_is_made_anew_and_nothing_else(server, board, model):
    server.set(FAKE_KILLED="model")  # no memory for any build
    done = deploy(server, model)
    assert done.exit_code == 1, done.output
    assert "trtexec was killed by signal 9, memory ran out" in done.output
    result = json.loads((model / "result.json").read_text())
    assert (result["gate"], result["targets"][0]["chosen"]) == ("failed", None)
    # A disk that fills up while it works: no result is half written, and what was done is not lost.
    library = str(board.folder / "libfaults.so")
    server.set(FAKE_KILLED="nothing", LD_PRELOAD=library, FAKE_FULL="result.json", FAKE_CLOCK_JUMPS="yes")
    done = deploy(server, model)
    assert f"{server.address}, build: " in str(done.exception)
    assert "result.json: cannot be written (No space left on device); its log: " in str(done.exception)
    server.set(FAKE_FULL="outputs/")
    done = deploy(server, model)
    assert f"{server.address}, check: " in str(done.exception)
    assert "cannot be written (No space left on device)" in str(done.exception)
    assert done.output.count("built in") == 3
    server.set(FAKE_FULL="")  # the clock still jumps by decades, back and forth
    assert deploy(server, model).exit_code == 0
    assert json.loads((model / "result.json").read_text())["gate"] == "passed"
    asked(board, "")
    plan = server.bundle / "models/tensorrt-fp16/model.plan"
    plan.write_bytes(plan.read_bytes()[:-100])  # power was lost
    found = json.loads((server.bundle / "result.json").read_text())
    found["builds"]["tensorrt-fp32"]["bench"]["under"]["clocks"] = "free"  # then; they are locked now
    (server.bundle / "result.json").write_text(json.dumps(found))
    for path in server.bundle.rglob("*"):  # a clock without a battery: back in 1970
        os.utime(path, (0, 0))
    done = deploy(server, model)
    assert done.exit_code == 0, done.output
    assert asked(board, "--saveEngine") == 1
    counts = [done.output.count(f"{word} already") for word in ("built", "checked", "measured")]
    assert counts == [2, 2, 1]
    server.set(FAKE_TENSORRT="101303")  # JetPack was updated
    done = deploy(server, model)
    assert done.exit_code == 0, done.output
    assert asked(board, "--saveEngine") == 3
    assert "TensorRT 10.13.3, power mode MAXN_SUPER, clocks locked" in done.output


def test_a_run_keeps_the_verdict_and_packs_once(server, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "runs" / "small")
    first = deploy(server, run)
    assert first.exit_code == 0, first.output
    assert "gate passed with tensorrt-" in first.output
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Found there, with TensorRT 10.3.0" in page
    server.set(FAKE_ERROR="5")  # as if the GPU computed something else: what passed before is not asked again
    again = deploy(server, run)
    assert again.exit_code == 0, again.output
    assert "packed before: " in again.output
    assert json.loads((run / "stages" / f"deploy-{BOARD}.json").read_text())["gate"] == "passed"
    checked = CliRunner().invoke(app, ["check", str(run)])
    assert checked.exit_code == 0
    assert f"{BOARD}: gate passed with tensorrt-" in checked.output
    assert "cpu: gate passed with" in checked.output


def test_it_leads_to_one_board_and_nowhere_else(packed, tmp_path):
    for targets, said in (
        (["cpu"], "--ssh: cpu is the CPU of this machine; leave it out, or name a board as --target"),
        ([BOARD, "jetson-thor"], "--ssh: leads to one board, received 2 targets; give one --target"),
    ):
        chosen = [part for name in targets for part in ("--target", name)]
        command = ["deploy", str(packed / "net.onnx"), *chosen, "--ssh", "me@board", "--out", str(tmp_path / "o")]
        done = CliRunner().invoke(app, command)
        assert str(done.exception) == said
    assert not (tmp_path / "o").exists()
