"""What a board found of its bundle, brought home as ``result.json`` and ``outputs/``: judged here, by the same gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime import Bundle
from apps.runtime.board.bench import choose
from apps.runtime.board.check import FP32, OUTPUTS, TARGET
from apps.runtime.board.results import RESULT
from apps.runtime.manifest import Manifest, inside
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_file
from mst_edge.core.scoring import Predictions, scoring_of
from mst_edge.found import read_found, read_outputs
from mst_edge.stages.subject import NOT_JUDGED, output_of
from targets.gate import (
    Check,
    Goals,
    Limit,
    accuracy_limits,
    compare_accuracy,
    drift_limits,
    gain_checks,
    resource_checks,
)


def judge_board(bundle: Bundle) -> dict[str, Any]:
    """The verdict on a bundle that was built on a board, as ``mst-edge check`` prints it.

    Every build that the board checked is judged on the outputs that it gave there; of those that reach every goal, the
    choice is as on the board: the fastest at p90, an int8 build only where it gains enough.

    Raises:
        UserError: outputs did not come home, or are not those that the board wrote.
    """
    manifest = bundle.manifest
    entry: dict[str, Any] = {"target": manifest.target, "build": None, "gate": NOT_JUDGED, "goals": []}
    if not (bundle.folder / RESULT).is_file():
        text = f"no {RESULT} yet: build, check and measure it on the board, see README.md"
        return {**entry, "goals": [asdict(Check("board", False, text))]}
    found = read_found(bundle.folder, manifest)["builds"]
    fp32 = _fastest_fp32_ms(manifest, found)
    checks = {build.id: list(_checks(bundle, build.id, found.get(build.id, {}), fp32)) for build in manifest.builds}
    passing = {name: found[name] for name, said in checks.items() if all(check.passed for check in said)}
    winner = choose(manifest, passing)
    gate = "failed" if winner is None else "passed" if manifest.gate["real"] else NOT_JUDGED
    shown = winner or min(checks, key=lambda name: sum(not check.passed for check in checks[name]))
    return {**entry, "build": shown, "gate": gate, "goals": [asdict(check) for check in checks[shown]]}


def _fastest_fp32_ms(manifest: Manifest, found: Mapping[str, Any]) -> float | None:
    """p90 in ms; None where the board measured no fp32 build."""
    measured = (found.get(build.id, {}).get("bench") for build in manifest.builds if build.precision == "fp32")
    return min((float(bench["latency"]["p90_ms"]) for bench in measured if bench), default=None)


def _checks(bundle: Bundle, build_id: str, found: Mapping[str, Any], fp32_p90_ms: float | None) -> Iterator[Check]:
    """Every goal for one build, as far as the board got with it."""
    for stage in ("build", "check", "bench"):
        if stage not in found:
            yield Check(f"board.{stage}", False, "was not done on the board")
            return
        problem = found[stage].get("problem", "")
        if problem:
            yield Check(f"board.{stage}", False, problem)
            return
    check, bench = found["check"], found["bench"]
    goals = Goals.of(bundle.manifest.gate["goals"])
    off = f"outputs differ by at most {check['difference']:.2g} from the reference, {check['tolerance']:.2g} allowed"
    yield Check("board.numerics", check["difference"] <= check["tolerance"], off)
    yield from (limit.check for limit in _answers(bundle, build_id, check, goals))
    watched = bench["watch_problem"] or ", ".join(bench["throttled"]) or "no throttling seen"
    yield Check("board.measurement", bench["valid"], watched)
    yield from resource_checks(bench["latency"], found["build"]["size_bytes"] / 1e6, bench["peak_memory_mb"], goals)
    if fp32_p90_ms is None:
        yield from gain_checks(None, "no fp32 build was measured", goals)
    else:
        gain = fp32_p90_ms / bench["latency"]["p90_ms"]
        yield from gain_checks(gain, f"{gain:.2f} x the speed of the fastest fp32 build at p90", goals)


def _answers(bundle: Bundle, build_id: str, check: Mapping[str, Any], goals: Goals) -> Iterator[Limit]:
    """Accuracy and drift beside the fp32 model, on the samples that the bundle carries."""
    manifest = bundle.manifest
    file = inside(bundle.folder, f"{OUTPUTS}/{build_id}.npy")
    if not file.is_file():
        raise UserError("did not come home", where=file, fix=f"copy {OUTPUTS}/ from the board, with {RESULT}")
    if sha256_file(file) != check["outputs_sha256"]:
        raise UserError(f"is not what {RESULT} is about", where=file, fix="copy both from the board again")
    scoring = scoring_of(output_of(manifest))
    theirs = np.load(inside(bundle.folder, FP32), allow_pickle=False)
    said, reference = (_predictions(array, manifest) for array in (read_outputs(file, theirs.shape), theirs))
    yield from drift_limits(scoring.drift(said, reference), goals.drift)
    if TARGET in manifest.files:
        target = np.load(inside(bundle.folder, TARGET), allow_pickle=False)
        accuracy = compare_accuracy(said.answers, reference.answers, target, scoring)
        yield from accuracy_limits(accuracy, goals.accuracy)


def _predictions(outputs: NDArray[np.float32], manifest: Manifest) -> Predictions:
    return Predictions(scoring_of(output_of(manifest)).answers(outputs), outputs)
