"""Proofs: the tiny models are what the code writes, every runtime answers right, and a liar or a crash is found."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from targets.proof import FORMS, MODELS, prove
from targets.proof_models import write_models
from targets.target import get_target, target_names

RUNTIMES = [(target, runtime) for target in target_names() for runtime in get_target(target).spec.runtimes]
SHAKY = """
import os, signal
from targets.cpu import CpuTarget
from targets.runtimes.onnxruntime import OnnxRuntime
from targets.spec import TargetSpec

class Shaky(OnnxRuntime):
    name = "shaky"

    def _run(self, handle, batch):
        if self.precision == "w8":
            os.kill(os.getpid(), signal.SIGILL)
        return super()._run(handle, batch) + (5 if self.precision == "int8" else 0)

    def _load(self, build):
        self.precision = build.precision
        if build.precision == "fp16":
            raise RuntimeError("no such kernel")
        return super()._load(build)

class ShakyBoard(CpuTarget):
    spec = TargetSpec("shaky_board", "a board", ("shaky",), on_host=True)
    runtime_classes = {"shaky": "shaky_target:Shaky"}
"""


@pytest.fixture
def shaky_board(tmp_path, monkeypatch):
    """A target of another distribution, installed as pip would lay it out; its runtime has faults."""
    (tmp_path / "shaky_target.py").write_text(SHAKY)
    info = tmp_path / "shaky-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shaky\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mst_edge.targets]\nshaky_board = shaky_target:ShakyBoard\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


def test_the_models_are_what_the_code_writes(tmp_path):
    write_models(tmp_path)
    for name in (form for forms in FORMS.values() for form in forms):
        kept, made = (onnx.load(folder / f"{name}.onnx").graph for folder in (MODELS, tmp_path))
        assert [(n.op_type, list(n.input), list(n.output)) for n in kept.node] == [
            (n.op_type, list(n.input), list(n.output)) for n in made.node
        ]
        for one, other in zip(kept.initializer, made.initializer, strict=True):
            assert np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


@pytest.mark.parametrize(("target", "runtime"), RUNTIMES)
def test_a_runtime_proves_every_precision_that_it_claims(target, runtime):
    probe = get_target(target).runtime(runtime).probe()
    if not probe.available:
        pytest.skip(probe.reason)
    proofs = list(prove(target, runtime))
    assert sorted(proof.precision for proof in proofs) == sorted(probe.precisions)
    assert [proof for proof in proofs if not proof.works] == []


def test_wrong_answers_errors_and_crashes_are_told_apart(shaky_board):
    problems = {proof.precision: proof.problem for proof in prove("shaky_board", "shaky")}
    assert problems == {
        "fp32": "",
        "fp16": "RuntimeError: no such kernel",
        "int8": "the answer is off by 0.024 of itself",
        "w8": "the process died of SIGILL",
        "w4": "not reached",
    }


def test_what_runs_in_principle_does_not_depend_on_the_cpu(monkeypatch):
    from mst_edge.core.machine import Machine
    from targets.runtimes import base
    from targets.runtimes.openvino import OpenVino

    monkeypatch.setattr(base, "this_machine", lambda: Machine("", "x86_64", "", ("avx2",), 1, 1, ""))
    assert OpenVino.ways("int8") == ("int8", "int8-bf16")
    assert "int8-bf16" not in OpenVino.supported_here()
