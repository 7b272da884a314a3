"""A Jetson's bundle, from packing to result.json, on a board of paper: build.sh, check.py, bench.py, run.py."""

from __future__ import annotations

import ast
import json
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

from mst_edge.cli.app import app
from tests.apps.board import recorded
from tests.apps.board.fakes import paper_board
from tests.conftest import ROOT
from tests.quantize.foreign_models import classifier, pictures, save

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in of libcudart")
IDS = ["tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8-symmetric"]
BENCH = ("python3", "bench.py", "--seconds", "0.3", "--idle-seconds", "0.2")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A bundle of a classifier with labels, one answer in ten wrong; opset 18."""
    folder = tmp_path_factory.mktemp("packed")
    save(classifier(), folder / "net.onnx")
    (folder / "samples").mkdir()
    samples = pictures(80)
    np.save(folder / "samples" / "inputs.npy", samples)
    session = onnxruntime.InferenceSession(str(folder / "net.onnx"), providers=["CPUExecutionProvider"])
    labels = session.run(None, {"x": samples})[0].argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % 5
    np.save(folder / "samples" / "target.npy", labels)
    command = ["deploy", folder / "net.onnx", "--target", "jetson-orin-nano", "--calibration", folder / "samples"]
    done = CliRunner().invoke(app, [*map(str, command), "--out", str(folder / "out")])
    assert done.exit_code == 0, done.output
    return folder / "out"


@pytest.fixture
def bundle(packed, tmp_path):
    """A copy on the board."""
    return shutil.copytree(packed / "bundles" / "jetson-orin-nano", tmp_path / "bundle")


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return paper_board(tmp_path_factory.mktemp("board") / "bin")


def result(bundle):
    return json.loads((bundle / "result.json").read_text())


def test_packing_judges_nothing_and_says_so(packed, bundle):
    record = json.loads((packed / "result.json").read_text())
    assert record["gate"] == "not judged"
    (target,) = record["targets"]
    assert (target["on_host"], target["chosen"]) == (False, None)
    assert [row["id"] for row in target["builds"]] == IDS
    assert target["skipped"][0]["id"] == "tensorrt-int8"
    assert "not symmetric" in target["skipped"][0]["reason"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["gate"]["verdict"] == "not judged"
    on_disk = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert on_disk == {*manifest["files"], "manifest.json"}
    for path in ("build.sh", "check.py", "bench.py", "run.py", "calibration/inputs.npy", "evaluation/target.npy"):
        assert path in manifest["files"]


def test_from_a_fresh_board_to_numbers(bundle, board):
    built = board.run(bundle, "sh", "build.sh")
    assert (built.code, built.err) == (0, ""), built.out
    assert "TensorRT 10.3.0: flags as for 8.6 to 10.11" in built.out
    checked = board.run(bundle, "python3", "check.py")
    assert (checked.code, checked.err) == (0, ""), checked.out
    benched = board.run(bundle, *BENCH)
    assert (benched.code, benched.err) == (0, ""), benched.out
    found = result(bundle)
    assert found["tensorrt"] == "10.3.0"
    assert found["board"]["power_mode"] == {"name": "MAXN_SUPER", "number": 2}
    assert found["board"]["clocks"]["state"] == "locked"
    assert found["chosen"] in IDS
    for name in IDS:
        about = found["builds"][name]
        assert about["check"]["difference"] <= about["check"]["tolerance"]
        assert about["check"]["metric"] == "accuracy"
        assert about["check"]["value"] > 0.8
        assert about["bench"]["latency"]["runs"] >= 100
        assert about["bench"]["gpu_compute"]["p50_ms"] == pytest.approx(0.25)
        assert about["bench"]["valid"] is True
        # 4824 mW at rest as at work: nothing above rest, and all of it per inference.
        used, latency = about["bench"]["energy"], about["bench"]["latency"]
        assert used["rails"] == ["VDD_IN"]
        assert used["busy_mw"] == pytest.approx(4824)
        assert used["above_idle_mj"] == pytest.approx(0, abs=1e-6)
        assert used["total_mj"] >= 4824 * latency["mean_ms"] / 1e3
    answered = board.run(bundle, "python3", "run.py", "--json", *sorted(map(str, (bundle / "examples").iterdir())))
    assert answered.code == 0, answered.err
    assert {json.loads(line)["build"] for line in answered.out.splitlines()} == {found["chosen"]}


def test_its_app_starts_with_a_good_build_alone(bundle, board):
    answers = ("python3", "app.py", "--json", *sorted(map(str, (bundle / "examples").iterdir())))
    unbuilt = board.run(bundle, *answers)
    assert (unbuilt.code, unbuilt.out) == (78, "")
    assert "refused to start predict: " in unbuilt.err
    assert "build.sh" in unbuilt.err
    board.run(bundle, "sh", "build.sh")
    started = board.run(bundle, *answers)
    assert started.code == 0, started.err
    assert all(json.loads(line)["label"] for line in started.out.splitlines())
    wrong = board.run(bundle, *answers, FAKE_ERROR="100")
    assert (wrong.code, wrong.out) == (78, "")
    assert "is off by 100" in wrong.err


def test_what_comes_home_is_judged_by_the_gate(packed, bundle, board, tmp_path):
    home = shutil.copytree(packed / "bundles" / "jetson-orin-nano", tmp_path / "home")
    waiting = check(home)
    assert waiting["gate"] == "not judged"
    assert "no result.json yet" in waiting["goals"][0]["text"]
    for command in (["sh", "build.sh"], ["python3", "check.py"], BENCH):
        board.run(bundle, *command)
    shutil.copy(bundle / "result.json", home)
    done = CliRunner().invoke(app, ["check", str(home)])
    assert "did not come home; copy outputs/ from the board, with result.json" in str(done.exception)
    shutil.copytree(bundle / "outputs", home / "outputs")
    judged = check(home)
    assert judged["gate"] == "passed"
    assert judged["build"] == result(bundle)["chosen"]
    said = {goal["goal"]: goal["passed"] for goal in judged["goals"]}
    assert said == dict.fromkeys(["board.numerics", "accuracy.max_relative_drop_percent", "board.measurement"], True)
    found = result(home)
    for about in found["builds"].values():  # a board that got too hot
        about["bench"] |= {"valid": False, "throttled": ["gpu-throttle-alert"]}
    (home / "result.json").write_text(json.dumps(found))
    hot = check(home)
    assert hot["gate"] == "failed"
    assert hot["goals"][-1] == {"goal": "board.measurement", "passed": False, "text": "gpu-throttle-alert"}
    for name in IDS:
        file = home / "outputs" / f"{name}.npy"
        np.save(file, -np.load(file))
    done = CliRunner().invoke(app, ["check", str(home)])
    assert "is not what result.json is about" in str(done.exception)


def test_a_board_is_held_to_every_goal_of_the_gate(packed, bundle, board):
    held(bundle, max_size_mb=1e3, max_memory_mb=1.0, latency={"p50_ms": 1e4, "p90_ms": None, "p99_ms": None})
    for command in (["sh", "build.sh"], ["python3", "check.py"], BENCH):
        assert board.run(bundle, *command).code == 0
    judged = check(bundle)
    assert judged["gate"] == "failed"
    said = {goal["goal"]: goal["passed"] for goal in judged["goals"]}
    assert said.items() >= {"latency.p50_ms": True, "max_size_mb": True, "max_memory_mb": False}.items()
    found = result(bundle)
    for about in found["builds"].values():  # a board that does not say
        about["bench"]["peak_memory_mb"] = None
    (bundle / "result.json").write_text(json.dumps(found))
    assert check(bundle)["goals"][-1] == {
        "goal": "max_memory_mb",
        "passed": False,
        "text": "unknown, at most 1 MB",
    }


def test_bundles_of_boards_are_not_compared_here_and_that_is_said(packed):
    bundle = packed / "bundles" / "jetson-orin-nano"
    done = CliRunner().invoke(app, ["check", str(bundle), "--against", str(bundle), "--json"])
    (latency,) = [one for one in json.loads(done.output)["against"]["comparisons"] if one["what"] == "latency"]
    assert latency["regression"] is None
    assert "new bundle: jetson-orin-nano is not this machine" in latency["text"]


def held(bundle, **goals):
    """Holds a bundle to other goals."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["gate"]["goals"] |= goals
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def check(bundle):
    """``mst-edge check --json`` of one bundle: its exit code is the verdict."""
    done = CliRunner().invoke(app, ["check", str(bundle), "--json"])
    record = json.loads(done.output)
    assert done.exit_code == (0 if record["gate"] == "passed" else 1)
    return record["checks"][0]


@pytest.mark.parametrize(("others_ms", "passed"), [(4.0, True), (6.0, False)])
def test_a_board_is_held_to_the_gain_over_its_fastest_fp32_build(bundle, board, others_ms, passed):
    held(bundle, min_speedup=2.0)
    for command in (["sh", "build.sh"], ["python3", "check.py"], BENCH):
        assert board.run(bundle, *command).code == 0
    found = result(bundle)
    for name, about in found["builds"].items():
        about["bench"]["latency"]["p90_ms"] = 10.0 if "fp32" in name else others_ms
    (bundle / "result.json").write_text(json.dumps(found))
    judged = check(bundle)
    assert judged["gate"] == ("passed" if passed else "failed")
    if passed:
        assert judged["goals"][-1] == {
            "goal": "min_speedup",
            "passed": True,
            "text": "2.50 x the speed of the fastest fp32 build at p90, at least 2 x",
        }


def test_accuracy_is_that_of_the_labels_it_carries(bundle, board):
    board.run(bundle, "sh", "build.sh")
    board.run(bundle, "python3", "check.py")
    said, target = np.load(bundle / "evaluation/fp32.npy"), np.load(bundle / "evaluation/target.npy")
    check = result(bundle)["builds"]["tensorrt-fp32"]["check"]
    assert check["fp32_value"] == (said.argmax(axis=1) == target).mean()
    assert check["value"] == check["fp32_value"]
    assert check["agreement"] == 1


@pytest.mark.parametrize(
    ("tensorrt", "flags"),
    [
        ("100300", {"fp32": [], "fp16": ["--fp16"], "int8-symmetric": ["--int8", "--fp16"]}),
        ("101303", {name: ["--stronglyTyped"] for name in ("fp32", "fp16", "int8-symmetric")}),
        ("110401", {name: [] for name in ("fp32", "fp16", "int8-symmetric")}),
    ],
)
def test_each_tensorrt_is_asked_in_its_own_words(bundle, board, tensorrt, flags):
    done = board.run(bundle, "sh", "build.sh", "--dry-run", tensorrt=tensorrt)
    assert done.code == 0, done.err
    commands = done.out.splitlines()[1:]
    for command, (name, expected) in zip(commands, flags.items(), strict=True):
        said = [flag for flag in command.split() if flag in ("--fp16", "--int8", "--stronglyTyped", "--best")]
        assert f"models/tensorrt-{name}/model.onnx" in command
        assert said == expected
        assert command.endswith("--minShapes=x:1x3x8x8 --optShapes=x:1x3x8x8 --maxShapes=x:1x3x8x8")
    assert not (bundle / "result.json").exists()
    # The stand-in for trtexec refuses flags that its version does not have.
    assert board.run(bundle, "sh", "build.sh", tensorrt=tensorrt).code == 0


def test_jetpack_6_0_is_declined_before_anything_is_built(bundle, board):
    done = board.run(bundle, "sh", "build.sh", tensorrt="8602")
    assert done.code == 2
    assert done.err == (
        "error: TensorRT: 8.6.2 reads ONNX opset 17 at most, the model is of 18; "
        "TensorRT 10.3 (JetPack 6.1) or newer reads it\n"
    )
    assert not (bundle / "result.json").exists()


def test_a_build_that_runs_out_of_memory_costs_no_other(bundle, board):
    done = board.run(bundle, "sh", "build.sh", FAKE_FAILS="fp16")
    assert done.code == 1
    assert "tensorrt-fp16: trtexec ended with exit code 1" in done.out
    assert "OutOfMemory" in done.out
    checked = board.run(bundle, "python3", "check.py")
    assert checked.code == 1
    assert "tensorrt-fp16: FAIL" in checked.out
    assert "has no engine yet; build it here: sh build.sh" in checked.out
    assert board.run(bundle, *BENCH).code == 0
    assert result(bundle)["chosen"] in {"tensorrt-fp32", "tensorrt-int8-symmetric"}
    # What is built already is left alone.
    again = board.run(bundle, "sh", "build.sh")
    assert again.code == 0
    assert again.out.count("built already") == 2
    assert "tensorrt-fp16: built in" in again.out


def test_an_engine_of_another_tensorrt_a_changed_one_and_none_are_refused(bundle, board):
    board.run(bundle, "sh", "build.sh")
    other = board.run(bundle, "python3", "run.py", "--self-test", tensorrt="101303")
    assert other.code == 2
    assert "was built by TensorRT 10.3.0, here is 10.13.3.1; build it here: sh build.sh" in other.err
    plan = bundle / "models/tensorrt-fp32/model.plan"
    plan.write_bytes(plan.read_bytes()[:-100])
    cut = board.run(bundle, "python3", "run.py", "--self-test")
    assert cut.code == 2
    assert "is not the engine that was built here" in cut.err
    rebuilt = board.run(bundle, "sh", "build.sh", tensorrt="101303")
    assert rebuilt.out.count("built in") == 3
    assert board.run(bundle, "python3", "run.py", "--self-test", tensorrt="101303").code == 0


def test_an_engine_that_came_with_the_card_from_another_board_is_built_anew(bundle, board, tmp_path):
    nano, agx = tmp_path / "nano", tmp_path / "agx"
    nano.write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    agx.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    faults = {"LD_PRELOAD": str(board.folder / "libfaults.so")}
    built = board.run(bundle, "sh", "build.sh", FAKE_MODEL=str(nano), **faults)
    assert built.code == 0, built.err
    assert result(bundle)["board"]["model"] == "NVIDIA Jetson Orin Nano Developer Kit"
    refused = board.run(bundle, "python3", "run.py", "--self-test", FAKE_MODEL=str(agx), **faults)
    assert (
        "was built on NVIDIA Jetson Orin Nano Developer Kit, this is NVIDIA Jetson AGX Orin Developer Kit; "
        "build it here: sh build.sh"
    ) in refused.err
    again = board.run(bundle, "sh", "build.sh", FAKE_MODEL=str(agx), **faults)
    assert again.out.count("built in") == 3


def test_the_board_of_faults_has_them(board):
    """What other tests stand on: the clock of the board's Python jumps, and its disk is full for a name."""
    program = "import time; print(abs(time.time() - time.time()) > 1e9); open('/tmp/x-full', 'w')"
    faults = {"LD_PRELOAD": str(board.folder / "libfaults.so"), "FAKE_CLOCK_JUMPS": "yes", "FAKE_FULL": "x-full"}
    done = board.run(board.folder, "python3", "-c", program, **faults)
    assert done.out == "True\n"
    assert "No space left on device: '/tmp/x-full'" in done.err


@pytest.mark.parametrize("error", ["5", "nan"])
def test_an_engine_that_computes_something_else_fails(bundle, board, error):
    board.run(bundle, "sh", "build.sh")
    done = board.run(bundle, "python3", "check.py", FAKE_ERROR=error)
    assert done.code == 1
    assert done.out.count("FAIL") == 3
    refused = board.run(bundle, "python3", "bench.py")
    assert refused.code == 1
    assert "no build passed its check: nothing is measured" in refused.out


def test_a_dead_watcher_certifies_nothing_and_free_clocks_are_said(bundle, board):
    board.run(bundle, "sh", "build.sh")
    board.run(bundle, "python3", "check.py")
    done = board.run(bundle, *BENCH, FAKE_TEGRASTATS_DIES="yes", FAKE_CLOCKS=recorded.CLOCKS_FREE)
    assert done.code == 0
    assert "clocks are free; `sudo jetson_clocks` locks them" in done.err
    assert "NOT VALID: tegrastats ended by itself with exit code 3" in done.out
    found = result(bundle)
    assert found["chosen"] is None
    assert found["board"]["clocks"]["state"] == "free"
    assert found["builds"]["tensorrt-fp32"]["bench"]["energy"] is None


def test_a_file_that_was_changed_on_the_way_is_named(bundle, board):
    model = bundle / "models/tensorrt-fp16/model.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    done = board.run(bundle, "sh", "build.sh")
    assert done.code == 2
    assert "file models/tensorrt-fp16/model.onnx was changed; copy the bundle again" in done.err


def test_a_result_of_another_bundle_is_refused(bundle, board):
    board.run(bundle, "sh", "build.sh")
    found = result(bundle)
    (bundle / "result.json").write_text(json.dumps({**found, "manifest_sha256": "0" * 64}))
    done = board.run(bundle, "python3", "check.py")
    assert done.code == 2
    assert "is of another bundle; delete it and start again" in done.err


def test_what_is_carried_is_python_3_10():
    for path in (ROOT / "apps" / "runtime").rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    assert sys.version_info >= (3, 11)  # else the test above would say nothing new
