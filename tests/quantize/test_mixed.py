"""The search for mixed precision: it finds what is best, never ends with nothing, and can be interrupted anywhere."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mst_edge.core.files import read_json, write_json
from quantize.assignment import Assignable
from quantize.layers import Layer
from quantize.mixed import BEST, RECORD, Assignment, Search, Trial, Tried, front, groups_of, search_assignment
from quantize.ranges import ROUNDS_WEIGHTS
from quantize.schemes.base import SCHEMES, Material
from quantize.variant import load_variant
from tests.quantize.chains import blamed_chain, samples
from tests.quantizing import keep

GUILTY, SLOW = (
    "network.layer1",
    "network.layer2",
)  # int8 cannot hold the one, and the target has no kernel for the other
AGREED = 0.95


def answers(model: Path, raw: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model, providers=["CPUExecutionProvider"], disabled_optimizers=[ROUNDS_WEIGHTS]
    )
    return session.run(None, {"x": raw})[0].argmax(axis=1)


def in_float(model: Path) -> set[str]:
    """Layers whose product reads float weights."""
    graph = onnx.load(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = (node for node in graph.node if node.op_type == "Gemm")
    return {f"network.layer{node.name[-1]}" for node in products if node.input[1] in constants}


def cost(model: Path) -> float:
    """Of a target on which int8 halves a layer's time, but doubles that of one."""
    left = in_float(model)
    return sum(1.0 if name in left else 2.0 if name == SLOW else 0.5 for name in LAYERS) / len(LAYERS)


LAYERS = [f"network.layer{n}" for n in range(4)]


@pytest.fixture
def material(tmp_path):
    return Material(blamed_chain(1, tmp_path / "fp32"), keep(samples(256), tmp_path / "calibration"))


class Bench:
    """A target that never varies, and counts what it is asked."""

    def __init__(self, source, raw, *, dies_at=0, least=AGREED):
        self._exact, self._raw = answers(source.model, raw), raw
        self._dies_at, self._least = dies_at, least
        self.measured = 0

    def __call__(self, models):
        self.measured += len(models)
        if self._dies_at and self.measured >= self._dies_at:
            raise KeyboardInterrupt
        return [[self._one(model)] for model in models]

    def _one(self, model):
        agreed = float((answers(model, self._raw) == self._exact).mean())
        return Tried("bench-int8", agreed, 1 - agreed, max(0.0, self._least - agreed), cost(model))


def make_search(material, folder, *, trials=60, **bench) -> tuple[Search, Bench]:
    raw = samples(400, seed=3)
    measure = Bench(material.source, raw, **bench)
    kept = keep(raw, folder.with_name(f"{folder.name}-tuning"))
    return Search(measure, kept, folder, trials, 600.0, "bench"), measure


def test_the_fastest_assignment_that_meets_the_goal_is_found(material, tmp_path):
    search, bench = make_search(material, tmp_path / "search")
    record = search_assignment(material, search)
    found = set(record["chosen"]["in_float"])
    assert found == {GUILTY, SLOW}
    assert record["chosen"]["passes"]
    assert record["ended"] == "no change that was tried is faster"
    # By brute force: nothing that meets the goal is faster.
    best = np.inf
    for count in range(len(LAYERS) + 1):
        for left in itertools.combinations(LAYERS, count):
            Assignable.of(material).write(tmp_path / "one.onnx", left)
            (tried,) = bench([tmp_path / "one.onnx"])[0]
            best = best if tried.short_by else min(best, tried.ratio)
    assert record["chosen"]["build"]["ratio"] == best
    assert in_float(tmp_path / "search" / BEST) == found
    assert read_json(tmp_path / "search" / RECORD)["chosen"]["in_float"] == sorted(found)


@pytest.mark.parametrize("dies_at", [1, 4, 7, 12])
def test_an_interrupted_search_goes_on_where_it_was(material, tmp_path, dies_at):
    whole, undisturbed = make_search(material, tmp_path / "whole")
    wanted = search_assignment(material, whole)
    broken, bench = make_search(material, tmp_path / "search", dies_at=dies_at)
    with pytest.raises(KeyboardInterrupt):
        search_assignment(material, broken)
    kept = len(list((tmp_path / "search" / "trials").glob("*.json")))
    assert kept < bench.measured
    if kept:  # the best so far lies there
        assert onnx.load(tmp_path / "search" / BEST)
    again, counted = make_search(material, tmp_path / "search")
    found = search_assignment(material, again)
    assert found["chosen"] == wanted["chosen"]
    assert counted.measured == undisturbed.measured - kept


def test_a_budget_of_one_trial_ends_with_a_result_and_says_so(material, tmp_path):
    search, _ = make_search(material, tmp_path / "search", trials=1)
    record = search_assignment(material, search)
    assert record["ended"] == "the trials are spent (2)"  # the first two are one measurement
    assert record["chosen"]["passes"] is False
    assert (tmp_path / "search" / BEST).is_file()


def test_time_spent_before_an_interruption_counts(material, tmp_path):
    broken, _ = make_search(material, tmp_path / "search", dies_at=7)
    with pytest.raises(KeyboardInterrupt):
        search_assignment(material, broken)
    trials = list((tmp_path / "search" / "trials").glob("*.json"))
    for file in trials:
        write_json(file, {**read_json(file), "seconds": 500.0})
    again, counted = make_search(material, tmp_path / "search")
    record = search_assignment(material, again)
    assert record["ended"] == f"the time is spent ({500 * len(trials)} s)"
    assert counted.measured == min(4, len(trials))  # the finalists, side by side


def test_a_goal_beyond_reach_still_ends_with_what_misses_it_least(material, tmp_path):
    search, _ = make_search(material, tmp_path / "search", least=1.5)
    record = search_assignment(material, search)
    assert record["chosen"]["passes"] is False
    assert record["chosen"]["build"]["short_by"] == min(b["short_by"] for t in record["trials"] for b in t["builds"])
    assert record["front"]


def test_the_scheme_makes_a_variant_for_its_target_alone(material, tmp_path):
    search, _ = make_search(material, tmp_path / "search")
    made = SCHEMES.get("int8-mixed")().make(replace(material, search=search), tmp_path / "mixed-bench")
    assert load_variant(made.folder) == made
    assert (made.target, made.name, made.precision) == ("bench", "mixed-bench", "int8")
    assert made.in_float == ("product1",)  # what product2 reads is float already
    assert made.facts["chosen"]["in_float"] == [GUILTY, SLOW]


def trial(*builds: Tried) -> Trial:
    return Trial(Assignment("minmax", "all"), builds, 0.0)


def test_the_front_holds_what_no_other_beats_in_both():
    fast, both, slow, beaten = (
        Tried("a", 0.7, 0.20, 0.1, 0.5),
        Tried("b", 0.8, 0.10, 0.0, 0.6),
        Tried("c", 0.9, 0.00, 0.0, 1.0),
        Tried("d", 0.8, 0.11, 0.0, 0.7),
    )
    assert [point["build"] for point in front([trial(slow, beaten), trial(both), trial(fast)])] == ["a", "b", "c"]


def test_groups_are_kinds_blocks_and_single_layers():
    names = ["n.stem", "n.blocks.0.a", "n.blocks.0.b", "n.blocks.1.a", "n.head"]
    kinds = ["Conv", "Conv", "MatMul", "Conv", "Gemm"]
    layers = [Layer(name, kind, (name,), name) for name, kind in zip(names, kinds, strict=True)]
    found = list(groups_of(layers))
    assert ("n.stem", "n.blocks.0.a", "n.blocks.1.a") in found
    assert ("n.blocks.0.a", "n.blocks.0.b") in found
    assert ("n.blocks.0.a", "n.blocks.0.b", "n.blocks.1.a") in found
    assert all((name,) in found for name in names)
    assert len(found) == len(set(found))
