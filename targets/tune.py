"""Tuning: threads and other options of a runtime that do not change what it computes, chosen by measurement."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.runtime.machine import this_cpu
from mst_edge.core.machine import physical_cores
from mst_edge.core.scoring import OutputSpec
from mst_edge.core.stats import Interval
from targets.measure import Protocol, measure, speedup
from targets.spec import Build
from targets.target import get_target

PROTOCOL = Protocol("tuning", min_runs=60, min_seconds=0.5, max_seconds=6.0, idle_seconds=0.0)
_SAMPLES = 16  # as many as are timed in turn


@dataclass(frozen=True)
class Trial:
    """One setting that was measured beside the best one before it.

    Attributes:
        options: what differs from how the build was made.
        speedup: how many times as fast at p90 as the best one before, with its 95 % interval.
        taken: it is faster beyond noise, and of its trials the fastest.
    """

    options: Mapping[str, Any]
    speedup: Interval
    taken: bool


@dataclass(frozen=True)
class Tuning:
    """What came of tuning one build.

    Attributes:
        options: what to open it with instead, on this machine; empty where nothing is faster.
        failed: settings that the runtime did not take, with its words.
        unfinished: time ran out before all was tried.
    """

    build_id: str
    options: Mapping[str, Any]
    trials: tuple[Trial, ...]
    failed: Mapping[str, str]
    seconds: float
    unfinished: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def tune(
    builds: Sequence[Build],
    samples: Path,
    output: OutputSpec,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
    protocol: Protocol = PROTOCOL,
) -> dict[str, Tuning]:
    """Tries the settings of each build's runtime, one option after the other, each from the best found so far.

    A setting is measured in turns with that best one, and taken only if it is faster beyond noise.

    Args:
        builds: the more promising first, since time may run out.
        samples: ``.npy`` file of ``(samples, *input)``.
        seconds: for all of them; a trial that has begun is finished.

    Returns:
        Build id to what was found; builds without anything to tune are left out.
    """
    deadline = time.monotonic() + seconds
    found = {}
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as scratch:
        few = Path(scratch) / "samples.npy"
        np.save(few, np.load(samples, mmap_mode="r", allow_pickle=False)[:_SAMPLES], allow_pickle=False)
        for build in builds:
            bench = _Bench(Path(scratch) / build.id, few, output, protocol)
            if bench.knobs(build, {}):
                found[build.id] = _tune(build, bench, deadline, progress)
    return found


def tuned(build: Build, tuning: Tuning) -> Build:
    """``build`` with what was found, for this machine; saved so."""
    if not tuning.options:
        return build
    changed = replace(build, tuned={"machine": this_cpu(), "options": dict(tuning.options)})
    changed.save()
    return changed


def _tune(build: Build, bench: _Bench, deadline: float, progress: Callable[[str], None]) -> Tuning:
    start = time.monotonic()
    best: dict[str, Any] = {}
    trials: list[Trial] = []
    failed: dict[str, str] = {}
    unfinished, seen = False, set()
    # Some options matter only where others were chosen: several threads, say.
    while left := [knob for knob in bench.knobs(build, best) if knob not in seen]:
        knob, values = left[0], bench.knobs(build, best)[left[0]]
        seen.add(knob)
        now = {**build.options, **best}.get(knob, values[0])
        settings = {number: {**best, knob: value} for number, value in enumerate(values) if value != now}
        if not settings:
            continue
        if time.monotonic() >= deadline:
            unfinished = True
            break
        progress(f"tuning {build.id}: {knob}")
        ratios, problems = bench.against(build, best, settings)
        failed |= problems
        faster = [number for number, ratio in ratios.items() if ratio.above_one]
        winner = max(faster, key=lambda number: ratios[number].estimate, default=None)
        trials += [Trial(settings[number], ratio, number == winner) for number, ratio in ratios.items()]
        if winner is not None:
            best = settings[winner]
    return Tuning(build.id, best, tuple(trials), failed, time.monotonic() - start, unfinished)


@dataclass
class _Bench:
    """Measures copies of a build that are opened differently."""

    place: Path
    samples: Path
    output: OutputSpec
    protocol: Protocol

    def knobs(self, build: Build, best: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """What can be tried, with what was found so far."""
        return get_target(build.target).runtime(build.runtime).knobs(physical_cores(), {**build.options, **best})

    def against(
        self, build: Build, best: Mapping[str, Any], settings: Mapping[int, Mapping[str, Any]]
    ) -> tuple[dict[int, Interval], dict[str, str]]:
        """By number of a setting, how many times as fast it is as ``best``; and why some do not run."""
        known = self._opened(build, best, "best")
        trials = {number: self._opened(build, setting, str(number)) for number, setting in settings.items()}
        try:
            found = measure([known, *trials.values()], self.samples, self.output, self.protocol)
        except RuntimeError as error:  # a runtime may not take an option here
            if len(settings) == 1:
                ((number, setting),) = settings.items()
                return {}, {str(dict(setting)): " ".join(str(error).split())[-300:]}
            ratios: dict[int, Interval] = {}
            problems: dict[str, str] = {}
            for number, setting in settings.items():
                alone = self.against(build, best, {number: setting})
                ratios |= alone[0]
                problems |= alone[1]
            return ratios, problems
        before = found[known.id][0].latency
        return {number: speedup(found[trial.id][0].latency, before) for number, trial in trials.items()}, {}

    def _opened(self, build: Build, options: Mapping[str, Any], name: str) -> Build:
        """A copy of ``build`` with other options, for a process to load."""
        folder = self.place / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(build.folder, folder)
        copy = replace(build, id=name, folder=folder, options={**build.options, **options}, tuned={})
        copy.save()
        return copy
