"""The contract of a runtime, written once and run for every runtime of every target."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from distill.datasets.spec import Kind, ModalitySpec
from mst_edge.core.errors import UserError
from quantize.export import export_student
from targets.runtimes import base as runtimes
from targets.runtimes import openvino as openvino_runtime
from targets.runtimes.openvino import keep_in_f32
from targets.spec import Build, load_build
from targets.target import Skipped, get_target, target_names
from tests.quantize.test_export_and_int8 import AUDIO, IMAGE, answers, make_student, raw_samples
from tests.quantizing import quantized

RUNTIMES = [(target, runtime) for target in target_names() for runtime in get_target(target).spec.runtimes]
LIMITS = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.5, "int8-bf16": 0.5}


@pytest.fixture(scope="module", params=[(AUDIO, "ds_cnn"), (IMAGE, "lenet5")], ids=["audio", "image"])
def variants(request, tmp_path_factory):
    spec, network = request.param
    student = make_student(spec, network)
    folder = tmp_path_factory.mktemp("variants")
    fp32 = export_student(student, folder / "fp32")
    int8 = quantized(fp32, raw_samples(spec, 64), folder / "int8")
    return student, [fp32, int8]


@pytest.fixture(params=RUNTIMES, ids="-".join)
def runtime(request):
    target, name = request.param
    found = get_target(target).runtime(name)
    probe = found.probe()
    if not probe.available:
        pytest.skip(probe.reason)
    return found


def test_a_probe_tells_version_and_precisions(runtime):
    probe = runtime.probe()
    assert probe.version
    assert "fp32" in probe.precisions
    assert probe.reason == ""


def test_float_pictures_of_one_channel_run_in_every_precision(runtime, tmp_path):
    """OpenVINO moves their change of shape behind the scaling, where the precision no longer matters."""
    spec = ModalitySpec("depth", Kind.IMAGE, (12, 14, 1), "float32")
    student = make_student(spec, "small_cnn")
    variant = export_student(student, tmp_path / "fp32")
    raw = raw_samples(spec, 8, seed=4)
    for precision in runtime.precisions(variant):
        build = runtime.build(variant, precision, 1, tmp_path / f"build-{precision}")
        with runtime.load(build) as runner:
            assert np.abs(runner.run(raw) - answers(student, raw)).max() < 0.25 * answers(student, raw).std()


def test_every_precision_agrees_with_torch_within_its_tolerance(runtime, variants, tmp_path):
    student, made = variants
    raw = raw_samples(student.spec.modality, 20, seed=4)
    expected = answers(student, raw)
    for variant in made:
        for precision in runtime.precisions(variant):
            build = runtime.build(variant, precision, 1, tmp_path / f"{variant.name}-{precision}")
            with runtime.load(build) as runner:
                batched = runner.run(raw)
                single = np.concatenate([runner.run(raw[i : i + 1]) for i in range(len(raw))])
                assert runner.load_ms > 0
                assert runner.last_ms > 0
            difference = np.abs(batched - expected).max()
            assert difference <= LIMITS[precision] * expected.std(), (variant.name, precision)
            assert np.abs(batched - single).max() <= LIMITS[precision] * expected.std()


def test_a_build_is_whole_on_disk_and_comes_back(runtime, variants, tmp_path):
    build = runtime.build(variants[1][0], "fp32", 1, tmp_path / "b")
    assert load_build(tmp_path / "b") == build
    assert build.size_bytes == sum(file.stat().st_size for file in build.model_files()) > 0
    assert build.id == f"{runtime.name}-fp32"
    assert build.facts["runtime_version"] == runtime.probe().version


def test_inputs_are_checked(runtime, variants, tmp_path):
    student, (fp32, _) = variants
    raw = raw_samples(student.spec.modality, 1)
    build = runtime.build(fp32, "fp32", 1, tmp_path / "b")
    with runtime.load(build) as runner:
        with pytest.raises(ValueError, match="Received"):
            runner.run(raw[:, :-1])
        with pytest.raises(ValueError, match="Received"):
            runner.run(raw.astype(np.float64))
    with pytest.raises(ValueError, match="closed runner"):
        runner.run(raw)


def test_a_precision_that_does_not_fit_is_refused(runtime, variants, tmp_path):
    with pytest.raises(UserError, match="cannot run variant int8 in bf16"):
        runtime.build(variants[1][1], "bf16", 1, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_outputs_of_earlier_runs_do_not_change(runtime, variants, tmp_path):
    student, (fp32, _) = variants
    raw = raw_samples(student.spec.modality, 2, seed=5)
    with runtime.load(runtime.build(fp32, "fp32", 1, tmp_path / "b")) as runner:
        first = runner.run(raw[:1])
        kept = first.copy()
        runner.run(raw[1:])
        assert np.array_equal(first, kept)


def test_a_damaged_model_is_told(runtime, variants, tmp_path):
    from apps.runtime import BundleError

    build = runtime.build(variants[1][0], "fp32", 1, tmp_path / "b")
    build.model_path.write_bytes(build.model_path.read_bytes()[:100])
    with pytest.raises(BundleError, match="cannot"), runtime.load(build):
        pass


def test_a_target_builds_everything_that_works_here(variants, tmp_path):
    target = get_target("cpu")
    made = list(target.build_all(variants[1], 1, tmp_path))
    builds = [build for build in made if isinstance(build, Build)]
    assert {"onnxruntime-fp32", "onnxruntime-int8"} <= {build.id for build in builds}
    assert len({build.folder for build in builds}) == len(builds)
    for build in builds:
        with target.load(build):
            pass


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


def test_unknown_targets_and_runtimes_list_the_known():
    with pytest.raises(UserError, match="unknown target 'cup'; did you mean 'cpu'"):
        get_target("cup")
    with pytest.raises(UserError, match="unknown runtime of target cpu 'openvin'; did you mean 'openvino'"):
        get_target("cpu").runtime("openvin")


def test_a_third_party_brings_a_target_by_entry_point(tmp_path, monkeypatch):
    """A distribution installed beside us, as pip would lay it out."""
    (tmp_path / "acme_target.py").write_text(
        "from targets.cpu import CpuTarget\nfrom targets.spec import TargetSpec\n"
        "class Acme(CpuTarget):\n    spec = TargetSpec('acme', 'a board', ('onnxruntime',), on_host=True)\n"
    )
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mst_edge.targets]\nacme = acme_target:Acme\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "acme" in target_names()
    assert get_target("acme").spec.summary == "a board"
    assert get_target("acme").probe()["onnxruntime"].available


def test_the_int8_model_holds_int8_weights(variants):
    model = onnx.load(variants[1][1].model)
    assert any(i.data_type == onnx.TensorProto.INT8 for i in model.graph.initializer)
