"""Measuring in processes of their own, and packing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from apps.runtime import Bundle
from mst_edge.core.scoring import Predictions
from mst_edge.core.stats import paired_ratio
from quantize.export import export_student
from targets import measure as module
from targets import worker
from targets.measure import MLPERF, ROUNDS, Protocol, Worker, _noise, measure, speedup
from targets.pack import PackedBuild, pack
from targets.target import get_target
from tests.quantize.test_export_and_int8 import FACTS, make_student, raw_samples

SHORT = Protocol("short", min_runs=20, min_seconds=0.01, max_seconds=60.0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    variant = export_student(make_student(FACTS, "mlp"), folder / "fp32")
    target = get_target("cpu")
    builds = [target.runtime(name).build(variant, "fp32", 1, folder / name) for name in ("onnxruntime", "openvino")]
    np.save(folder / "samples.npy", raw_samples(FACTS, 12))
    return variant, builds, folder / "samples.npy"


def test_builds_are_measured_side_by_side_in_processes_of_their_own(built):
    variant, builds, samples = built
    said = []
    found = measure(builds, samples, variant.output, SHORT, said.append)
    assert set(found) == {"onnxruntime-fp32", "openvino-fp32"}
    for build in builds:
        measurement, predictions = found[build.id]
        latency = measurement.latency
        assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms
        assert latency.runs >= 20
        assert latency.warmup_runs >= 20
        assert len(latency.rounds_p50_ms) == len(latency.rounds_p90_ms) == ROUNDS
        assert min(latency.rounds_p50_ms) <= latency.p50_ms <= max(latency.rounds_p50_ms)
        assert (latency.threads, latency.protocol) == (1, "short")
        assert measurement.peak_memory_mb > 10
        assert measurement.load_ms > 0
        assert measurement.size_bytes == build.size_bytes
        with get_target("cpu").load(build) as runner:
            expected = np.concatenate([runner.run(row[None]) for row in np.load(samples)])
        assert np.allclose(predictions.answers, expected, atol=1e-5)
    assert "latency, round 1 of 12" in said
    json.dumps(found[builds[0].id][0].to_dict())


def test_a_worker_never_imports_torch(built):
    _, builds, samples = built
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['worker', {str(builds[0].folder)!r}, {str(samples)!r}]\n"
        "sys.stdin = open('/dev/null')\n"
        "runpy.run_module('targets.worker', run_name='__main__')\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_worker_that_dies_is_told_with_what_it_said(built):
    _, builds, samples = built
    with Worker(builds[0], samples) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises((RuntimeError, BrokenPipeError), match="exit code -9|Broken pipe"):
            worker.ask(do="time", runs=5)


def test_a_worker_that_cannot_load_is_told_with_its_traceback(built, tmp_path):
    _, builds, _ = built
    with (
        pytest.raises(RuntimeError, match="(?s)onnxruntime-fp32 failed.*FileNotFoundError"),
        Worker(builds[0], tmp_path / "none.npy"),
    ):
        pass


def test_a_request_that_fails_is_told_and_the_worker_lives_on(built):
    _, builds, samples = built
    with Worker(builds[0], samples) as worker:
        with pytest.raises(RuntimeError, match="KeyError"):
            worker.ask(do="time")
        assert len(worker.ask(do="time", runs=3)["latencies_ms"]) == 3


def test_a_worker_times_until_both_minima_or_until_a_slow_build_has_had_its_time(built):
    _, builds, samples = built
    with Worker(builds[0], samples) as worker:
        answer = worker.ask(do="time", runs=3, seconds=0.05)
        assert answer["seconds"] >= 0.05
        assert len(answer["latencies_ms"]) > 3
        assert len(worker.ask(do="time", runs=1000, max_seconds=0.0)["latencies_ms"]) == 1


def test_the_scenarios_of_mlperf_are_measured_where_the_protocol_has_them(built):
    variant, builds, samples = built
    brief = replace(MLPERF, min_runs=100, min_seconds=0.05, max_seconds=5.0, idle_seconds=0.01, offline_samples=500)
    found, _ = measure(builds[:1], samples, variant.output, brief)[builds[0].id]
    assert found.latency.protocol == "mlperf"
    assert found.single_stream.queries == found.latency.runs >= 100
    assert found.single_stream.p90_ms >= found.latency.p90_ms
    assert found.single_stream.problem == ""
    assert found.offline.samples >= 500
    assert found.offline.samples_per_s == found.offline.samples / found.offline.seconds
    assert found.offline.problem == ""
    assert found.conditions.load is None or found.conditions.load >= 0
    assert 0 < found.runner_overhead_us < 1e4
    json.dumps(found.to_dict())


def test_the_rules_numbers_are_the_protocols():
    assert (MLPERF.min_runs, MLPERF.min_seconds, MLPERF.offline_samples) == (1024, 600.0, 24_576)


class Fussy:
    """A runner of a model that takes batches of 4 at most, or answers otherwise from the third row on."""

    def __init__(self, most, wrong_from):
        self.most, self.wrong_from = most, wrong_from

    def run(self, batch):
        if len(batch) > self.most:
            raise ValueError(f"batch of {len(batch)}")
        time.sleep(0.001)  # of any batch: the largest is the fastest
        return batch + 9.0 * (np.arange(len(batch)) >= self.wrong_from)[:, None]


@pytest.mark.parametrize(
    ("most", "wrong_from", "batch", "says"),
    [(4, 99, 4, "batch 8: batch of 8"), (999, 2, 2, "batch 4: outputs differ by")],
)
def test_throughput_is_of_batches_that_run_and_answer_as_single_samples_do(most, wrong_from, batch, says, monkeypatch):
    monkeypatch.setattr(worker, "_TRY_S", 0.01)
    found = worker._choose_batch(Fussy(most, wrong_from), raw_samples(FACTS, 12))
    assert found["batch"] == batch
    assert found["reason"].startswith(says)


class Clock:
    """A machine that slows down all the time; every build takes what it takes there."""

    def __init__(self, builds):
        self.now, self.order, self.builds = 0.0, [], builds

    def worker(self, build, samples):
        return Slowing(self, build)


class Slowing:
    def __init__(self, clock, build):
        self.clock, self.build = clock, build
        self.facts = {"device": "CPU", "load_ms": 1.0, "first_inference_ms": 1.0, "model_memory_mb": 1.0}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, do, runs=0, **_):
        if do == "warm_up":
            return {"runs": 20, "peak_memory_mb": 20.0}
        took = []
        for _run in range(runs):
            took.append(self.clock.builds[self.build.id] * (1 + self.clock.now / 300))
            self.clock.now += took[-1]
        self.clock.order.append(self.build.id)
        return {"latencies_ms": took, "device_ms": [], "seconds": sum(took) / 1000, "overhead_us": 1.0, "joules": {}}


def test_a_machine_that_slows_down_favours_no_build(built, monkeypatch):
    variant, builds, samples = built
    clock = Clock({"onnxruntime-fp32": 1.0, "openvino-fp32": 1.0})
    monkeypatch.setattr(module, "Worker", clock.worker)
    monkeypatch.setattr(module, "_predict", lambda *_: Predictions(np.zeros(1), np.zeros(1)))
    found = measure(builds, samples, variant.output, Protocol("p", min_runs=200))
    first, second = (found[build.id][0].latency for build in builds)
    assert first.rounds_p50_ms[-1] > 2 * first.rounds_p50_ms[0]
    gain = speedup(first, second)
    assert gain.low < 1 < gain.high
    assert gain.estimate == pytest.approx(1, abs=0.01)
    pure = paired_ratio(second.rounds_p90_ms, first.rounds_p90_ms)
    assert (gain.low, gain.high) == (pytest.approx(pure.low / 1.03), pytest.approx(pure.high * 1.03))
    one, other = (build.id for build in builds)
    assert clock.order[::2][:4] == [one, other, other, one], "rounds go forth and back"
    twice = speedup(replace(first, rounds_p50_ms=tuple(value / 2 for value in first.rounds_p50_ms)), second, 50)
    assert twice.low > 1.5


@pytest.mark.parametrize(
    ("medians", "p90", "noisy"),
    [([1.0] * 10, 1.1, False), ([1.0] * 9 + [1.5], 1.1, True), ([1.0] * 10, 9.0, True)],
)
def test_noise_is_told(medians, p90, noisy):
    assert bool(_noise(medians, 1.0, p90)) is noisy


@pytest.fixture
def bundle(built, tmp_path):
    variant, builds, samples = built
    inputs = np.load(samples)[:4]
    packed = []
    for build in builds:
        with get_target("cpu").load(build) as runner:
            packed.append(PackedBuild(build, runner.run(inputs), 1e-3, {"accuracy": 0.5}))
    pack(
        tmp_path / "cpu",
        name="demo",
        target="cpu",
        output=variant.output,
        input_spec=variant.input,
        reference_inputs=inputs,
        fp32_outputs=packed[0].reference_outputs,
        builds=packed,
        gate={"verdict": "passed", "goals": {}, "checks": []},
        provenance={"seed": 0},
        licence="CC0",
        readme="demo\n",
    )
    return tmp_path / "cpu"


def test_a_bundle_runs_where_nothing_of_ours_is_installed(bundle, tmp_path):
    np.save(tmp_path / "x.npy", np.ones(12, np.float32))
    command = [sys.executable, "-I", str(bundle / "run.py"), "--self-test", str(tmp_path / "x.npy"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("self-test passed: onnxruntime-fp32")
    assert second == "labels as the fp32 model: 100.0%; Jensen-Shannon distance mean 0, max 0; 4 samples"
    assert json.loads(third)["label"] in "abcde"


def test_the_zip_holds_the_same_and_is_the_same_each_time(bundle):
    archive = bundle.with_name("cpu.zip")
    with zipfile.ZipFile(archive) as held:
        names = held.namelist()
        assert "manifest.json" in names
        assert all(held.read(name) == (bundle / name).read_bytes() for name in names)
        assert {info.date_time for info in held.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with Bundle.open(archive) as opened:
        assert opened.self_test() < 1e-3


def test_the_manifest_lists_every_file(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    on_disk = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
