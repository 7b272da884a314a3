"""Builds that were made before: taken from the cache where all that they depend on is the same, and explained."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from mst_edge.core.cache import entries, journal
from targets.cpu import CpuTarget
from targets.kept import KIND
from targets.spec import Build, load_build
from targets.target import Skipped
from tests.conftest import mst_edge
from tests.quantize.chains import chain, matrices, samples


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MST_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def variant(tmp_path):
    return chain(matrices(2), tmp_path / "fp32")


class OneRuntime(CpuTarget):
    """ONNX Runtime alone."""

    spec = replace(CpuTarget.spec, runtimes=("onnxruntime",))


def build(variant, folder, *, threads=1, keep=True):
    (made,) = OneRuntime().build_all([variant], threads, folder, keep=keep)
    return made


def run(made):
    with OneRuntime().load(made) as runner:
        return runner.run(samples(4))


def test_the_same_file_is_built_once(variant, tmp_path, monkeypatch):
    first = build(variant, tmp_path / "a")
    assert "reused" not in first.facts
    monkeypatch.setattr("targets.runtimes.onnxruntime.OnnxRuntime._build", None)  # would raise
    second = build(replace(variant, name="other"), tmp_path / "b")
    assert second.facts["reused"]
    assert (second.id, second.variant) == ("onnxruntime-other", "other")
    assert second.folder == tmp_path / "b" / "onnxruntime-other"
    assert load_build(second.folder) == second
    assert np.array_equal(run(second), run(first))


def test_what_differs_is_built_anew_and_the_difference_is_named(variant, tmp_path, monkeypatch):
    build(variant, tmp_path / "a")
    with journal() as lookups:
        build(variant, tmp_path / "b", threads=2)
        build(chain(matrices(2)[::-1], tmp_path / "fp32-1"), tmp_path / "c")
        monkeypatch.setattr("targets.runtimes.onnxruntime.OnnxRuntime._version", lambda self: "0.1")
        build(variant, tmp_path / "d")
    assert [lookup.reused for lookup in lookups] == [False] * 3
    assert [list(lookup.differs) for lookup in lookups] == [["threads"], ["model"], ["runtime_version"]]
    assert lookups[0].differs["threads"] == (1, 2)
    assert lookups[2].differs["runtime_version"][1] == "0.1"


def test_a_build_that_does_not_run_is_not_kept(variant, tmp_path, cache, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(OneRuntime, "_problem", lambda self, build, ours: "it crashes")
        assert isinstance(build(variant, tmp_path / "a"), Skipped)
    assert entries(cache, [KIND]) == []
    assert isinstance(build(variant, tmp_path / "a"), Build)
    assert len(entries(cache, [KIND])) == 1


def test_a_search_leaves_nothing_behind(variant, tmp_path, cache):
    build(variant, tmp_path / "a", keep=False)
    assert entries(cache, [KIND]) == []


def test_a_run_says_what_it_reused_and_why_not(finished_run, tmp_path):
    folder = finished_run
    done = mst_edge("cache", "explain", folder)
    assert done.code == 0
    assert re.search(r"builds +onnxruntime-fp32 for cpu: (reused|made: )", done.out)
    assert "features" in done.out
    lookups = json.loads(mst_edge("cache", "explain", folder, "--json").out)
    assert {lookup["kind"] for lookup in lookups} >= {"features", "builds"}
    nothing = mst_edge("cache", "explain", tmp_path)
    assert nothing.code == 2
    assert "holds no record of what the cache was asked for" in nothing.err
