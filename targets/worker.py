"""The process that loads one build and measures it: JSON requests on stdin, JSON answers on stdout.

Imports numpy and the build's runtime only, so that its memory is that of a deployed process.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from apps.runtime.bundle import memory_mb
from mst_edge.core.scoring import OutputSpec, collect, scoring_of
from targets.spec import load_build
from targets.target import get_target

_WINDOW = 20  # runs that steady state is judged by
_STEADY = 0.05  # largest relative change of the window's median
_MAX_WARMUP_S = 2.0


def main() -> None:
    """Serves one build until stdin closes."""
    # Whatever a runtime prints must not mix with the answers.
    answers = sys.stdout
    sys.stdout = sys.stderr
    build = load_build(Path(sys.argv[1]))
    samples = np.load(sys.argv[2], mmap_mode="r", allow_pickle=False)
    before = memory_mb()
    with get_target(build.target).load(build) as runner:
        first = np.ascontiguousarray(samples[:1])
        runner.run(first)
        facts = {
            "load_ms": runner.load_ms,
            "first_inference_ms": runner.last_ms,
            "model_memory_mb": memory_mb().get("now", 0.0) - before.get("now", 0.0),
        }
        _answer(answers, facts)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                _answer(answers, _serve(runner, samples, request))
            except Exception:
                _answer(answers, {"error": traceback.format_exc()})


def _serve(runner: Any, samples: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "predict":
        outputs = (runner.run(np.ascontiguousarray(samples[i : i + 1])) for i in range(len(samples)))
        said = collect(outputs, scoring_of(OutputSpec.from_dict(request["output"])))
        np.save(request["answers"], said.answers, allow_pickle=False)
        np.save(request["outputs"], said.outputs, allow_pickle=False)
        return {}
    inputs = [np.ascontiguousarray(samples[i : i + 1]) for i in range(min(len(samples), 16))]
    if request["do"] == "warm_up":
        # Before latencies are kept: they take memory too.
        return {"runs": _warm_up(runner, inputs), "peak_memory_mb": memory_mb().get("peak", 0.0)}
    return _time(runner, inputs, request["runs"], request.get("seconds", 0.0), request.get("max_seconds", math.inf))


def _time(runner: Any, inputs: list[Any], runs: int, seconds: float, max_seconds: float) -> dict[str, Any]:
    """Times until both minima are reached, or ``max_seconds``; one run at least."""
    latencies: list[float] = []
    begin = time.perf_counter()
    elapsed = 0.0
    while not latencies or ((len(latencies) < runs or elapsed < seconds) and elapsed < max_seconds):
        runner.run(inputs[len(latencies) % len(inputs)])
        latencies.append(runner.last_ms)
        elapsed = time.perf_counter() - begin
    return {"latencies_ms": latencies, "seconds": elapsed}


def _warm_up(runner: Any, inputs: list[Any]) -> int:
    """Runs until the median of a window no longer changes, or two seconds; returns the number of runs."""
    deadline = time.perf_counter() + _MAX_WARMUP_S
    medians: list[float] = []
    while time.perf_counter() < deadline:
        window = []
        for run in range(_WINDOW):
            runner.run(inputs[run % len(inputs)])
            window.append(runner.last_ms)
        medians.append(float(np.median(window)))
        if len(medians) >= 3 and max(medians[-3:]) - min(medians[-3:]) <= _STEADY * medians[-1]:
            break
    return len(medians) * _WINDOW


def _answer(stream: Any, record: dict[str, Any]) -> None:
    stream.write(json.dumps(record) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
