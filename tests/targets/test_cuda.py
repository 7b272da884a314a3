"""Target cuda without a GPU: what is missing is told, nothing falls back, and a GPU of paper is walked all the way.

No chip has run any of this; what stands in for one is ``tests/targets/paper_gpu.py``.
"""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from apps.runtime import BundleError
from apps.runtime.engines import OnnxRuntimeCudaEngine, OnnxRuntimeEngine, OnnxRuntimeTensorRtEngine
from mst_edge.core.errors import UserError
from targets import nvml
from targets.placement import Placement, place, read_profile
from targets.proof import MODELS
from targets.runtimes.base import NotBuiltError
from targets.runtimes.onnxruntime_gpu import OnnxRuntimeCuda
from targets.spec import Build
from targets.target import get_target
from targets.tensorrt_file import to_bfloat16
from tests.quantize.foreign_models import classifier, pictures, save
from tests.targets.paper_gpu import paper_gpu

cpu_package = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime was built with CUDA"
)
REINSTALL = "pip uninstall -y onnxruntime && pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'"


@pytest.fixture
def no_driver(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(nvml.ctypes, "CDLL", absent)


@cpu_package
def test_what_is_missing_comes_with_the_commands_that_mend_it(no_driver):
    probe = get_target("cuda").probe()["onnxruntime-cuda"]
    assert not probe.available
    assert probe.reason == (
        "no NVIDIA GPU answers here, NVML: none here; "
        f"onnxruntime {onnxruntime.__version__} was built without CUDAExecutionProvider "
        f"(install the driver of the GPU, https://www.nvidia.com/drivers; then {REINSTALL})"
    )


def test_a_target_that_nothing_here_serves_is_refused_before_anything_runs(no_driver):
    with pytest.raises(UserError, match="target cuda: nothing here runs it .*tensorrt: no NVIDIA GPU answers"):
        get_target("cuda").require_here()
    get_target("cpu").require_here()
    get_target("jetson-thor").require_here()


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("engine", [OnnxRuntimeCudaEngine, OnnxRuntimeTensorRtEngine])
@cpu_package
def test_a_session_that_lands_on_the_cpu_is_an_error(engine):
    """This onnxruntime has no CUDA: it warns, and hands out a session on the CPU."""
    with pytest.raises(BundleError, match=f"runs the model on CPUExecutionProvider, not on {engine.provider}"):
        engine(MODELS / "fp32.onnx", {})
    assert not engine.installed()


def test_what_the_providers_are_asked_for(monkeypatch, tmp_path):
    asked = []

    def session(model, settings, **given):
        asked.append(given)
        raise RuntimeError("enough")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    for engine, options in [
        (OnnxRuntimeCudaEngine, {"tf32": True}),
        (OnnxRuntimeCudaEngine, {}),
        (OnnxRuntimeTensorRtEngine, {}),
    ]:
        with pytest.raises(BundleError, match="enough"):
            engine(tmp_path / "model.onnx", options)
    assert [given["enable_fallback"] for given in asked] == [0, 0, 0]
    assert [given["providers"][0][1].get("use_tf32") for given in asked] == ["1", "0", None]
    first, second = asked[2]["providers"]
    assert (first[0], second[0]) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert first[1]["trt_engine_cache_path"] == str(tmp_path)


# Where nodes run ------------------------------------------------------------------------------------------------------


def with_shapes(folder):
    """A product, and a change of shape by numbers that the graph computes of its input's shape."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["rows"]),
        helper.make_node("Mul", ["rows", "six"], ["all"]),
        helper.make_node("Reshape", ["product", "all"], ["y"]),
    ]
    arrays = {"w": np.ones((4, 6), np.float32), "zero": np.array([0]), "one": np.array([1]), "six": np.array([6])}
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["numbers"])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_arithmetic_on_shapes_is_told_from_work(tmp_path):
    found = place(OnnxRuntimeEngine, with_shapes(tmp_path), {}, ((3, 4), "float32"))
    assert set(found.nodes) == {"CPUExecutionProvider"}
    assert found.on_cpu == {"MatMul": 1, "Reshape": 1}
    assert sum(found.nodes.values()) > 2
    assert (found.on_device(), found.share("CPUExecutionProvider")) == (0, 1.0)


def test_a_profile_of_two_providers(tmp_path):
    """The real profile of the CPU, with the product moved to the GPU as CUDA's provider writes it."""
    opened = OnnxRuntimeEngine(with_shapes(tmp_path), {"profile": tmp_path / "p"})
    opened.run(np.zeros((2, 4), np.float32))
    opened.run(np.zeros((2, 4), np.float32))
    events = json.loads(opened.end_profile().read_text())
    for event in events:
        if event.get("args", {}).get("op_name") in ("MatMul", "Reshape"):
            event["args"]["provider"] = "CUDAExecutionProvider"
    found = read_profile(json.dumps(events))
    assert found.nodes["CUDAExecutionProvider"] == found.on_device() == 2  # and not twice for two runs
    assert found.on_cpu == {}
    assert 0 < found.share("CUDAExecutionProvider") < 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The proofs' fp32 file as a build, and the runtime that would have built it."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copyfile(MODELS / "fp32.onnx", folder / "model.onnx")
    about = {"shape": [32], "sizes": [32], "dtype": "float32"}
    return Build("b", "cuda", "onnxruntime-cuda", "fp32", "fp32", folder, "model.onnx", {}, {"input": about})


@pytest.fixture
def runtime(monkeypatch):
    monkeypatch.setattr("targets.runtimes.on_gpu.this_gpu", lambda: nvml.Gpu(0, "Paper", (8, 9), "570.1", (12, 8)))
    return OnnxRuntimeCuda("cuda")


def test_a_provider_that_runs_nothing_is_no_build(made, runtime, monkeypatch):
    monkeypatch.setattr(runtime, "engine", OnnxRuntimeEngine, raising=False)
    with pytest.raises(NotBuiltError, match="takes the model and runs nothing of it on the GPU"):
        runtime._facts(made)


def test_nodes_on_the_cpu_are_said_and_kept(made, runtime, monkeypatch):
    found = Placement({"CUDAExecutionProvider": 3, "CPUExecutionProvider": 2}, {"QLinearConv": 1})
    monkeypatch.setattr("targets.runtimes.onnxruntime_gpu.place", lambda *_: found)
    facts = runtime._facts(made)
    assert facts["notes"] == ["1 of its nodes run on the CPU: QLinearConv x 1"]
    assert facts["placement"] == {"nodes": {"CUDAExecutionProvider": 3, "CPUExecutionProvider": 2}, "share": 0.6}
    assert facts["gpu"] == {"index": 0, "name": "Paper", "sm": "8.9", "driver": "570.1", "cuda": "12.8"}


# Precision in the file ------------------------------------------------------------------------------------------------


def test_bf16_is_made_of_the_fp16_file():
    model = onnx.load(MODELS / "fp16.onnx")
    (tensor,) = (t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16)
    before = numpy_helper.to_array(tensor).astype(np.float32) / 3
    tensor.CopyFrom(numpy_helper.from_array(before.astype(np.float16), tensor.name))
    to_bfloat16(model)
    kinds = {t.data_type for t in model.graph.initializer}
    kinds |= {a.i for node in model.graph.node for a in node.attribute if a.name == "to"}
    assert TensorProto.BFLOAT16 in kinds
    assert TensorProto.FLOAT16 not in kinds
    after = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == tensor.name)
    bits = before.astype(np.float16).astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)  # to nearest, ties to even
    assert np.array_equal(after.astype(np.float32), rounded)


# On a GPU of paper ----------------------------------------------------------------------------------------------------

BUILD = """
import json, os, sys
from pathlib import Path
from targets.proof import _variant, sample, expected
from targets.runtimes.base import NotBuiltError
from targets.target import get_target
target = get_target("cuda")
runtime = target.runtime("tensorrt")
for number, (form, stored, precision, *changed) in enumerate(json.loads(sys.argv[1])):
    place = Path(sys.argv[2]) / str(number)
    os.environ.update(*changed)
    try:
        build = runtime.build(_variant(form, stored, place / "variant", runtime), precision, 1, place / "build")
        with target.load(build) as runner:
            rows = runner.run(sample().repeat(3, axis=0))
            wrong = float(abs(rows - expected()).max() / expected().max())
            print(json.dumps([precision, wrong, runner.device_ms]))
    except (NotBuiltError, Exception) as error:
        print(json.dumps([precision, type(error).__name__, str(error)]))
"""
ALL = [["fp32", "fp32", "fp32"], ["fp32", "fp32", "tf32"], ["fp16", "fp16", "fp16"], ["fp16", "fp16", "bf16"]]
ALL += [["int8-symmetric", "int8", "int8"]]
TYPED = ["STRONGLY_TYPED"]
TOLD = {
    "100300": [
        ([], []),
        ([], ["tf32"]),
        ([], ["fp16", "tf32"]),
        ([], ["bf16", "tf32"]),
        ([], ["fp16", "int8", "tf32"]),
    ],
    "101300": [(TYPED, []), *[(TYPED, ["tf32"])] * 4],
    "110400": [([], []), *[([], ["tf32"])] * 4],
}


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    return paper_gpu(tmp_path_factory.mktemp("gpu"))


def build(gpu, folder, forms=ALL, **environment):
    done = gpu.run("-c", BUILD, json.dumps(forms), str(folder), **environment)
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def told(gpu, since=0):
    log = gpu.folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()][since:] if log.exists() else []


@pytest.mark.parametrize("version", TOLD)
def test_each_tensorrt_is_told_what_it_understands(gpu, tmp_path, version):
    since = len(told(gpu))
    found = build(gpu, tmp_path, tensorrt=version)
    assert [row[0] for row in found] == [precision for _, _, precision in ALL]
    assert all(wrong <= 0.01 and device_ms > 0 for _, wrong, device_ms in found)
    orders = told(gpu, since)
    assert [(order["network"], order["flags"]) for order in orders] == TOLD[version]
    assert [order["timing"] for order in orders] == [0, 1, 2, 3, 4]  # each build begins with what was timed before
    for order in orders:
        assert order["profiles"] == [{"sample": [[1, 32]] * 3}]
        assert (order["level"], order["workspace"], order["verbosity"]) == (3, 1 << 30, "DETAILED")


def test_tensorrt_8_6_is_told_that_the_batch_is_an_axis():
    from types import SimpleNamespace

    from apps.runtime.board.dialect import Version, dialect_of
    from targets.tensorrt_build import _creation_flags

    known = SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
    tensorrt = SimpleNamespace(NetworkDefinitionCreationFlag=known)
    flags = {
        key: _creation_flags(tensorrt, Version(*key), dialect_of(Version(*key)))
        for key in [(8, 6), (10, 11), (10, 12), (11, 0)]
    }
    assert flags == {(8, 6): 1, (10, 11): 0, (10, 12): 2, (11, 0): 0}


def test_timings_are_those_of_the_same_chip_driver_and_tensorrt(gpu, tmp_path):
    driver, chip = {"FAKE_DRIVER": "580.1"}, {"FAKE_SM": "9.0", "FAKE_GPU": "Paper H100"}
    one, other = ["fp32", "fp32", "fp32"], ["fp32", "fp32", "tf32"]
    since = len(told(gpu))
    build(gpu, tmp_path, [one, other, [*one, driver], [*other, chip]], tensorrt="101309")
    build(gpu, tmp_path / "other", [one], tensorrt="101310")
    assert [order["timing"] for order in told(gpu, since)] == [0, 1, 0, 0, 0]


KEYS = """
import json, os, sys, tempfile
from pathlib import Path
from targets.proof import _variant
from targets.target import get_target
runtime = get_target("cuda").runtime("tensorrt")
with tempfile.TemporaryDirectory() as place:
    fp32 = _variant("fp32", "fp32", Path(place) / "v", runtime)
    keys = [runtime.depends_on(fp32, "fp32", 1), runtime.depends_on(fp32, "tf32", 1)]
    for changed in ({"FAKE_DRIVER": "580.1"}, {"FAKE_SM": "9.0"}):
        os.environ.update(changed)
        keys.append(runtime.depends_on(fp32, "fp32", 1))
print(json.dumps(keys))
"""


def test_an_engine_in_the_cache_depends_on_tensorrt_chip_driver_flags_and_file(gpu):
    first, tf32, driver, chip = json.loads(gpu.run("-c", KEYS).out)
    assert (first["flags"], tf32["flags"]) == (["--stronglyTyped", "--noTF32"], ["--stronglyTyped"])
    assert first["runtime_version"] == "10.13.0.1"
    assert first["model"] == hashlib.sha256((MODELS / "fp32.onnx").read_bytes()).hexdigest()
    assert [key["hardware"]["driver"] for key in (first, driver)] == ["570.86.15", "580.1"]
    assert [key["hardware"]["sm"] for key in (driver, chip)] == ["8.9", "9.0"]
    written_in = {"targets.runtimes.tensorrt", "targets.tensorrt_build", "apps.runtime.board.dialect"}
    assert first["code"].keys() >= {*written_in, "apps.runtime.engines"}


def test_builds_that_fail_say_why_in_tensorrts_own_words(gpu, tmp_path):
    one = ["fp32", "fp32", "fp32"]
    found = build(gpu, tmp_path, [[*one, {"FAKE_FAILS": "1"}], [*one, {"FAKE_UNREADABLE": "1"}]], tensorrt="101307")
    assert [row[1:] for row in found] == [
        [
            "NotBuiltError",
            "TensorRT 10.13.7 did not build it: Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)",
        ],
        [
            "NotBuiltError",
            "TensorRT 10.13.7 does not read the model: In node 3 with name: conv: UNSUPPORTED_NODE",
        ],
    ]
    ((_, kind, text),) = build(gpu, tmp_path, [one], tensorrt="8601")
    assert (kind, "reads ONNX opset 17 at most, the model is of 18" in text) == ("NotBuiltError", True)
    assert list(tmp_path.glob("*/build")) == []


LOAD = """
import sys
from pathlib import Path
from targets.spec import load_build
from targets.target import get_target
try:
    with get_target("cuda").load(load_build(Path(sys.argv[1]))) as runner:
        pass
except Exception as error:
    print(type(error).__name__, error)
"""


def test_an_engine_for_another_machine_is_refused(gpu, tmp_path):
    build(gpu, tmp_path, [["fp32", "fp32", "fp32"]])
    place = tmp_path / "0" / "build"
    mend = "build it on this machine: mst-edge deploy ... --target cuda"
    for environment, said in [
        ({"tensorrt": "101400"}, "was built by TensorRT 10.13.0.1, here is 10.14.0.1"),
        ({"FAKE_SM": "9.0"}, "was built for a GPU of SM 8.9, here is SM 9.0"),
    ]:
        assert gpu.run("-c", LOAD, str(place), **environment).out == (
            f"BundleError {place / 'model.plan'}: {said}; {mend}\n"
        )
    plan = place / "model.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    assert "is not the engine that was built here" in gpu.run("-c", LOAD, str(place)).out


MEASURE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from mst_edge.core.scoring import OutputSpec
from targets.measure import QUICK, measure
from targets.proof import _variant, sample
from targets.target import get_target
place = Path(sys.argv[1])
runtime = get_target("cuda").runtime("tensorrt")
build = runtime.build(_variant("fp32", "fp32", place / "v", runtime), "fp32", 1, place / "b")
np.save(place / "samples.npy", sample())
short = replace(QUICK, min_seconds=0.1, idle_seconds=0.1)
done = measure([build], place / "samples.npy", OutputSpec("classification", tuple("abcd")), short)
print(json.dumps(done[build.id][0].to_dict()))
"""


def test_the_gpu_is_watched_while_builds_are_timed_on_it(gpu, tmp_path):
    done = gpu.run("-c", MEASURE, str(tmp_path))
    assert done.code == 0, done.err
    found = json.loads(done.out)
    conditions = found["conditions"]["gpu"]
    assert (conditions["name"], conditions["driver"]) == ("Paper L4", "570.86.15")
    assert (conditions["clock_mhz"], conditions["temperature_c"]) == ([2040, 2040], 61)
    assert (conditions["slowdowns"], conditions["at_power_limit"]) == ([], False)
    assert 0 < found["device"]["p50_ms"] <= found["device"]["p99_ms"]
    assert found["device"]["p50_ms"] < found["latency"]["p50_ms"]
    energy = next(row for row in found["energy"] if row["counter"] == "NVML GPU 0")
    assert energy["mj"] > 0
    throttled = json.loads(gpu.run("-c", MEASURE, str(tmp_path / "hot"), FAKE_REASONS=str(0x40 | 0x04)).out)
    assert "throttled: of the GPU, the hardware slowed the clock down for heat" in throttled["conditions"]["problems"]
    assert "the GPU ran at its power limit" in throttled["conditions"]["warnings"]


def test_tensorrt_keeps_the_contract_of_all_runtimes(gpu):
    """On pictures; those parts that a GPU of paper could break."""
    parts = "(agrees or comes_back or damaged)"
    chosen = ["-k", f"cuda-tensorrt and not audio and {parts}", "tests/targets/test_contract.py"]
    done = gpu.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen)
    assert done.code == 0, done.out
    assert done.out.startswith("... ")  # none was skipped


DEPLOY = """
import sys
from targets import measure
measure.QUICK = measure.Protocol("quick", min_runs=10, min_seconds=0.01, max_seconds=0.5)
from mst_edge.cli.app import main
sys.argv = ["mst-edge", "deploy", *sys.argv[1:]]
main()
"""


def test_a_model_is_deployed_and_its_bundle_runs(gpu, tmp_path):
    """On a chip of SM 7.5, which has neither tf32 nor bf16."""
    save(classifier(), tmp_path / "net.onnx")
    (tmp_path / "samples").mkdir()
    np.save(tmp_path / "samples" / "inputs.npy", pictures(40))
    said = ["--target", "cuda", "--calibration", tmp_path / "samples", "--out", tmp_path / "out"]
    done = gpu.run("-c", DEPLOY, str(tmp_path / "net.onnx"), *map(str, said), "--scheme", "int8-static", FAKE_SM="7.5")
    assert done.code in (0, 1), done.err  # the gate judges speed, and no timing decides here
    (record,) = json.loads((tmp_path / "out" / "result.json").read_text())["targets"]
    precisions = {row["id"]: row["precision"] for row in record["builds"]}
    assert precisions == {
        "tensorrt-fp32": "fp32",
        "tensorrt-fp16": "fp16",
        "tensorrt-int8-symmetric": "int8",
    }
    assert all(row["parity"] <= row["parity_limit"] for row in record["builds"])
    assert all(row["facts"]["gpu"]["sm"] == "7.5" for row in record["builds"])
    reasons = {row["id"]: row["reason"] for row in record["skipped"]}
    assert "zero point 0" in reasons["tensorrt-int8"]
    assert "built without CUDAExecutionProvider" in reasons["onnxruntime-cuda"]
    bundle = tmp_path / "out" / "bundles" / "cuda"
    assert "pip install numpy tensorrt\n" in (bundle / "README.md").read_text()
    assert gpu.run(str(bundle / "run.py"), "--self-test", FAKE_SM="7.5").code == 0
