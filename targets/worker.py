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
from targets import energy
from targets.spec import load_build
from targets.target import get_target

_WINDOW = 20  # runs that steady state is judged by
_STEADY = 0.05  # largest relative change of the window's median
_MAX_WARMUP_S = 2.0
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)  # that Offline tries
_TRY_S = 0.2
_MAX_BATCH_DIFFERENCE = 0.5  # of the outputs' deviation: as much as int8 may differ between devices


def main() -> None:
    """Serves one build until stdin closes."""
    # Whatever a runtime prints must not mix with the answers.
    answers = sys.stdout
    sys.stdout = sys.stderr
    build = load_build(Path(sys.argv[1]))
    samples = np.load(sys.argv[2], mmap_mode="r", allow_pickle=False)
    counters, _ = energy.find_counters()
    before = memory_mb()
    with get_target(build.target).load(build) as runner:
        first = np.ascontiguousarray(samples[:1])
        runner.run(first)
        facts = {
            "device": runner.device,
            "load_ms": runner.load_ms,
            "first_inference_ms": runner.last_ms,
            "model_memory_mb": memory_mb().get("now", 0.0) - before.get("now", 0.0),
        }
        _answer(answers, facts)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                _answer(answers, _serve(runner, samples, request, counters))
            except Exception:
                _answer(answers, {"error": traceback.format_exc()})


def _serve(runner: Any, samples: Any, request: dict[str, Any], counters: list[energy.Counter]) -> dict[str, Any]:
    if request["do"] == "idle":
        start = energy.read(counters)
        time.sleep(request["seconds"])
        return {"joules": energy.used(counters, start, energy.read(counters))}
    if request["do"] == "choose_batch":
        return _choose_batch(runner, samples)
    if request["do"] == "offline":
        return _offline(runner, _batch(samples, request["batch"]), request)
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
    start = energy.read(counters)
    found = _time(runner, inputs, request["runs"], request.get("seconds", 0.0), request.get("max_seconds", math.inf))
    return {**found, "joules": energy.used(counters, start, energy.read(counters))}


def _time(runner: Any, inputs: list[Any], runs: int, seconds: float, max_seconds: float) -> dict[str, Any]:
    """Times until both minima are reached, or ``max_seconds``; one run at least."""
    latencies: list[float] = []
    on_device: list[float] = []
    begin = time.perf_counter_ns()
    around = 0
    elapsed = 0.0
    while not latencies or ((len(latencies) < runs or elapsed < seconds) and elapsed < max_seconds):
        sample = inputs[len(latencies) % len(inputs)]
        before = time.perf_counter_ns()
        runner.run(sample)
        now = time.perf_counter_ns()
        around += now - before
        latencies.append(runner.last_ms)
        if runner.device_ms is not None:
            on_device.append(runner.device_ms)
        elapsed = (now - begin) / 1e9
    overhead_us = around / 1e3 / len(latencies) - 1e3 * sum(latencies) / len(latencies)
    return {"latencies_ms": latencies, "device_ms": on_device, "seconds": elapsed, "overhead_us": overhead_us}


def _batch(samples: Any, size: int) -> Any:
    """So many samples, from the first on, again where there are fewer."""
    return np.ascontiguousarray(samples[np.arange(size) % len(samples)])


def _choose_batch(runner: Any, samples: Any) -> dict[str, Any]:
    """The batch of the highest throughput that gives what samples give one by one, and why no larger one was tried."""
    largest = _batch(samples, _BATCHES[-1])
    single = np.concatenate([runner.run(largest[n : n + 1]) for n in range(len(largest))])
    spread = float(single.std()) or 1.0
    best, fastest, reason = 1, 0.0, ""
    for size in _BATCHES:
        batch = _batch(samples, size)
        try:
            difference = float(np.abs(runner.run(batch) - single[:size]).max()) / spread
        except Exception as error:  # runtimes raise classes of their own for a batch that they do not take
            reason = f"batch {size}: {' '.join(str(error).split())[:200]}"
            break
        if not difference <= _MAX_BATCH_DIFFERENCE:
            reason = f"batch {size}: outputs differ by {difference:.2g} deviations from those of single samples"
            break
        found = _offline(runner, batch, {"samples": size, "seconds": _TRY_S, "max_seconds": _TRY_S})
        if found["samples"] / found["seconds"] > fastest:
            best, fastest = size, found["samples"] / found["seconds"]
    return {"batch": best, "reason": reason}


def _offline(runner: Any, batch: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Runs the batch until both minima are reached, or ``max_seconds``; once at least."""
    begin, done, elapsed = time.perf_counter(), 0, 0.0
    wanted, seconds, most = request["samples"], request["seconds"], request["max_seconds"]
    while not done or ((done < wanted or elapsed < seconds) and elapsed < most):
        runner.run(batch)
        done += len(batch)
        elapsed = time.perf_counter() - begin
    return {"samples": done, "seconds": elapsed}


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
