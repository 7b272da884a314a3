"""Tuning: what is faster by construction is taken, what is slower or does not run is not; all of it is on record."""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from apps.runtime import engines, machine
from apps.runtime.machine import settings_here, this_cpu
from mst_edge.core.machine import physical_cores
from mst_edge.finished import deploy_run
from mst_edge.run_folder import RunFolder
from mst_edge.stages import deploy
from quantize.export import export_student
from targets.measure import Protocol
from targets.runtimes.base import thread_counts
from targets.spec import load_build
from targets.target import get_target
from targets.tune import tune, tuned
from tests.quantize.test_export_and_int8 import FACTS, make_student, raw_samples

SHORT = Protocol("tuning", min_runs=24, min_seconds=0.02, max_seconds=60.0, idle_seconds=0.0)
# Times differ by a factor of four and twenty: no busy machine turns that round.
SLEEPY = """
import time
from targets.cpu import CpuTarget
from targets.runtimes.onnxruntime import OnnxRuntime
from targets.spec import TargetSpec

PACES = {"slow": 0.01, "slower": 0.04, "fast": 0.0005}

class Sleepy(OnnxRuntime):
    name = "sleepy"

    def knobs(self, cores, options):
        after = {"depth": ("shallow", "broken")} if options.get("pace") == "fast" else {}
        return {"pace": tuple(PACES), **after}

    def _load(self, build):
        if build.settings.get("depth") == "broken":
            raise RuntimeError("too deep")
        self.seconds = PACES[build.settings.get("pace", "slow")]
        return super()._load(build)

    def _run(self, handle, batch):
        time.sleep(self.seconds)
        return super()._run(handle, batch)

class SleepyTarget(CpuTarget):
    spec = TargetSpec("sleepy", "a target", ("sleepy",), on_host=True)
    runtime_classes = {"sleepy": "sleepy_target:Sleepy"}
"""


@pytest.fixture
def sleepy(tmp_path, monkeypatch):
    """A target of another distribution, whose runtime sleeps as its options say."""
    (tmp_path / "sleepy_target.py").write_text(SLEEPY)
    info = tmp_path / "sleepy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mst_edge.targets]\nsleepy = sleepy_target:SleepyTarget\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return get_target("sleepy")


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    return export_student(make_student(FACTS, "mlp"), tmp_path_factory.mktemp("v") / "fp32")


def test_what_is_faster_is_taken_and_all_that_was_tried_is_on_record(sleepy, variant, tmp_path):
    build = sleepy.runtime("sleepy").build(variant, "fp32", 1, tmp_path / "b")
    np.save(tmp_path / "samples.npy", raw_samples(FACTS, 20))
    found = tune([build], tmp_path / "samples.npy", variant.output, 600.0, protocol=SHORT)["sleepy-fp32"]
    assert found.options == {"pace": "fast"}
    assert [(trial.options, trial.taken) for trial in found.trials] == [
        ({"pace": "slower"}, False),
        ({"pace": "fast"}, True),
    ]
    slower, fast = (trial.speedup for trial in found.trials)
    assert slower.estimate < 1 < fast.low
    # What only matters after that was tried from there.
    ((setting, problem),) = found.failed.items()
    assert setting == "{'pace': 'fast', 'depth': 'broken'}"
    assert "too deep" in problem
    assert not found.unfinished
    changed = tuned(build, found)
    assert changed == load_build(build.folder)
    assert changed.settings == {**build.options, "pace": "fast"}
    assert changed.options == build.options


def test_when_time_is_up_the_rest_is_left_and_said_so(sleepy, variant, tmp_path):
    build = sleepy.runtime("sleepy").build(variant, "fp32", 1, tmp_path / "b")
    np.save(tmp_path / "samples.npy", raw_samples(FACTS, 2))
    found = tune([build], tmp_path / "samples.npy", variant.output, 0.0, protocol=SHORT)["sleepy-fp32"]
    assert (found.options, found.trials, found.unfinished) == ({}, (), True)
    assert tuned(build, found) is build


def test_settings_are_for_the_machine_that_they_were_found_on(monkeypatch):
    found = {"machine": this_cpu(), "options": {"threads": 2}}
    assert settings_here({"threads": 1, "precision": "f32"}, found) == {"threads": 2, "precision": "f32"}
    assert settings_here({"threads": 1}, {}) == {"threads": 1}
    other = {**found, "machine": {**this_cpu(), "cores": this_cpu()["cores"] + 1}}
    assert settings_here({"threads": 1}, other) == {"threads": 1}
    monkeypatch.setattr(machine, "this_cpu", lambda: {"cpu": "another", "cores": this_cpu()["cores"]})
    assert settings_here({"threads": 1}, found) == {"threads": 1}


def test_a_run_is_tuned_and_its_bundle_opens_with_what_was_found(sleepy, finished_run, tmp_path, monkeypatch):
    """The gate judges the tuned builds; the bundle applies the settings on this machine and leaves them elsewhere."""
    run = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    monkeypatch.setattr(deploy, "tune", functools.partial(tune, protocol=SHORT))
    opened = []

    class Watched(engines.OnnxRuntimeEngine):
        def __init__(self, model, options):
            opened.append(options.get("pace"))
            super().__init__(model, options)

    monkeypatch.setitem(engines.ENGINES, "sleepy", Watched)

    class Quiet:
        said = []  # noqa: RUF012
        stage = busy = staticmethod(lambda text: None)
        step = staticmethod(said.append)

    result = deploy_run(run.path, ["sleepy"], None, Quiet(), tune=True)
    record = next(target for target in result["targets"] if target["target"] == "sleepy")
    assert {tuning["build_id"] for tuning in record["tuning"]} == {row["id"] for row in record["builds"]}
    for row in record["builds"]:
        assert row["tuned"] == {"machine": this_cpu(), "options": {"pace": "fast"}}
        assert row["measurement"]["latency"]["p50_ms"] < 10
    assert any(said.startswith("tuned sleepy-fp32: 2 settings tried; taken, each") for said in Quiet.said)
    from apps.runtime import Bundle

    with Bundle.open(run.bundle("sleepy")) as bundle:
        assert bundle.self_test() < 1e-3
    monkeypatch.setattr(machine, "this_cpu", lambda: {"cpu": "another", "cores": 1})
    with Bundle.open(run.bundle("sleepy")) as bundle:
        bundle.load()
    assert opened == ["fast", None]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_no_setting_changes_what_is_computed(variant, tmp_path, name):
    runtime = get_target("cpu").runtime(name)
    if not runtime.probe().available:
        pytest.skip(runtime.probe().reason)
    cores, raw = physical_cores(), raw_samples(FACTS, 4)
    build = runtime.build(variant, "fp32", cores, tmp_path / "b")
    with runtime.load(build) as runner:
        expected = runner.run(raw)
    knobs = runtime.knobs(cores, build.options)
    assert {"threads"} < set(knobs)
    for knob, values in knobs.items():
        for value in values:
            with runtime.load(replace(build, options={**build.options, knob: value})) as runner:
                assert np.allclose(runner.run(raw), expected, atol=1e-5), (knob, value)


def test_threads_go_up_to_all_cores():
    assert thread_counts(1) == (1,)
    assert thread_counts(6) == (1, 2, 4, 6)
    assert thread_counts(8) == (1, 2, 4, 8)
