"""The gate: goals, verdicts, and which build wins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mst_edge.core.drift import Drift
from mst_edge.core.scoring import OutputSpec, scoring_of
from mst_edge.core.stats import Interval
from targets.conditions import Conditions
from targets.gate import (
    Accuracy,
    AccuracyGoal,
    Candidate,
    DriftGoal,
    Goals,
    LatencyGoal,
    accuracy_limits,
    compare_accuracy,
    drift_limits,
    halved,
    judge,
    shortfall,
)
from targets.measure import Latency, Measurement
from targets.spec import Build


def candidate(
    name: str,
    p90_ms: float,
    accuracy: float = 0.80,
    *,
    drop: float = 0.0,
    parity: float = 0.0,
    size_mb=1.0,
    high=None,
    noise=0.0,
):
    """A build; ``noise`` is what its rounds differ by, as a share, of any two neighbours one up and one down."""
    precision = name.rsplit("-", maxsplit=1)[-1]
    latency = Latency(p90_ms * 0.9, p90_ms, p90_ms * 1.2, p90_ms, 100, 20, 1, "quick")
    rounds = tuple(p90_ms * (1 + noise * (-1) ** number) for number in range(10))
    latency = replace(latency, rounds_p50_ms=tuple(0.9 * value for value in rounds), rounds_p90_ms=rounds)
    interval = Interval(drop, drop - 0.01, drop + 0.01 if high is None else high)
    return Candidate(
        Build(name, "cpu", name.split("-", maxsplit=1)[0], precision, precision, Path("x"), "m"),
        Measurement(latency, 1, 1, 1, 100, int(size_mb * 1e6)),
        Accuracy(accuracy, interval, interval.scaled(1 / 0.8), 1000),
        Drift(1.0, 0.0, 0.0, (), 1000),
        parity,
        1.0,
    )


def chosen(candidates, goals=Goals()):  # noqa: B008
    verdicts = judge(candidates, goals)
    assert sum(v.chosen for v in verdicts) == 1
    return next(v for v in verdicts if v.chosen)


DROP_1 = Goals(accuracy=AccuracyGoal(max_relative_drop_percent=1.0))


def test_the_fastest_build_that_satisfies_every_goal_wins():
    verdict = chosen([candidate("ort-fp32", 2.0), candidate("ov-fp32", 1.5), candidate("ort-int8", 1.0)], DROP_1)
    assert (verdict.build_id, verdict.passed) == ("ort-int8", True)
    assert "fastest" in verdict.reason


def test_an_inaccurate_build_does_not_win_however_fast():
    slow, fast = candidate("ort-fp32", 2.0), candidate("ort-int8", 0.5, 0.70, drop=0.1)
    verdicts = judge([slow, fast], DROP_1)
    assert verdicts[0].chosen
    assert not verdicts[1].passed
    assert "relative drop 12.50 %, at most 1 %" in verdicts[1].reason


@pytest.mark.parametrize(("int8_ms", "winner"), [(0.95, "ort-fp32"), (0.90, "ort-int8")])
def test_int8_must_be_worth_it(int8_ms, winner):
    assert chosen([candidate("ort-fp32", 1.0), candidate("ort-int8", int8_ms)]).build_id == winner


def test_int8_that_is_not_worth_it_says_so():
    verdict = judge([candidate("ort-fp32", 1.0), candidate("ort-int8", 0.95)], Goals())[1]
    assert verdict.passed
    said = "only 1.05 x (1.02 to 1.08) the speed of ort-fp32 at p90, 1.1 x asked of an int8 build"
    assert verdict.reason == said


def test_int8_whose_gain_is_within_noise_is_not_worth_it():
    noisy = candidate("ort-int8", 0.85, noise=0.25)
    verdicts = judge([candidate("ort-fp32", 1.0), noisy], Goals())
    assert verdicts[0].chosen
    assert "at p90: within noise, 1.1 x asked of an int8 build" in verdicts[1].reason
    assert chosen([candidate("ort-fp32", 1.0), noisy], Goals(min_int8_speedup=0.5)).build_id == "ort-int8"


def test_the_fastest_says_who_is_within_noise_of_it():
    found = [candidate("ort-fp32", 1.0), candidate("ov-fp32", 1.05, noise=0.2), candidate("ov-bf16", 2.0, noise=0.2)]
    first, close, slow = judge(found, Goals())
    assert first.reason == "the fastest build that satisfies every goal; within noise of it: ov-fp32"
    assert close.reason.endswith("the p90 of ort-fp32: within noise")
    assert slow.reason.endswith("the p90 of ort-fp32")
    alone, _ = judge([candidate("ort-fp32", 1.0), candidate("ov-fp32", 1.05)], Goals())
    assert alone.reason == "the fastest build that satisfies every goal"


def test_a_build_that_another_beats_in_every_round_does_not_win_by_one_good_tail():
    lucky = candidate("ort-fp32", 1.0)
    steady = candidate("ov-fp32", 0.9)
    lucky = replace(
        lucky, measurement=replace(lucky.measurement, latency=replace(lucky.measurement.latency, p90_ms=0.8))
    )
    assert chosen([lucky, steady]).build_id == "ov-fp32"


def test_int8_is_compared_with_the_best_float_build_not_with_its_own_runtimes():
    found = [candidate("ov-fp32", 2.0), candidate("ov-int8", 1.0), candidate("ort-fp32", 0.99)]
    assert chosen(found).build_id == "ort-fp32"


def test_int8_wins_without_a_margin_where_no_float_build_meets_the_goals():
    goals = Goals(latency=LatencyGoal(p90_ms=0.97))
    assert chosen([candidate("ort-fp32", 1.0), candidate("ort-int8", 0.96)], goals).build_id == "ort-int8"


def test_the_margin_is_a_setting():
    found = [candidate("ort-fp32", 1.0), candidate("ort-int8", 0.95)]
    assert chosen(found, Goals(min_int8_speedup=1.0)).build_id == "ort-int8"


def test_when_nothing_passes_the_one_that_misses_least_is_chosen_and_marked():
    goals = Goals(accuracy=AccuracyGoal(min=0.9), latency=LatencyGoal(p90_ms=0.1))
    verdict = chosen([candidate("ort-fp32", 2.0, 0.95), candidate("ort-int8", 1.0, 0.6)], goals)
    assert (verdict.build_id, verdict.passed) == ("ort-fp32", False)
    assert "latency.p90_ms: 2 ms, at most 0.1 ms" in verdict.reason


@pytest.mark.parametrize(
    ("goals", "fails"),
    [
        (Goals(accuracy=AccuracyGoal(min=0.81)), "accuracy.min"),
        (Goals(accuracy=AccuracyGoal(max_drop_points=0.4)), "accuracy.max_drop_points"),
        (Goals(accuracy=AccuracyGoal(max_relative_drop_percent=0.6)), "accuracy.max_relative_drop_percent"),
        (Goals(latency=LatencyGoal(p50_ms=0.8)), "latency.p50_ms"),
        (Goals(latency=LatencyGoal(p99_ms=1.1)), "latency.p99_ms"),
        (Goals(max_size_mb=0.5), "max_size_mb"),
        (Goals(max_memory_mb=50), "max_memory_mb"),
        (Goals(min_speedup=1.01), "min_speedup"),
    ],
)
def test_every_goal_can_fail_and_names_itself(goals, fails):
    (verdict,) = judge([candidate("ort-fp32", 1.0, drop=0.005)], goals)
    assert [check.goal for check in verdict.checks if not check.passed] == [fails]
    assert verdict.reason.startswith(fails)


def test_a_gain_is_asked_for_over_the_fastest_fp32_build_measured():
    builds = [
        candidate("ort-fp32", 3.0),
        candidate("ov-fp32", 2.0),
        candidate("ov-bf16", 1.5),
        candidate("ort-int8", 1),
    ]
    verdicts = {verdict.build_id: verdict for verdict in judge(builds, Goals(min_speedup=1.5))}
    assert [name for name, verdict in verdicts.items() if verdict.passed] == ["ort-int8"]
    assert verdicts["ov-bf16"].reason.startswith("min_speedup: 1.33 x")
    assert verdicts["ov-bf16"].reason.endswith("the speed of ov-fp32 at p90, at least 1.5 x")


def test_a_gain_over_nothing_measured_is_none():
    (verdict,) = judge([candidate("ov-bf16", 1.0)], Goals(min_speedup=1.0))
    assert verdict.reason == "min_speedup: no fp32 build was measured, at least 1 x"


def test_the_point_estimate_decides_unless_confidence_is_asked_for():
    found = [candidate("ort-fp32", 1.0, drop=0.005, high=0.02)]
    loose = Goals(accuracy=AccuracyGoal(max_drop_points=1.0))
    sure = Goals(accuracy=AccuracyGoal(max_drop_points=1.0, confident=True))
    assert chosen(found, loose).passed
    assert not chosen(found, sure).passed
    assert "bound of the 95 % interval" in chosen(found, sure).reason


def test_times_of_a_throttled_machine_meet_no_goal():
    fine = candidate("ort-fp32", 1.0)
    problem = "throttled: the CPU slowed down for heat 4 times"
    hot = Conditions((), None, None, None, 4, None, None, None, problems=(problem,))
    throttled = replace(fine, measurement=replace(fine.measurement, conditions=hot))
    goals = Goals(latency=LatencyGoal(p90_ms=5.0))
    assert judge([fine], goals)[0].passed
    assert judge([throttled], Goals())[0].passed
    (verdict,) = judge([throttled], goals)
    assert verdict.reason == f"latency.p90_ms: 1 ms, at most 5 ms; invalid, {problem}"
    (verdict,) = judge([throttled], Goals(min_speedup=0.5))
    assert verdict.reason.endswith(f"at least 0.5 x; invalid, {problem}")


def test_a_build_that_computes_something_else_fails_parity():
    (verdict,) = judge([candidate("ort-fp32", 1.0, parity=3.0)], Goals())
    assert [check.goal for check in verdict.checks if not check.passed] == ["parity"]


def test_without_labels_drift_decides_and_random_samples_decide_nothing():
    def unlabelled(name, p90_ms, agreement, correlation=()):
        drift = Drift(agreement, None, None, correlation, 100)
        return replace(candidate(name, p90_ms), accuracy=None, drift=drift)

    goals = Goals(drift=DriftGoal(min_agreement=0.99))
    slow, fast = unlabelled("ort-fp32", 2.0, 1.0), unlabelled("ort-int8", 1.0, 0.98)
    assert chosen([slow, fast], goals).build_id == "ort-fp32"
    assert "98.00% of answers as the fp32 model's, at least 99.00%" in judge([fast], goals)[0].reason
    numbers = Goals(drift=DriftGoal(min_correlation=0.999))
    for correlation, passed in (((0.9999, 0.9995), True), ((0.9999, 0.99), False), ((None,), False)):
        (verdict,) = judge([unlabelled("ort-int8", 1.0, 1.0, correlation)], numbers)
        assert verdict.passed is passed
    verdict = chosen([replace(slow, real=False), replace(fast, real=False)], goals)
    assert (verdict.build_id, verdict.passed) == ("ort-fp32", False)
    assert "random samples: not for accuracy" in verdict.reason


def test_no_candidates_give_no_verdicts():
    assert judge([], Goals()) == []


def test_accuracy_is_compared_sample_by_sample():
    target = np.array([0, 1, 0, 1])
    reference = np.eye(2)[[0, 1, 1, 1]]
    build = np.eye(2)[[0, 0, 1, 1]]
    found = compare_accuracy(build, reference, target, scoring_of(OutputSpec("classification", ("a", "b"))))
    assert found.value == 0.5
    assert found.drop.estimate == pytest.approx(0.25)
    assert found.relative_drop.estimate == pytest.approx(1 / 3)


def test_a_search_asks_for_half_the_loss_that_the_gate_allows():
    goals = Goals(
        accuracy=AccuracyGoal(min=0.7, max_relative_drop_percent=1.0, max_drop_points=3.0),
        drift=DriftGoal(min_agreement=0.98),
    )
    strict = halved(goals)
    assert strict.accuracy == AccuracyGoal(min=0.7, max_relative_drop_percent=0.5, max_drop_points=1.5)
    assert strict.drift == DriftGoal(min_agreement=0.99)


def test_a_shortfall_is_how_far_the_limit_missed_most_is_away():
    accuracy = Accuracy(0.69, Interval(0.02, 0.01, 0.03), Interval(0.028, 0.014, 0.042), 100)
    assert shortfall(accuracy_limits(accuracy, AccuracyGoal(min=0.7))) == pytest.approx(0.01)
    assert shortfall(accuracy_limits(accuracy, AccuracyGoal(min=0.7, max_drop_points=0.5))) == pytest.approx(0.015)
    assert shortfall(accuracy_limits(accuracy, AccuracyGoal(max_relative_drop_percent=1.0))) == pytest.approx(0.018)
    assert shortfall(
        accuracy_limits(accuracy, AccuracyGoal(max_relative_drop_percent=1.0, confident=True))
    ) == pytest.approx(0.032)
    assert shortfall(accuracy_limits(accuracy, AccuracyGoal(min=0.5, max_drop_points=4.0))) == 0


def test_a_drift_falls_short_by_what_agreement_or_correlation_lack():
    drift = Drift(0.97, None, None, (0.999, 0.95), 100)
    assert shortfall(drift_limits(drift, DriftGoal(min_agreement=0.99))) == pytest.approx(0.02)
    assert shortfall(drift_limits(drift, DriftGoal(min_correlation=0.96))) == pytest.approx(0.01)
    assert shortfall(drift_limits(drift, DriftGoal(min_agreement=0.9, min_correlation=0.9))) == 0


def in_torch(one):
    return replace(one, build=replace(one.build, deployable=False))


def test_what_no_bundle_carries_is_judged_but_never_chosen():
    """Neither because it is the fastest, nor as the float build that an int8 build is held to."""
    candidates = [in_torch(candidate("et-fp32", 0.5)), candidate("ort-fp32", 2.0), candidate("ort-int8", 1.0)]
    verdicts = judge(candidates, DROP_1)
    assert [(v.build_id, v.passed, v.chosen) for v in verdicts] == [
        ("et-fp32", True, False),
        ("ort-fp32", True, False),
        ("ort-int8", True, True),
    ]
    assert verdicts[0].reason == (
        "satisfies every goal, but no bundle carries what takes torch to run; 0.50 x (0.49 to 0.52) the p90 of ort-int8"
    )
    missed = [in_torch(candidate("et-fp32", 0.5)), candidate("ort-fp32", 2.0, drop=0.1)]
    assert chosen(missed, DROP_1).build_id == "ort-fp32"
    assert not chosen(missed, DROP_1).passed


def test_where_everything_takes_torch_one_of_it_is_chosen():
    assert chosen([in_torch(candidate("et-fp32", 2.0)), in_torch(candidate("ai-fp32", 1.0))]).build_id == "ai-fp32"
