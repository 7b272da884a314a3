"""The front over all targets: what no other build beats in both latency and the metric."""

from __future__ import annotations

import copy
import json
import shutil

from hypothesis import given
from hypothesis import strategies as st

from mst_edge.front import front_of, pareto, summary
from mst_edge.report.page import write_report
from mst_edge.run_folder import RunFolder

points = st.lists(st.tuples(st.integers(1, 6).map(float), st.integers(0, 6).map(float)), max_size=12)


@given(points, st.booleans())
def test_the_front_is_what_nothing_dominates(given_points, higher):
    sign = 1 if higher else -1

    def beaten(one):
        return any(
            other != one and other[0] <= one[0] and sign * other[1] >= sign * one[1] for other in set(given_points)
        )

    front = pareto(given_points, higher_is_better=higher)
    assert set(front) == {point for point in given_points if not beaten(point)}
    assert front == sorted(front)


def build(name, p90_ms, value, *, labels=True, deployable=True):
    accuracy = {"value": value} if labels else None
    drift = {"agreement": 0.5 if labels else value, "samples": 100}
    latency = {"latency": {"p90_ms": p90_ms}}
    return {"id": name, "accuracy": accuracy, "drift": drift, "measurement": latency, "deployable": deployable}


def host(*builds, higher=True):
    return {
        "target": "cpu",
        "on_host": True,
        "gate": "passed",
        "scoring": {"metric": "accuracy", "higher_is_better": higher},
        "builds": list(builds),
        "bundle": "bundles/cpu" if any(one["deployable"] for one in builds) else None,
    }


def board(**about):
    return {"target": "jetson-thor", "on_host": False, "gate": "passed", "builds": [], "found": {"builds": about}}


def measured(p90_ms, value, *, valid=True):
    check = {"metric": "accuracy", "value": value, "samples": 40}
    return {"check": check, "bench": {"valid": valid, "latency": {"p90_ms": p90_ms}}}


def names(*targets):
    return [(row["target"], row["build"]) for row in front_of(targets)]


def test_builds_of_all_targets_compete():
    here = host(build("fast", 1.0, 0.7), build("right", 4.0, 0.9), build("neither", 4.1, 0.8))
    there = board(fp16=measured(2.0, 0.85), hot=measured(0.1, 0.99, valid=False), unchecked={"build": {}})
    assert names(here, there) == [("cpu", "fast"), ("jetson-thor", "fp16"), ("cpu", "right")]
    assert names(host(build("a", 1.0, 0.1), build("b", 2.0, 0.3), higher=False)) == [("cpu", "a")]


def test_what_no_bundle_carries_has_no_place_beside_what_one_does():
    in_torch = build("torch", 0.5, 0.9, deployable=False)
    assert names(host(in_torch, build("a", 1.0, 0.8))) == [("cpu", "a")]
    assert names(host(in_torch)) == [("cpu", "torch")]


def test_a_board_that_has_not_measured_has_no_place():
    waiting = {**board(), "found": None, "gate": "not judged"}
    assert summary([waiting]) == {"targets": [waiting], "gate": "not judged", "front": []}


def test_without_labels_agreement_stands_for_the_metric():
    front = front_of([host(build("a", 1.0, 0.97, labels=False), build("b", 2.0, 0.99, labels=False), higher=False)])
    assert [(row["build"], row["metric"], row["value"]) for row in front] == [
        ("a", "agreement", 0.97),
        ("b", "agreement", 0.99),
    ]


def test_the_page_shows_the_front_of_several_targets_and_what_mlperf_and_counters_say(finished_run, tmp_path):
    run = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    result = run.result()
    assert [row["target"] for row in result["front"]] == ["cpu"] * len(result["front"]) != []
    assert "over all targets" not in run.report_file.read_text()
    other = copy.deepcopy(result["targets"][0])
    other["target"] = "another"
    for row in other["builds"]:
        row["measurement"]["latency"]["p90_ms"] /= 1000
        row["measurement"]["energy"] = [{"counter": "package-0", "mj": 1.5, "above_idle_mj": 0.5, "idle_w": 9.0}]
        row["measurement"]["single_stream"] = {
            "p90_ms": 0.123,
            "queries": 70,
            "discarded": 1,
            "seconds": 1.0,
            "problem": "70 queries, 1024 needed",
        }
        row["measurement"]["offline"] = {"samples_per_s": 1234.4, "batch": 16, "problem": ""}
    slow = {**result["targets"][0], "builds": copy.deepcopy(result["targets"][0]["builds"])}
    slow["builds"][0]["accuracy"]["value"] = 1.5  # beats all in accuracy alone
    run.result_file.write_text(json.dumps({**result, **summary([slow, other])}))
    page = write_report(run).read_text()
    assert "The front, over all targets" in page
    for said in (
        "package-0: 1.5 mJ, 0.5 above idle",
        "0.123 ms, 70 queries; invalid: 70 queries, 1024 needed",
        "1234 samples/s, batch 16",
    ):
        assert said in page
