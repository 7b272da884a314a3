"""From nothing to the first answer: how long a fresh process takes with a bundle, step by step, and its memory.

    python -m benchmarks.startup BUNDLE... [--repeats 15] [--out FILE]

Per bundle and step: wall-clock time and CPU time of the step, and the memory that the process then holds (resident).
The model's files are in the page cache: the first start after power-on also reads them from disk. Beside it, whole
commands, and what importing torch alone would take. Everything in turns, each time in a process of its own. Times are
medians; the sums have their 10 % and 90 % quantiles beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mst_edge.core.files import write_json
from mst_edge.core.machine import this_machine

ROOT = Path(__file__).resolve().parent.parent
STEPS = {
    "python": "Python itself",
    "numpy": "import numpy",
    "apps.runtime": "import apps.runtime",
    "verified": "open, every sha256 compared",
    "engine": "import the inference runtime",
    "loaded": "load the model",
    "first": "first answer",
    "second": "second answer",
}
# These grow with the model; the others are what the runtime itself costs.
OF_THE_MODEL = ("loaded", "first", "second")
_INSIDE = """
import sys, time
stamps = [("python", time.monotonic_ns(), time.process_time_ns(), 0.0)]
def done(step):
    now, cpu = time.monotonic_ns(), time.process_time_ns()
    with open("/proc/self/status") as status:
        rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    stamps.append((step, now, cpu, rss / 1024))
import numpy
done("numpy")
from apps.runtime import Bundle
done("apps.runtime")
bundle = Bundle.open(sys.argv[1])
done("verified")
import importlib
from apps.runtime.engines import ENGINES
ours = [ENGINES[build.runtime] for build in bundle.manifest.builds]
importlib.import_module(next(engine.package for engine in ours if engine.installed()))
done("engine")
bundle.load()
done("loaded")
sample = numpy.load(bundle.folder / bundle.manifest.reference_inputs, mmap_mode="r")[0]
sample = numpy.array(sample)
bundle.answer(sample)
done("first")
bundle.answer(sample)
done("second")
import json
print(json.dumps({"name": bundle.manifest.name, "build": bundle.build.id, "stamps": stamps}))
"""


@dataclass(frozen=True)
class Step:
    """Medians over the repeats: of this step alone in ms, and the process's memory after it in MB (0: not taken)."""

    name: str
    wall_ms: float
    cpu_ms: float
    memory_mb: float


@dataclass(frozen=True)
class Start:
    """A bundle's start-up.

    Attributes:
        runtime_ms: all steps but the model's own, median of the sums, with the 10 % and 90 % quantiles.
        total_ms: to the first answer.
        commands: wall-clock time of whole processes by command, median in ms.
    """

    name: str
    build: str
    bundle_mb: float
    steps: tuple[Step, ...]
    runtime_ms: tuple[float, float, float]
    total_ms: tuple[float, float, float]
    commands: dict[str, float]


def measure(bundles: Sequence[Path], repeats: int, others: Mapping[str, Sequence[str]]) -> list[Start]:
    """Start-ups of each bundle ``repeats`` times, in turns with its commands and with ``others``."""
    stamps: dict[Path, list[dict[str, Any]]] = {bundle: [] for bundle in bundles}
    walls: dict[Path, dict[str, list[float]]] = {bundle: {} for bundle in bundles}
    for _ in range(repeats):
        for bundle in bundles:
            stamps[bundle].append(_start(bundle))
            for name, command in {**_commands(bundle), **others}.items():
                walls[bundle].setdefault(name, []).append(_wall_ms(command))
    return [_summary(bundle, stamps[bundle], walls[bundle]) for bundle in bundles]


def _start(bundle: Path) -> dict[str, Any]:
    started = time.monotonic_ns()
    done = subprocess.run(
        [sys.executable, "-c", _INSIDE, str(bundle)], capture_output=True, text=True, check=True, env=_environment()
    )
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**said, "started": started}


def _commands(bundle: Path) -> dict[str, Sequence[str]]:
    example = next(iter(sorted((bundle / "examples").glob("*"))), None)
    if example is None:
        return {}
    return {
        "run.py FILE": [sys.executable, str(bundle / "run.py"), str(example)],
        "mst-edge predict BUNDLE FILE": [sys.executable, "-m", "mst_edge", "predict", str(bundle), str(example)],
    }


def _wall_ms(command: Sequence[str]) -> float:
    start = time.perf_counter_ns()
    subprocess.run(command, capture_output=True, check=True, env=_environment())
    return (time.perf_counter_ns() - start) / 1e6


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _summary(bundle: Path, starts: list[dict[str, Any]], walls: dict[str, list[float]]) -> Start:
    wall: dict[str, list[float]] = {name: [] for name in STEPS}
    cpu: dict[str, list[float]] = {name: [] for name in STEPS}
    memory: dict[str, list[float]] = {name: [] for name in STEPS}
    for start in starts:
        before, before_cpu = start["started"], 0
        for name, now, spent, held in start["stamps"]:
            wall[name].append((now - before) / 1e6)
            cpu[name].append((spent - before_cpu) / 1e6)
            memory[name].append(held)
            before, before_cpu = now, spent
    median = statistics.median
    steps = tuple(Step(name, median(wall[name]), median(cpu[name]), median(memory[name])) for name in STEPS)
    sums = [{name: wall[name][k] for name in STEPS} for k in range(len(starts))]
    own = [sum(ms for name, ms in said.items() if name not in OF_THE_MODEL) for said in sums]
    total = [sum(ms for name, ms in said.items() if name != "second") for said in sums]
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 1e6
    commands = {name: median(times) for name, times in walls.items()}
    return Start(starts[0]["name"], starts[0]["build"], size, steps, _spread(own), _spread(total), commands)


def _spread(values: list[float]) -> tuple[float, float, float]:
    """Median, 10 % and 90 % quantile."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return statistics.median(ordered), ordered[tenth], ordered[-1 - tenth]


def table(start: Start) -> str:
    """A bundle's start-up in Markdown."""
    rows = [f"**{start.name}**: `{start.build}`, bundle of {start.bundle_mb:.1f} MB", ""]
    rows += ["| step | ms | CPU ms | memory then, MB |", "|---|---:|---:|---:|"]
    for step in start.steps:
        held = f"{step.memory_mb:.0f}" if step.memory_mb else ""
        rows.append(f"| {STEPS[step.name]} | {step.wall_ms:.1f} | {step.cpu_ms:.1f} | {held} |")
    for what, (median, low, high) in (
        ("start-up without the model", start.runtime_ms),
        ("to the first answer", start.total_ms),
    ):
        rows.append(f"| **{what}** | **{median:.0f}** ({low:.0f} to {high:.0f}) | | |")
    whole = (f"`{name}` {ms:.0f} ms ({ms / start.total_ms[0]:.1f} x)" for name, ms in start.commands.items())
    return "\n".join([*rows, "", f"Whole processes, beside the first answer: {', '.join(whole)}."])


def main(arguments: Sequence[str] | None = None) -> list[Start]:
    """Measures and prints; returns what it measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write all numbers there (JSON)")
    chosen = parser.parse_args(arguments)
    others = {"import torch": [sys.executable, "-c", "import torch"]}
    starts = measure([bundle.resolve() for bundle in chosen.bundles], chosen.repeats, others)
    here = this_machine()
    print(f"{here.cpu}, {here.cores} cores, Python {sys.version.split()[0]}, {chosen.repeats} starts each\n")
    print("\n\n".join(table(start) for start in starts))
    if chosen.out is not None:
        write_json(chosen.out, {"machine": here.to_dict(), "starts": [asdict(start) for start in starts]})
    return starts


if __name__ == "__main__":
    main()
