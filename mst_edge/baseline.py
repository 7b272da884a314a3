"""``mst-edge check --against``: a run or bundle beside an earlier bundle. What got worse, and what is noise."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime import Bundle
from mst_edge.core.errors import UserError
from mst_edge.core.scoring import OutputSpec, Predictions, Scoring, scoring_of
from mst_edge.core.stats import Interval, unpaired_difference
from mst_edge.run_folder import RunFolder
from mst_edge.stages.profile import bundle_builds
from mst_edge.stages.subject import output_of
from targets import measure
from targets.spec import Build
from targets.target import get_target

_PERCENTILES = (50, 90)


@dataclass(frozen=True)
class Compared:
    """One quantity of the new bundle beside the baseline's.

    Attributes:
        regression: worse beyond noise; None where it could not be compared, and ``text`` says why.
        interval: of how much worse, 95 %: in points of the metric, or times as slow.
    """

    what: str
    regression: bool | None
    text: str
    interval: Interval | None = None


@dataclass(frozen=True)
class _Side:
    """The new bundle or the baseline; ``build`` is the preferred one that runs here, None where none does."""

    bundle: Bundle
    build: Build | None
    samples: Path
    reason: str

    @property
    def output(self) -> OutputSpec:
        return output_of(self.bundle.manifest)

    @property
    def expected(self) -> dict[str, Any]:
        """What the manifest says of the build, or of the bundle's first where none runs here."""
        entries = {entry.id: entry for entry in self.bundle.manifest.builds}
        first = self.bundle.manifest.builds[0]
        return (first if self.build is None else entries[self.build.id.partition(" ")[2]]).expected


def compare_with(
    path: Path,
    baseline: Path,
    protocol: measure.Protocol,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """What got worse from ``baseline`` to ``path``.

    Both bundles' preferred builds that run here are measured side by side. Of a run, both answer its test samples, if
    they read the same input, so that accuracy is compared sample by sample; otherwise by what the bundles say of
    themselves.

    Args:
        path: a run's folder, or a bundle.

    Returns:
        ``comparisons`` (as ``Compared``), ``regressions`` (their names), and which builds they are of.

    Raises:
        UserError: the two are for other targets, or do other tasks.
    """
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="mst-edge-")))
        old_bundle = stack.enter_context(Bundle.open(baseline))
        target = old_bundle.manifest.target
        run = RunFolder(path) if (path / "result.json").is_file() else None
        new_bundle = stack.enter_context(Bundle.open(path if run is None else _bundle_of(run, target)))
        _require_comparable(new_bundle, old_bundle, baseline)
        new = _side("new", new_bundle, target, place)
        old = _side("baseline", old_bundle, target, place)
        compared = _compare(new, old, run, protocol, progress)
        return {
            "path": str(baseline),
            "target": target,
            "builds": {"new": _id(new), "baseline": _id(old)},
            "comparisons": [asdict(one) for one in compared],
            "regressions": [one.what for one in compared if one.regression],
        }


def _compare(
    new: _Side, old: _Side, run: RunFolder | None, protocol: measure.Protocol, progress: Callable[[str], None]
) -> list[Compared]:
    if new.build is None or old.build is None:
        reason = "; ".join(side.reason for side in (new, old) if side.build is None)
        return [_by_manifest(new, old), Compared("latency", None, f"not compared: {reason}")]
    truth = None if run is None else _truth(run)
    same_input = _reads(new) == _reads(old)
    builds = [new.build, old.build]
    if run is not None and truth is not None and same_input:
        measured = measure.measure(builds, run.evaluation / "inputs.npy", new.output, protocol, progress)
        said = [measured[build.id][1] for build in builds]
        accuracy = _by_sample(scoring_of(new.output), said[0], said[1], truth)
    else:
        own = {side.build.id: side.samples for side in (new, old) if side.build is not None}
        measured = measure.measure(builds, new.samples, new.output, protocol, progress, own=own)
        accuracy = _by_manifest(new, old)
    return [accuracy, *_latencies(*(measured[build.id][0] for build in builds))]


def _side(name: str, bundle: Bundle, target_name: str, place: Path) -> _Side:
    target = get_target(target_name)
    (place / name).mkdir()
    builds, samples = bundle_builds(bundle, target_name, place / name)
    if not target.spec.on_host:
        return _Side(bundle, None, samples, f"{name} bundle: {target_name} is not this machine")
    reasons = []
    for build in builds:
        probe = target.runtime(build.runtime).probe()
        if probe.available:
            return _Side(bundle, replace(build, id=f"{name} {build.id}"), samples, "")
        reasons.append(f"{name} {build.id}: {probe.reason}")
    return _Side(bundle, None, samples, "; ".join(reasons))


def _bundle_of(run: RunFolder, target: str) -> Path:
    known = [entry["target"] for entry in run.result()["targets"]]
    if target not in known:
        raise UserError(f"the run has no target {target}, which the baseline is for", where=run.path)
    return run.bundle(target)


def _require_comparable(new: Bundle, old: Bundle, baseline: Path) -> None:
    ours, theirs = new.manifest, old.manifest
    for what in ("target", "task", "labels"):
        if getattr(ours, what) != getattr(theirs, what):
            said = f"{what} {getattr(theirs, what)}, not {getattr(ours, what)}"
            raise UserError(f"cannot be compared: its {said}", where=baseline)


def _truth(run: RunFolder) -> NDArray[Any] | None:
    file = run.evaluation / "target.npy"
    return np.load(file, mmap_mode="r", allow_pickle=False) if file.is_file() else None


def _reads(side: _Side) -> tuple[Any, ...]:
    said = side.bundle.manifest.input
    tokenizer = None if said.tokenizer is None else side.bundle.manifest.files[said.tokenizer]
    return said.kind, said.shape, said.dtype, said.sample_rate_hz, tokenizer


def _by_sample(scoring: Scoring, new: Predictions, old: Predictions, truth: NDArray[Any]) -> Compared:
    ours, theirs = (scoring.statistics(said.answers, truth) for said in (new, old))
    worse = scoring.drop(theirs, ours)
    values = f"{scoring.label} {scoring.value(ours):.2%}, was {scoring.value(theirs):.2%}"
    return _accuracy(worse, f"{values} on the same {len(truth)} samples")


def _by_manifest(new: _Side, old: _Side) -> Compared:
    """By what the bundles say of themselves: on samples of their own, which may be the same or not."""
    scoring = scoring_of(new.output)
    said = [side.expected.get("accuracy_interval") for side in (new, old)]
    ours, theirs = (None if one is None else Interval(**one) for one in said)
    if ours is None or theirs is None:
        return Compared("accuracy", None, "not compared: a bundle does not state its accuracy with an interval")
    pair = (theirs, ours) if scoring.higher_is_better else (ours, theirs)
    values = f"{scoring.label} {ours.estimate:.2%}, was {theirs.estimate:.2%}"
    return _accuracy(unpaired_difference(*pair), f"{values}, each on its own test samples")


def _accuracy(worse: Interval, found: str) -> Compared:
    points = worse.scaled(100)
    drop = f"drop {points.estimate:.2f} points ({points.low:.2f} to {points.high:.2f})"
    return Compared("accuracy", worse.low > 0, f"{found}: {drop}, {_verdict(worse, 0)}", worse)


def _latencies(new: measure.Measurement, old: measure.Measurement) -> list[Compared]:
    if new.problems:  # the machine's, so of both
        return [Compared("latency", None, f"not compared: {'; '.join(new.problems)}")]
    found = []
    for rank in _PERCENTILES:
        slower = measure.speedup(old.latency, new.latency, rank)
        ours, theirs = (getattr(one.latency, f"p{rank}_ms") for one in (new, old))
        ratio = f"{slower.estimate:.2f} x ({slower.low:.2f} to {slower.high:.2f})"
        text = f"{ours:.3f} ms, was {theirs:.3f} ms on this machine: {ratio}, {_verdict(slower, 1)}"
        found.append(Compared(f"latency.p{rank}_ms", slower.above_one, text, slower))
    return found


def _verdict(worse: Interval, none: float) -> str:
    """``none`` is what the interval would be about if nothing had changed."""
    return "worse" if worse.low > none else "better" if worse.high < none else "within noise"


def _id(side: _Side) -> str | None:
    return None if side.build is None else side.build.id.partition(" ")[2]
