"""The benchmark against other tools: same student, same samples; who is absent or fails is said, nobody is left out."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from benchmarks.peer_tools import main as by_tool
from benchmarks.quantize_peers import _against_pick, main
from mst_edge.core.errors import UserError
from quantize.variant import load_variant

# Pythons that other tools could live in: one without the tool, one where it fails, one where it changes nothing.
PROGRAMS = {
    "without": """echo '{"absent": "no module named olive"}'""",
    "failing": "echo boom >&2; exit 1",
    "copying": """cp "$3" "$5"; echo '{"version": "1.0", "seconds": 2.5}'""",
}


@pytest.fixture
def programs(tmp_path):
    for name, body in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_ours_and_peers_are_measured_on_the_same_samples(finished_run, programs, tmp_path, capfd):
    pythons = {"olive": "without", "optimum": "failing", "nncf-onnx": "copying"}
    envs = [f"--peer-env={name}={programs / python}" for name, python in pythons.items()]
    arguments = ["--run", str(finished_run), "--out", str(tmp_path / "b"), "--schemes=int8-static"]
    main([*arguments, f"--peers={','.join(pythons)},neural-compressor", "--min-seconds=0.02", *envs])
    (record,) = json.loads((tmp_path / "b" / "quantize_peers.json").read_text())["students"]
    assert (record["rows"][0]["tool"], record["rows"][0]["build"]) == ("mst-edge", record["pick"])
    assert {row["build"] for row in record["ours"]} >= {"onnxruntime-fp32", "onnxruntime-int8-static"}
    found = {row["tool"]: row for row in record["rows"]}
    assert set(found) == {"mst-edge", "nncf-onnx", "nncf-onnx-told", "neural-compressor"}
    assert found["nncf-onnx"]["accuracy"] == pytest.approx(record["fp32"])
    assert (found["nncf-onnx"]["version"], found["nncf-onnx"]["seconds"]) == ("1.0", 2.5)
    assert found["nncf-onnx"]["p50_ms"] > 0
    assert found["mst-edge"]["times_as_fast_as_pick"]["p90"]["estimate"] == 1
    assert {entry["tool"]: entry["reason"] for entry in record["without"]} == {
        "olive": "absent: no module named olive",
        "optimum": "failed: boom",
        "optimum-told": "failed: boom",
    }
    printed = capfd.readouterr().out
    assert printed.count("\n| ") == len(record["rows"]) + 3
    assert "our pick" in printed


def test_a_tool_quantizes_what_it_is_not_told_to_leave(finished_run, tmp_path):
    source = load_variant(finished_run / "variants" / "fp32")
    samples = finished_run / "variants" / "calibration" / "inputs.npy"
    convolutions = [node.name for node in onnx.load(source.model).graph.node if node.op_type == "Conv"]
    counts = []
    for name, keep in (("default", []), ("told", convolutions)):
        said = by_tool("nncf-onnx", str(source.model), str(samples), str(tmp_path / f"{name}.onnx"), json.dumps(keep))
        assert said["seconds"] > 0
        weights = onnx.load(tmp_path / f"{name}.onnx").graph.initializer
        counts.append(sum(np.prod(tensor.dims) for tensor in weights if tensor.data_type == onnx.TensorProto.INT8))
    assert counts[0] > counts[1]


def test_an_unknown_tool_is_refused(finished_run, tmp_path):
    with pytest.raises(UserError, match="--peers: unknown tool 'nnfc-onnx'; did you mean 'nncf-onnx'"):
        main(["--run", str(finished_run), "--out", str(tmp_path / "b"), "--peers=nnfc-onnx"])


def peer(name, estimate, low, high, *, within_goal=True):
    gain = {"estimate": estimate, "low": low, "high": high}
    gains = {"p50": gain, "p90": gain}
    return {"tool": name, "build": f"onnxruntime-{name}", "within_goal": within_goal, "times_as_fast_as_pick": gains}


def test_a_peer_is_faster_only_beyond_noise_and_within_the_goal():
    slow, close = peer("slow", 0.5, 0.4, 0.6), peer("close", 1.02, 0.97, 1.06)
    wrong, fast = peer("wrong", 3.0, 2.9, 3.1, within_goal=False), peer("fast", 1.2, 1.1, 1.3)
    first, second = _against_pick([slow, close, wrong])
    assert first.startswith("close (onnxruntime-close) against our pick: speed 1.02 x at p50 (0.97 to 1.06)")
    assert first.endswith(": within noise.")
    assert second.startswith("No peer that holds the accuracy goal is faster than our pick beyond noise")
    (only,) = _against_pick([slow, wrong, fast])
    assert only.startswith("fast (onnxruntime-fast)")
    assert "noise" not in only
