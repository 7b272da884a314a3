"""int8 where it pays, float where it must: which layers are which is searched for, measured on the target."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mst_edge.core.files import atomic_path, read_json, write_json
from quantize.assignment import SCOPES, Assignable, Scope
from quantize.calibration import Calibration
from quantize.choice import best_calibrator, by_calibrator, closeness_db
from quantize.layers import Layer
from quantize.ranges import Calibrator
from quantize.schemes.base import Material
from quantize.sensitivity import find_sensitivity

# A change of precision that is not this much faster may be the machine's mood.
_WORTH = 0.97
_FINALISTS, _AT_ONCE = 4, 3
BEST, RECORD = "best.onnx", "search.json"


@dataclass(frozen=True)
class Assignment:
    """One way to quantize.

    Attributes:
        in_float: names of layers, sorted.
    """

    calibrator: Calibrator
    scope: Scope
    in_float: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What its files are called."""
        said = "\n".join((self.calibrator, self.scope, *self.in_float))
        return hashlib.sha256(said.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Tried:
    """One build of an assignment, on the target.

    Attributes:
        build: runtime and precision.
        value: of the task's headline metric on the samples of the search.
        loss: how much worse than the float network's; positive is worse, whichever way the metric goes.
        short_by: how far its accuracy misses the goal; 0 where it is met.
        ratio: p50 latency over that of the reference build, measured in turns with it.
    """

    build: str
    value: float
    loss: float
    short_by: float
    ratio: float


@dataclass(frozen=True)
class Trial:
    """What was found out about an assignment."""

    assignment: Assignment
    builds: tuple[Tried, ...]
    seconds: float

    @property
    def passes(self) -> bool:
        """Whether a build of it meets the accuracy goal."""
        return any(not build.short_by for build in self.builds)

    @property
    def best(self) -> Tried:
        """The fastest build that meets the accuracy goal; where none does, the one that misses it least."""
        return min(self.builds, key=_rank)


def _rank(build: Tried) -> tuple[float, float]:
    return (build.short_by, build.ratio)


@dataclass(frozen=True)
class Search:
    """What a search needs from who knows the target.

    Attributes:
        measure: tries models (the ONNX files of assignments) side by side; per model one entry per build of it.
        samples: real ones, neither of training nor of test, that accuracy is judged on.
        folder: where trials are kept; a search that was interrupted goes on with what it finds there.
        most_trials, most_seconds: what ends it, after the first trial. Time spent before an interruption counts.
        target: whose name its result bears.
    """

    measure: Callable[[Sequence[Path]], list[list[Tried]]]
    samples: Calibration
    folder: Path
    most_trials: int
    most_seconds: float
    target: str
    progress: Callable[[str], None] = field(default=lambda _: None)


class OutOfBudgetError(Exception):
    """No trials or no time are left."""


def search_assignment(material: Material, search: Search) -> dict[str, Any]:
    """Finds the fastest assignment that meets the accuracy goal, and keeps its model as ``best.onnx`` in ``folder``.

    First the calibrator whose int8 network is closest to the float one. Then as few of the most sensitive layers in
    float as meet the goal: doubled until they do, then halved. From there single layers, and groups of one kind, go to
    float or back to int8 as long as that is measured to be faster and the goal holds. At the end the fastest few are
    measured once more, side by side: the luckiest of many trials is not the fastest.

    There is always a result: where nothing meets the goal, what misses it least.

    Returns:
        The record that is also kept as ``search.json``: trials, their front, what was chosen.
    """
    desk = _Desk(material, search)
    done = ""
    try:
        start = _meet_goal(desk)
        _go_faster(desk, start)
    except OutOfBudgetError as budget:
        done = str(budget)
    return desk.finish(done or "no change that was tried is faster")


class _Desk:
    """Trials on disk, each made once."""

    def __init__(self, material: Material, search: Search) -> None:
        self._material, self._search = material, search
        self._trials = search.folder / "trials"
        self._trials.mkdir(parents=True, exist_ok=True)
        self.trials: dict[str, Trial] = {}
        self._best_kept = ""

    @cached_property
    def _by_calibrator(self) -> dict[Calibrator, Assignable]:
        return by_calibrator(self._material)

    @cached_property
    def closeness_db(self) -> dict[Calibrator, float]:
        """SQNR of the network's output in int8, by calibrator."""
        return closeness_db(self._by_calibrator, self._material.source.input.name, self._search.samples.inputs)

    @property
    def calibrator(self) -> Calibrator:
        """The one that fits best; the recipe's own where it is as good."""
        return best_calibrator(self.closeness_db)

    @cached_property
    def ranked(self) -> list[str]:
        """Names of the layers, the most sensitive first."""
        found = find_sensitivity(
            self._by_calibrator[self.calibrator], self._material.source.input.name, self._search.samples.inputs
        )
        return [row.name for row in found.layers]

    @property
    def layers(self) -> Sequence[Layer]:
        """In the order in which they run."""
        return self._by_calibrator[self.calibrator].layers

    def assign(self, scope: Scope, in_float: Iterable[str]) -> Assignment:
        return Assignment(self.calibrator, scope, tuple(sorted(in_float)))

    def try_(self, *assignments: Assignment) -> list[Trial]:
        """Trials of assignments; those not made before are measured side by side.

        Raises:
            OutOfBudgetError: before a trial that would exceed it.
        """
        new = [one for one in assignments if self._recall(one) is None]
        if new:
            self._require_budget(len(new))
            start = time.perf_counter()
            found = self._measure(new)
            seconds = (time.perf_counter() - start) / len(new)
            for one, builds in zip(new, found, strict=True):
                self._keep(Trial(one, tuple(builds), seconds))
        self._keep_best()
        return [self.trials[one.key] for one in assignments]

    def finish(self, reason: str) -> dict[str, Any]:
        """Measures the best once more side by side, keeps the winner and the record."""
        finalists = sorted(self.trials.values(), key=lambda trial: _rank(trial.best))[:_FINALISTS]
        again = self._measure([trial.assignment for trial in finalists])
        final = [replace(trial, builds=tuple(builds)) for trial, builds in zip(finalists, again, strict=True)]
        winner = min(final, key=lambda trial: _rank(trial.best))
        self.trials |= {trial.assignment.key: trial for trial in final}
        self._keep_model(winner.assignment)
        record = {
            "target": self._search.target,
            "ended": reason,
            "calibrators_db": self.closeness_db,
            "layers": len(self.layers),
            "seconds": sum(trial.seconds for trial in self.trials.values()),
            "trials": [asdict(trial) for trial in self.trials.values()],
            "front": front(self.trials.values()),
            "chosen": {**asdict(winner.assignment), "build": asdict(winner.best), "passes": winner.passes},
        }
        write_json(self._search.folder / RECORD, record)
        kept: dict[str, Any] = read_json(self._search.folder / RECORD)
        return kept

    def _require_budget(self, count: int) -> None:
        if not self.trials:
            return
        spent = sum(trial.seconds for trial in self.trials.values())
        if len(self.trials) + count > self._search.most_trials:
            raise OutOfBudgetError(f"the trials are spent ({len(self.trials)})")
        if spent >= self._search.most_seconds:
            raise OutOfBudgetError(f"the time is spent ({spent:.0f} s)")

    def _recall(self, one: Assignment) -> Trial | None:
        file = self._file(one)
        if one.key not in self.trials and file.is_file():
            said = read_json(file)
            builds = tuple(Tried(**build) for build in said["builds"])
            self.trials[one.key] = Trial(one, builds, said["seconds"])
        return self.trials.get(one.key)

    def _keep(self, trial: Trial) -> None:
        self.trials[trial.assignment.key] = trial
        write_json(self._file(trial.assignment), asdict(trial))
        count, best = len(trial.assignment.in_float), trial.best
        verdict = "meets the goal" if trial.passes else "misses the goal"
        self._search.progress(
            f"trial {len(self.trials)}: {count} layers in float, {best.build} {best.ratio:.2f} x, {verdict}"
        )

    def _keep_best(self) -> None:
        best = min(self.trials.values(), key=lambda trial: _rank(trial.best)).assignment
        if best.key != self._best_kept:
            self._keep_model(best)

    def _keep_model(self, one: Assignment) -> None:
        with atomic_path(self._search.folder / BEST) as temporary:
            self._write(one, temporary)
        self._best_kept = one.key

    def _file(self, one: Assignment) -> Path:
        return self._trials / f"{one.key}.json"

    def _measure(self, assignments: Sequence[Assignment]) -> list[list[Tried]]:
        with tempfile.TemporaryDirectory() as folder:
            models = [Path(folder) / f"{one.key}.onnx" for one in assignments]
            for one, model in zip(assignments, models, strict=True):
                self._write(one, model)
            return self._search.measure(models)

    def _write(self, one: Assignment, path: Path) -> None:
        replace(self._by_calibrator[one.calibrator], scope=one.scope).write(path, one.in_float)


def _meet_goal(desk: _Desk) -> Trial:
    """As few of the most sensitive layers in float as meet the goal."""
    best = min(desk.try_(*(desk.assign(scope, ()) for scope in SCOPES)), key=lambda trial: _rank(trial.best))
    scope, ranked = best.assignment.scope, desk.ranked
    if best.passes:
        return best

    def with_float(count: int) -> Trial:
        return desk.try_(desk.assign(scope, ranked[:count]))[0]

    missed, met = 0, 1
    while not (found := with_float(met)).passes and met < len(ranked):
        missed, met = met, min(2 * met, len(ranked))
    while found.passes and met - missed > 1:
        middle = (missed + met) // 2
        trial = with_float(middle)
        if trial.passes:
            found, met = trial, middle
        else:
            missed = middle
    return found


def _go_faster(desk: _Desk, start: Trial) -> None:
    """Changes the precision of groups of layers as long as that pays."""
    groups, current, since = list(groups_of(desk.layers)), start, 0
    while since < len(groups):
        for number in range(0, len(groups), _AT_ONCE):
            some = groups[number : number + _AT_ONCE]
            changed = [desk.assign(current.assignment.scope, _toggled(current.assignment, group)) for group in some]
            best = min(desk.try_(*changed), key=lambda trial: _rank(trial.best))
            if _is_better(best, current):
                current, since = best, 0
            else:
                since += len(some)
            if since >= len(groups):
                return


def _is_better(one: Trial, other: Trial) -> bool:
    if one.best.short_by or other.best.short_by:
        return one.best.short_by < other.best.short_by
    return one.best.ratio < _WORTH * other.best.ratio


def _toggled(current: Assignment, group: Collection[str]) -> set[str]:
    """What is in float after a change: a group that is, goes to int8; any other to float."""
    before = set(current.in_float)
    return before - set(group) if before >= set(group) else before | set(group)


def groups_of(layers: Sequence[Layer]) -> Iterator[tuple[str, ...]]:
    """Names of layers that may change together: of one kind, of one block, and one by one; no group twice."""
    by_kind: dict[str, list[str]] = {}
    by_block: dict[str, list[str]] = {}
    for layer in layers:
        by_kind.setdefault(layer.op, []).append(layer.name)
        parts = layer.name.split(".")
        for depth in range(2, len(parts)):
            by_block.setdefault(".".join(parts[:depth]), []).append(layer.name)
    singles = [[layer.name] for layer in layers]
    seen: set[tuple[str, ...]] = set()
    for names in (*by_kind.values(), *by_block.values(), *singles):
        group = tuple(names)
        if group not in seen and len(group) < max(2, len(layers)):
            seen.add(group)
            yield group


def front(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """Builds that no other beats in both latency and accuracy, the fastest first."""
    points = [(build, trial.assignment) for trial in trials for build in trial.builds]
    kept: list[dict[str, Any]] = []
    least = float("inf")
    for build, assignment in sorted(points, key=lambda point: (point[0].ratio, point[0].loss)):
        if build.loss < least:
            least = build.loss
            kept.append({**asdict(build), "in_float": list(assignment.in_float), "scope": assignment.scope})
    return kept
