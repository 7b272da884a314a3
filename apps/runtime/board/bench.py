"""``bench.py``: latency of every engine, energy per inference, and what clocks and heat did meanwhile."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle, memory_mb
from ..errors import BundleError
from ..manifest import BuildEntry, Manifest, inside
from ..tensorrt_engine import PLAN
from .dialect import time_command
from .power import Watch
from .results import cannot_go_on, part, read_result, write_result
from .shapes import free_shapes
from .tools import ask, find_trtexec, read_board

_WARM_UP_S, _IDLE_S = 2.0, 8.0
_LEAST_RUNS = 100


def main(folder: Path, arguments: list[str] | None = None) -> int:
    """Measures every build that was built and checked; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="bench.py", description="Latency and energy of the engines on this board.")
    parser.add_argument("--seconds", type=float, default=20.0, help="per build; tegrastats needs 10 or more")
    parser.add_argument("--idle-seconds", type=float, default=_IDLE_S, help="how long to watch the board at rest")
    parser.add_argument(
        "--resume", action="store_true", help="leave alone what is valid, of this power mode and clocks"
    )
    chosen = parser.parse_args(arguments)
    try:
        with Bundle.open(folder) as bundle:
            return _bench_all(bundle, chosen.seconds, chosen.idle_seconds, resume=chosen.resume)
    except (BundleError, OSError) as error:
        return cannot_go_on(error, folder)


def _bench_all(bundle: Bundle, seconds: float, idle_seconds: float, *, resume: bool) -> int:
    result = read_result(bundle.folder, bundle.manifest)
    checks = {e.id: part(result, e.id).get("check", {}) for e in bundle.manifest.builds}
    checked = [e for e in bundle.manifest.builds if checks[e.id].get("passed")]
    if not checked and all(checks.values()):
        print("no build passed its check: nothing is measured")
        return 1
    if not checked:
        raise BundleError("no build was checked", where=bundle.folder, fix="sh build.sh && python3 check.py")
    result["board"] = read_board()
    clocks = result["board"]["clocks"]["state"]
    if clocks != "locked":
        print(f"note: clocks are {clocks}; `sudo jetson_clocks` locks them for numbers that repeat", file=sys.stderr)
    under = {"power_mode": result["board"]["power_mode"], "clocks": clocks}
    for entry in checked:
        before = part(result, entry.id).get("bench", {})
        if resume and before.get("valid") and before["under"] == under:
            print(f"{entry.id}: measured already")
            continue
        found = {**_bench(bundle, entry, seconds, idle_seconds), "under": under}
        part(result, entry.id)["bench"] = found
        print(f"{entry.id}: {_words(found)}")
        write_result(bundle.folder, result)
    result["chosen"] = choose(bundle.manifest, result["builds"])
    write_result(bundle.folder, result)
    print(f"chosen: {result['chosen']}")
    return 0


def _bench(bundle: Bundle, entry: BuildEntry, seconds: float, idle_seconds: float) -> dict[str, Any]:
    start = time.perf_counter()
    bundle.use(entry.id)
    samples = np.load(inside(bundle.folder, bundle.manifest.reference_inputs), allow_pickle=False)
    bundle.outputs(samples[:1])
    first_ms = 1e3 * (time.perf_counter() - start)
    _run_for(bundle, samples, _WARM_UP_S if seconds > _WARM_UP_S else seconds, 1)
    with Watch() as watch:
        idle = _moments(lambda: time.sleep(idle_seconds))
        busy_start = time.perf_counter()
        times_ms = _run_for(bundle, samples, seconds, _LEAST_RUNS)
        busy = (busy_start, time.perf_counter())
    return {
        "latency": {**percentiles(times_ms), "what": "batch 1, host arrays in and out, copies included"},
        "gpu_compute": _gpu_compute(bundle, entry, seconds),
        "load_and_first_ms": first_ms,
        "peak_memory_mb": memory_mb().get("peak"),
        "energy": energy(watch, idle, busy, len(times_ms)),
        "hottest_c": watch.hottest_c,
        "throttled": watch.alerts,
        "watch_problem": watch.problem,
        "valid": not watch.alerts and not watch.problem,
    }


def _moments(do: Any) -> tuple[float, float]:
    start = time.perf_counter()
    do()
    return start, time.perf_counter()


def _run_for(bundle: Bundle, samples: NDArray[Any], seconds: float, least: int) -> list[float]:
    """Times in ms of inferences one after another, for ``seconds`` and ``least`` runs at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        sample = samples[len(times) % len(samples)][None]
        start = time.perf_counter_ns()
        bundle.outputs(sample)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and mean in ms, and how many runs they are of."""
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, [50, 90, 99]))
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "mean_ms": float(np.mean(times_ms)), "runs": len(times_ms)}


def energy(watch: Watch, idle: tuple[float, float], busy: tuple[float, float], runs: int) -> dict[str, Any] | None:
    """Energy per inference of the whole board, and what of it is above the board at rest; None without power readings.

    Args:
        idle, busy: start and end of resting and running, in seconds of ``time.perf_counter``.
    """
    rest, work = watch.energy_mj(*idle), watch.energy_mj(*busy)
    if rest is None or work is None:
        return None
    idle_mw, seconds = rest / (idle[1] - idle[0]), busy[1] - busy[0]
    return {
        "total_mj": work / runs,
        "above_idle_mj": (work - idle_mw * seconds) / runs,
        "busy_mw": work / seconds,
        "idle_mw": idle_mw,
        "rails": list(watch.rails),
    }


def _gpu_compute(bundle: Bundle, entry: BuildEntry, seconds: float) -> dict[str, Any]:
    """Time on the GPU alone, by trtexec; or why there is none."""
    plan = inside(bundle.folder, entry.model).parent / PLAN
    with tempfile.TemporaryDirectory() as place:
        times = Path(place) / "times.json"
        command = time_command(find_trtexec(), plan, times, free_shapes(bundle, entry), max(1, round(seconds / 4)))
        said = ask(command, seconds=120 + seconds)
        try:
            return dict(percentiles(parse_times(times.read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            return {"problem": f"trtexec {said.ended} ({error}): {said.last_words}"}


def parse_times(text: str) -> list[float]:
    """Compute times in ms from what ``trtexec --exportTimes`` wrote.

    Raises:
        ValueError: something else.
    """
    rows = json.loads(text)
    try:
        times = [float(row["endComputeMs"]) - float(row["startComputeMs"]) for row in rows]
    except (TypeError, KeyError) as error:
        raise ValueError(f"no compute times: {error}") from None
    if not times:
        raise ValueError("no runs")
    return times


def choose(manifest: Manifest, builds: dict[str, Any]) -> str | None:
    """The fastest measured build at p90 that was checked; an int8 build only if it is enough faster than the fastest
    of the others. None where no measurement is valid."""
    latency = {
        entry.id: builds[entry.id]["bench"]["latency"]["p90_ms"]
        for entry in manifest.builds
        if builds.get(entry.id, {}).get("bench", {}).get("valid")
    }
    if not latency:
        return None
    precision = {entry.id: entry.precision for entry in manifest.builds}
    fastest = min(latency, key=lambda name: latency[name])
    floats = [name for name in latency if precision[name] != "int8"]
    if precision[fastest] != "int8" or not floats:
        return fastest
    best = min(floats, key=lambda name: latency[name])
    wanted = float(manifest.gate["goals"]["min_int8_speedup"])
    return fastest if latency[best] >= wanted * latency[fastest] else best


def _words(found: dict[str, Any]) -> str:
    latency, used = found["latency"], found["energy"]
    said = f"p50 {latency['p50_ms']:.3f} ms, p90 {latency['p90_ms']:.3f} ms, p99 {latency['p99_ms']:.3f} ms"
    if "p50_ms" in found["gpu_compute"]:
        said += f" (GPU alone p50 {found['gpu_compute']['p50_ms']:.3f} ms)"
    if used is not None:
        said += f"; {used['total_mj']:.3f} mJ per inference, {used['above_idle_mj']:.3f} above rest"
    if not found["valid"]:
        said += f"; NOT VALID: {found['watch_problem'] or 'throttled: ' + ', '.join(found['throttled'])}"
    return said
