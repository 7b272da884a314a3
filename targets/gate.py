"""The gate: goals against measurements, a verdict per build with its reasons, and the build that wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from mst_edge.core.drift import Drift
from mst_edge.core.scoring import Scoring
from mst_edge.core.stats import Interval
from targets.measure import Measurement, speedup
from targets.spec import Build


@dataclass(frozen=True)
class AccuracyGoal:
    """Limits on the task's headline metric; ``None`` is no limit. Drops are relative to the fp32 student on the
    same samples, and positive where a build is worse, whichever way the metric goes.

    Attributes:
        min, max: of a metric that is better when higher, or when lower.
        confident: the bound of the 95 % interval must hold the limit, not only the point estimate.
    """

    min: float | None = None
    max: float | None = None
    max_relative_drop_percent: float | None = None
    max_drop_points: float | None = None
    confident: bool = False


@dataclass(frozen=True)
class DriftGoal:
    """Lower limits for samples without labels; ``None`` is no limit.

    Attributes:
        min_agreement: share of answers as the fp32 model's.
        min_correlation: of every number with the fp32 model's.
    """

    min_agreement: float | None = None
    min_correlation: float | None = None


@dataclass(frozen=True)
class LatencyGoal:
    """Upper limits in ms; ``None`` is no limit."""

    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True)
class Goals:
    """What a build must reach.

    Attributes:
        max_size_mb, max_memory_mb: of the model files, and of the process at its peak.
        min_speedup: a build must be this many times as fast at p90 as the fastest fp32 build.
        min_int8_speedup: an integer build must be this many times as fast at p90 as the best float build, and faster
            beyond noise unless this is below 1.
    """

    accuracy: AccuracyGoal = field(default_factory=AccuracyGoal)
    drift: DriftGoal = field(default_factory=DriftGoal)
    latency: LatencyGoal = field(default_factory=LatencyGoal)
    max_size_mb: float | None = None
    max_memory_mb: float | None = None
    min_speedup: float | None = None
    min_int8_speedup: float = 1.1

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Goals:
        """Goals as a manifest or a result keeps them."""
        return cls(
            **{
                **said,
                "accuracy": AccuracyGoal(**said["accuracy"]),
                "drift": DriftGoal(**said["drift"]),
                "latency": LatencyGoal(**said["latency"]),
            }
        )


@dataclass(frozen=True)
class Check:
    """One goal against one value. ``passed`` decides; ``text`` is what a person reads."""

    goal: str
    passed: bool
    text: str


@dataclass(frozen=True)
class Limit:
    """One goal, and by how much a value misses it: a share of 1, 0 or less where it is met."""

    goal: str
    short_by: float
    text: str

    @property
    def check(self) -> Check:
        """The same as yes or no."""
        return Check(self.goal, self.short_by <= 0, self.text)


@dataclass(frozen=True)
class Accuracy:
    """How right a build is on the whole test split, on its runtime.

    Attributes:
        value: of the task's headline metric.
        drop: how much worse than the fp32 student, with its 95 % interval.
        relative_drop: the same as a share of the fp32 student's value.
        label: what people call the metric.
        interval: of ``value``, 95 %.
    """

    value: float
    drop: Interval
    relative_drop: Interval
    samples: int
    label: str = "accuracy"
    interval: Interval | None = None


@dataclass(frozen=True)
class Candidate:
    """A build with everything that the gate looks at.

    Attributes:
        accuracy: None where samples have no labels.
        drift: its answers against the fp32 model's.
        parity: largest difference of logits from the model that it was made of on the samples that judge.
        parity_limit: largest one allowed for the build's precision.
        real: whether samples were recorded. On random ones no build passes.
    """

    build: Build
    measurement: Measurement
    accuracy: Accuracy | None
    drift: Drift
    parity: float
    parity_limit: float
    real: bool = True


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one build."""

    build_id: str
    passed: bool
    chosen: bool
    checks: tuple[Check, ...]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def compare_accuracy(
    answers: NDArray[Any], reference: NDArray[Any], target: NDArray[Any], scoring: Scoring
) -> Accuracy:
    """How right ``answers`` are beside ``reference`` on the same samples, all as ``scoring`` keeps them."""
    ours, theirs = (scoring.statistics(said, target) for said in (answers, reference))
    drop = scoring.drop(theirs, ours)
    return Accuracy(
        value=scoring.value(ours),
        drop=drop,
        relative_drop=drop.scaled(1 / max(scoring.value(theirs), 1e-9)),
        samples=len(target),
        label=scoring.label,
        interval=scoring.interval(ours),
    )


def halved(goals: Goals) -> Goals:
    """The same goals with half the room for what quantization may cost: for choosing among many builds on some samples
    and being judged on others."""
    accuracy, drift = goals.accuracy, goals.drift

    def half(room: float | None) -> float | None:
        return None if room is None else room / 2

    def halfway(limit: float | None) -> float | None:
        return None if limit is None else (1 + limit) / 2

    return replace(
        goals,
        accuracy=replace(
            accuracy,
            max_relative_drop_percent=half(accuracy.max_relative_drop_percent),
            max_drop_points=half(accuracy.max_drop_points),
        ),
        drift=replace(
            drift, min_agreement=halfway(drift.min_agreement), min_correlation=halfway(drift.min_correlation)
        ),
    )


def shortfall(limits: Iterable[Limit]) -> float:
    """By how much the limit that is missed most is missed, as a share; 0 where all are met."""
    return max((0.0, *(limit.short_by for limit in limits)))


def judge(candidates: Sequence[Candidate], goals: Goals) -> list[Verdict]:
    """One verdict per candidate, in their order; at most one is ``chosen``.

    The fastest build at p90 that satisfies every goal wins, and says so where others are within noise of it; an
    integer build only if it is enough faster than the fastest float build that satisfies them. If no build does,
    the one that misses the fewest goals is chosen (the more accurate, then the faster, of equals) with ``passed``
    false, so that there is always something to look at. Where there are builds that a bundle can carry, it is one of
    them.
    """
    fp32 = _fastest([c for c in candidates if c.build.precision == "fp32"])
    checks = {c.build.id: (*_checks(c, goals), *_gain_checks(c, fp32, goals)) for c in candidates}
    eligible = [c for c in candidates if c.build.deployable] or list(candidates)
    passing = [c for c in eligible if all(check.passed for check in checks[c.build.id])]
    best_float = _fastest([c for c in passing if c.build.is_float])
    too_slow = {
        c.build.id: note
        for c in passing
        if best_float is not None and (note := _too_little_gain(c, best_float, goals.min_int8_speedup))
    }
    winner = _fastest([c for c in passing if c.build.id not in too_slow])
    if winner is None and candidates:
        winner = min(eligible, key=lambda c: _badness(c, checks[c.build.id]))
    verdicts = []
    for c in candidates:
        failed = [check for check in checks[c.build.id] if not check.passed]
        if failed:
            reason = "; ".join(f"{check.goal}: {check.text}" for check in failed)
        elif c is winner:
            reason = _why_chosen(c, [other for other in passing if other.build.id not in too_slow])
        elif c not in eligible:
            reason = f"satisfies every goal, but no bundle carries what takes torch to run; {_against(c, winner)}"
        else:
            reason = too_slow.get(c.build.id) or f"satisfies every goal, {_against(c, winner)}"
        verdicts.append(Verdict(c.build.id, not failed, c is winner, checks[c.build.id], reason))
    return verdicts


def _fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The one that the fewest others beat beyond noise, of these the fastest at p90."""

    def key(one: Candidate) -> tuple[int, float]:
        beaten = sum(_speedup(other, one).above_one for other in candidates if other is not one)
        return beaten, one.measurement.latency.p90_ms

    return min(candidates, key=key, default=None)


def _speedup(ours: Candidate, theirs: Candidate) -> Interval:
    return speedup(ours.measurement.latency, theirs.measurement.latency)


def _why_chosen(winner: Candidate, eligible: Sequence[Candidate]) -> str:
    close = [c.build.id for c in eligible if c is not winner and not _speedup(winner, c).above_one]
    beside = f"; within noise of it: {', '.join(close)}" if close else ""
    return f"the fastest build that satisfies every goal{beside}"


def _badness(candidate: Candidate, checks: Sequence[Check]) -> tuple[float, ...]:
    missed = sum(not check.passed for check in checks)
    accuracy, drift = candidate.accuracy, candidate.drift
    worse = accuracy.drop.estimate if accuracy is not None else 1 - drift.agreement
    return (missed, worse, candidate.measurement.latency.p90_ms)


def _too_little_gain(candidate: Candidate, best_float: Candidate, wanted: float) -> str:
    """Why an integer build is not worth its risk; empty for a float build or one that is fast enough."""
    gain = _speedup(candidate, best_float)
    if candidate.build.is_float or (gain.estimate >= wanted and gain.low >= min(wanted, 1)):
        return ""
    asked = f"{wanted:g} x asked of an int8 build"
    if gain.estimate < wanted:
        return f"only {_times(gain)} the speed of {best_float.build.id} at p90, {asked}"
    return f"{_times(gain)} the speed of {best_float.build.id} at p90: within noise, {asked}"


def _against(candidate: Candidate, winner: Candidate | None) -> str:
    if winner is None:
        return ""
    ratio = _speedup(winner, candidate)
    return f"{_times(ratio)} the p90 of {winner.build.id}{': within noise' if ratio.low <= 1 <= ratio.high else ''}"


def _times(ratio: Interval) -> str:
    return f"{ratio.estimate:.2f} x ({ratio.low:.2f} to {ratio.high:.2f})"


def _checks(candidate: Candidate, goals: Goals) -> list[Check]:
    limits = drift_limits(candidate.drift, goals.drift)
    if candidate.accuracy is not None:
        limits += accuracy_limits(candidate.accuracy, goals.accuracy)
    checks = [_parity_check(candidate), *(limit.check for limit in limits)]
    if not candidate.real:
        checks.append(Check("samples.real", False, "calibrated and judged on random samples: not for accuracy"))
    found = candidate.measurement
    latency = {name: getattr(found.latency, name) for name in asdict(goals.latency)}
    return checks + resource_checks(latency, found.size_bytes / 1e6, found.peak_memory_mb, goals, found.problems)


def _gain_checks(candidate: Candidate, fp32: Candidate | None, goals: Goals) -> list[Check]:
    if fp32 is None:
        return gain_checks(None, "no fp32 build was measured", goals)
    gain = _speedup(candidate, fp32)
    problems = (*fp32.measurement.problems, *candidate.measurement.problems)
    return gain_checks(gain.estimate, f"{_times(gain)} the speed of {fp32.build.id} at p90", goals, problems)


def gain_checks(speedup: float | None, found: str, goals: Goals, problems: Iterable[str] = ()) -> list[Check]:
    """The limit on how many times as fast as the fastest fp32 build something is, if there is one.

    Args:
        speedup: None where it is not known, which holds no limit.
        found: the same in words.
        problems: what makes the times worthless.
    """
    if goals.min_speedup is None:
        return []
    said = f"{found}, at least {goals.min_speedup:g} x"
    invalid = [f"invalid, {problem}" for problem in dict.fromkeys(problems)]
    passed = speedup is not None and speedup >= goals.min_speedup and not invalid
    return [Check("min_speedup", passed, "; ".join((said, *invalid)))]


def _parity_check(candidate: Candidate) -> Check:
    return Check(
        "parity",
        candidate.parity <= candidate.parity_limit,
        f"outputs differ by at most {candidate.parity:.2g} from the original, {candidate.parity_limit:.2g} allowed",
    )


def resource_checks(
    latency: Mapping[str, float],
    size_mb: float,
    memory_mb: float | None,
    goals: Goals,
    problems: Sequence[str] = (),
) -> list[Check]:
    """Limits on time, disk and memory, one check each.

    Args:
        latency: in ms, by the names of ``LatencyGoal``.
        memory_mb: of the process at its peak; None where nobody could say, which holds no limit.
        problems: what makes the times worthless.
    """
    checks = []
    for name, limit in asdict(goals.latency).items():
        if limit is not None:
            said = f"{latency[name]:.3g} ms, at most {limit:g} ms"
            text = "; ".join((said, *(f"invalid, {problem}" for problem in problems)))
            checks.append(Check(f"latency.{name}", latency[name] <= limit and not problems, text))
    for name, value, limit in (
        ("max_size_mb", size_mb, goals.max_size_mb),
        ("max_memory_mb", memory_mb, goals.max_memory_mb),
    ):
        if limit is not None:
            found = "unknown" if value is None else f"{value:.3g} MB"
            checks.append(Check(name, value is not None and value <= limit, f"{found}, at most {limit:g} MB"))
    return checks


def drift_limits(drift: Drift, goal: DriftGoal) -> list[Limit]:
    """A drift beside every limit on it."""
    limits = []
    if goal.min_agreement is not None:
        text = f"{drift.agreement:.2%} of answers as the fp32 model's, at least {goal.min_agreement:.2%}"
        limits.append(Limit("drift.min_agreement", goal.min_agreement - drift.agreement, text))
    if goal.min_correlation is not None:
        least = drift.least_correlation
        found = "undefined" if least is None else f"{least:.5f}"
        text = f"correlation with the fp32 model {found}, at least {goal.min_correlation:g}"
        short_by = 1.0 if least is None else goal.min_correlation - least
        limits.append(Limit("drift.min_correlation", short_by, text))
    return limits


def accuracy_limits(accuracy: Accuracy, goal: AccuracyGoal) -> list[Limit]:
    """An accuracy beside every limit on it."""
    limits = []
    sure = " (bound of the 95 % interval)" if goal.confident else ""
    found = f"{accuracy.label} {accuracy.value:.2%}"
    if goal.min is not None:
        limits.append(Limit("accuracy.min", goal.min - accuracy.value, f"{found}, at least {goal.min:.2%}"))
    if goal.max is not None:
        limits.append(Limit("accuracy.max", accuracy.value - goal.max, f"{found}, at most {goal.max:.2%}"))
    if goal.max_relative_drop_percent is not None:
        drop = accuracy.relative_drop.high if goal.confident else accuracy.relative_drop.estimate
        limit = goal.max_relative_drop_percent
        text = f"relative drop {100 * drop:.2f} %{sure}, at most {limit:g} %"
        limits.append(Limit("accuracy.max_relative_drop_percent", drop - limit / 100, text))
    if goal.max_drop_points is not None:
        drop = accuracy.drop.high if goal.confident else accuracy.drop.estimate
        text = f"drop {100 * drop:.2f} points{sure}, at most {goal.max_drop_points:g}"
        limits.append(Limit("accuracy.max_drop_points", drop - goal.max_drop_points / 100, text))
    return limits
