"""What single runtimes do beyond the contract of all (``test_contract.py``), and how a target goes on without one."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest

from quantize.export import export_student
from targets.runtimes import base as runtimes
from targets.runtimes import openvino as openvino_runtime
from targets.runtimes.openvino import keep_in_f32
from targets.spec import WHOLE_BF16, Build
from targets.target import Skipped, get_target
from tests.quantize.test_export_and_int8 import IMAGE, make_student, raw_samples
from tests.quantizing import quantized


@pytest.fixture(scope="module", params=[(IMAGE, "lenet5")], ids=["image"])
def variants(request, tmp_path_factory):
    spec, network = request.param
    student = make_student(spec, network)
    folder = tmp_path_factory.mktemp("variants")
    fp32 = export_student(student, folder / "fp32")
    int8 = quantized(fp32, raw_samples(spec, 64), folder / "int8")
    return student, [fp32, int8]


def test_a_runtime_that_is_not_installed_is_skipped_with_its_reason(variants, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_runtime.OpenVino.engine, "installed", classmethod(lambda cls: False))
    made = list(get_target("cpu").build_all(variants[1], 1, tmp_path))
    skipped = [entry for entry in made if isinstance(entry, Skipped)]
    assert [(entry.id, entry.reason) for entry in skipped] == [
        ("openvino", "openvino is not installed (pip install 'mst-edge[openvino]')")
    ]


def test_bf16_is_offered_only_where_the_cpu_has_it(monkeypatch):
    from mst_edge.core.machine import Machine

    for isa, offered in ((("avx2",), False), (("bf16",), True), (("amx_bf16",), True)):
        monkeypatch.setattr(runtimes, "this_machine", lambda isa=isa: Machine("", "x86_64", "", isa, 1, 1, ""))
        assert ("bf16" in get_target("cpu").runtime("openvino").probe().precisions) is offered


def test_bf16_leaves_the_front_end_in_f32_and_whole_does_not(variants, tmp_path):
    runtime = get_target("cpu").runtime("openvino")
    student = next(variant for variant in variants[1] if variant.precision == "fp32")
    if "bf16" not in runtime.precisions(student):
        pytest.skip("this CPU has no bf16")
    marked = {}
    for precision in ("bf16", WHOLE_BF16):
        build = runtime.build(student, precision, 1, tmp_path / precision)
        assert build.options["precision"] == "bf16"
        marked[precision] = build.model_path.read_text().count('name="precise"')
    assert marked["bf16"] >= 1
    assert marked[WHOLE_BF16] == 0
    without = replace(student, float_nodes=())
    assert runtime.precisions(without) == tuple(p for p in runtime.precisions(student) if p != WHOLE_BF16)


def test_openvino_that_falls_back_from_bf16_is_an_error(variants, tmp_path, monkeypatch):
    """On a CPU without bf16 OpenVINO would quietly run in f32: the engine asks what it got."""
    import openvino

    from apps.runtime import BundleError

    runtime = get_target("cpu").runtime("openvino")
    build = runtime.build(variants[1][0], "fp32", 1, tmp_path / "b")
    real = openvino.CompiledModel.get_property

    def lie(self, name):
        return openvino.Type.f32 if name == "INFERENCE_PRECISION_HINT" else real(self, name)

    monkeypatch.setattr(openvino.CompiledModel, "get_property", lie)
    asked = Build(**{**vars(build), "options": {**build.options, "precision": "bf16"}})
    with pytest.raises(BundleError, match="runs in f32 on this CPU, not in bf16"), runtime.load(asked):
        pass


def test_keep_in_f32_marks_the_named_layers_and_no_other():
    ir = (
        '<net><layers><layer id="0" name="a" type="X"><data k="1" /><output><port id="0"/></output></layer>'
        '<layer id="1" name="b" type="X"><rt_info><attribute name="fused" version="0"/></rt_info></layer>'
        '<layer id="2" name="c" type="X"><output/></layer></layers></net>'
    )
    marked = keep_in_f32(ir, {"a", "b"})
    precise = '<attribute name="precise" version="0" />'
    assert marked.count(precise) == 2
    assert f'<data k="1" /><rt_info>{precise}</rt_info><output>' in marked
    assert f'<rt_info>{precise}<attribute name="fused"' in marked
    assert '<layer id="2" name="c" type="X"><output/></layer>' in marked


def test_a_build_that_crashes_its_runtime_is_skipped_and_takes_nobody_with_it(variants, tmp_path, monkeypatch):
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n", encoding="utf-8")
    crash.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(crash))
    made = list(get_target("cpu").build_all([variants[1][1]], 1, tmp_path / "builds"))
    assert made
    assert all(isinstance(entry, Skipped) and "exit code -11" in entry.reason for entry in made)


def test_the_int8_model_holds_int8_weights(variants):
    model = onnx.load(variants[1][1].model)
    assert any(i.data_type == onnx.TensorProto.INT8 for i in model.graph.initializer)
