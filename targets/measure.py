"""Latency, memory and predictions of builds, each in its own process, all of them interleaved."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.scoring import OutputSpec, Predictions
from mst_edge.core.stats import Interval, paired_ratio, percentiles
from targets import mlperf
from targets.conditions import Conditions, Watch
from targets.energy import Energy, find_counters, per_inference
from targets.gpu_watch import GpuWatch
from targets.spec import Build

# So many that one stray round widens no interval of ``paired_ratio``: of its 78 averages that round is in 12, and 13 on
# either side lie outside the interval.
ROUNDS = 12
# Of a latency of microseconds, where it shows most, processes of one build were seen to differ by up to 2.5 %.
PROCESS_SHARE = 0.03
# Above these the machine is too busy for small differences to mean anything.
_NOISY_TAIL, _NOISY_ROUNDS = 1.5, 0.15


@dataclass(frozen=True)
class Protocol:
    """How long to measure.

    Attributes:
        min_runs, min_seconds: both are reached for every build.
        max_seconds: stops a slow build before ``min_runs``, after one run per round at the soonest.
        idle_seconds: how long idle power is measured, where there is a counter of energy; 0: no energy is measured.
        offline_samples: above 0 the MLPerf scenarios are measured, for ``min_seconds`` each.
    """

    name: str = "quick"
    min_runs: int = 100
    min_seconds: float = 3.0
    max_seconds: float = 60.0
    idle_seconds: float = 1.0
    offline_samples: int = 0


QUICK = Protocol()
# A build too slow for 1,024 queries in twice the time is judged by early stopping, as the rules have it.
MLPERF = Protocol(
    "mlperf",
    mlperf.MIN_QUERIES,
    mlperf.MIN_SECONDS,
    2 * mlperf.MIN_SECONDS,
    idle_seconds=10.0,
    offline_samples=mlperf.MIN_SAMPLES,
)


@dataclass(frozen=True)
class Latency:
    """Latency of one inference in ms: batch 1, host arrays in and out, preprocessing inside the graph.

    Attributes:
        rounds_p50_ms, rounds_p90_ms: of each round; builds that were measured together have the same rounds.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    runs: int
    warmup_runs: int
    threads: int
    protocol: str
    noise: str = ""
    rounds_p50_ms: tuple[float, ...] = ()
    rounds_p90_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class DeviceTime:
    """Time of one inference on the device alone, in ms, by the device's own clock: copies and calls not included."""

    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Measurement:
    """What was measured of one build, in its own process.

    Attributes:
        runner_overhead_us: what our runner's checks add to the runtime's own call, of which ``latency`` is; mean.
        energy: of one inference, by counter.
        single_stream, offline: the MLPerf scenarios, where the protocol has them.
        conditions: what the machine did meanwhile.
        device: None where the runtime does not tell.
    """

    latency: Latency
    load_ms: float
    first_inference_ms: float
    model_memory_mb: float
    peak_memory_mb: float
    size_bytes: int
    runner_overhead_us: float = 0.0
    energy: tuple[Energy, ...] = ()
    single_stream: mlperf.SingleStream | None = None
    offline: mlperf.Offline | None = None
    conditions: Conditions | None = None
    device: DeviceTime | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why its times are invalid; empty if they are valid."""
        return () if self.conditions is None else self.conditions.problems

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def speedup(ours: Latency, theirs: Latency, percentile: int = 90) -> Interval:
    """How many times as fast ``ours`` is at p50 or p90, with its 95 % interval; both from one ``measure``.

    Rounds tell what varies inside a process. By how its memory happens to lie, a whole process is faster or slower than
    another of the same build (Mytkowicz et al., ASPLOS 2009): the interval is wider by that share on either side.
    """
    key = f"rounds_p{percentile}_ms"
    found = paired_ratio(getattr(theirs, key), getattr(ours, key))
    return Interval(found.estimate, found.low / (1 + PROCESS_SHARE), found.high * (1 + PROCESS_SHARE))


class Worker:
    """A process that has loaded one build. Use it as a context manager."""

    def __init__(self, build: Build, samples: Path) -> None:
        self.build = build
        self.facts: dict[str, Any] = {}
        self._command = [sys.executable, "-m", "targets.worker", str(build.folder), str(samples)]
        self._stack = ExitStack()

    def __enter__(self) -> Worker:
        with ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
            stack.callback(_end, self._process)
            self.facts = self._read()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends one request and returns its answer.

        Raises:
            RuntimeError: the process failed or died; carries what it printed.
        """
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise RuntimeError(f"the process of build {self.build.id} failed: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        return f"exit code {code}\n{self._errors.read().decode(errors='replace')[-4000:]}"


def _end(process: subprocess.Popen[str]) -> None:
    """Closes the process's pipes, which ends it; kills it where that does not help."""
    assert process.stdin
    assert process.stdout
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def measure(
    builds: Sequence[Build],
    samples: Path,
    output: OutputSpec,
    protocol: Protocol = QUICK,
    progress: Callable[[str], None] = lambda _: None,
    *,
    own: Mapping[str, Path] = MappingProxyType({}),
) -> dict[str, tuple[Measurement, Predictions]]:
    """Measures builds side by side: rounds alternate between them, so that drift hits all alike, and go forth and
    back, so that a machine that slows down steadily favours none.

    Args:
        samples: ``.npy`` file of ``(samples, *input)`` real inputs; all are predicted, some are timed.
        output: what the builds' one output means.
        own: by build id, samples instead, for builds that read something else.

    Returns:
        Build id to its measurement and what it said of all samples, at batch 1.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mst-edge-")))
        workers = [stack.enter_context(Worker(build, own.get(build.id, samples))) for build in builds]
        said = {}
        for worker in workers:
            progress(f"accuracy of {worker.build.id}")
            said[worker.build.id] = _predict(worker, output, scratch)
        watch = Watch(gpu=GpuWatch() if any(worker.facts["device"] == "GPU" for worker in workers) else None)
        timings = _interleave(workers, protocol, watch, progress)
        conditions = watch.conditions(tuple(find_counters()[1]))
        return {
            worker.build.id: (
                _measurement(worker, timings[worker.build.id], protocol, conditions),
                said[worker.build.id],
            )
            for worker in workers
        }


def _predict(worker: Worker, output: OutputSpec, scratch: Path) -> Predictions:
    answers, outputs = scratch / "answers.npy", scratch / "outputs.npy"
    worker.ask(do="predict", output=asdict(output), answers=str(answers), outputs=str(outputs))
    return Predictions(*(np.load(file, allow_pickle=False) for file in (answers, outputs)))


@dataclass
class _Timing:
    """What the rounds of one build gave; ``joules`` by counter, ``offline_*`` of the batch that was chosen."""

    warmup_runs: int
    peak_memory_mb: float
    idle_w: dict[str, float]
    rounds: list[NDArray[np.float64]] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    overheads_us: list[float] = field(default_factory=list)
    seconds: float = 0.0
    joules: dict[str, float] = field(default_factory=dict)
    batch: int = 0
    larger_batch: str = ""
    offline_samples: int = 0
    offline_seconds: float = 0.0

    def add(self, answer: Mapping[str, Any]) -> None:
        """One round."""
        self.rounds.append(np.array(answer["latencies_ms"]))
        self.device_ms += answer["device_ms"]
        self.overheads_us.append(answer["overhead_us"])
        self.seconds += answer["seconds"]
        self.joules = {name: self.joules.get(name, 0.0) + value for name, value in answer["joules"].items()}

    def add_offline(self, answer: Mapping[str, Any]) -> None:
        """One part of the scenario Offline."""
        self.offline_samples += answer["samples"]
        self.offline_seconds += answer["seconds"]


def _interleave(
    workers: list[Worker], protocol: Protocol, watch: Watch, progress: Callable[[str], None]
) -> dict[str, _Timing]:
    idle_w = _idle_watts(workers[0], protocol.idle_seconds) if workers else {}
    timings = {}
    for worker in workers:
        warm = worker.ask(do="warm_up")
        timings[worker.build.id] = _Timing(warm["runs"], warm["peak_memory_mb"], idle_w)
    limits = {"seconds": protocol.min_seconds / ROUNDS, "max_seconds": protocol.max_seconds / ROUNDS}
    for worker in _in_turn(workers, watch, progress, "latency"):
        # The first runs after the others had the cores are not counted.
        worker.ask(do="time", runs=3)
        timings[worker.build.id].add(worker.ask(do="time", runs=math.ceil(protocol.min_runs / ROUNDS), **limits))
    if protocol.offline_samples:
        for worker in workers:
            progress(f"batch for throughput of {worker.build.id}")
            found, timing = worker.ask(do="choose_batch"), timings[worker.build.id]
            timing.batch, timing.larger_batch = found["batch"], found["reason"]
        samples = math.ceil(protocol.offline_samples / ROUNDS)
        for worker in _in_turn(workers, watch, progress, "throughput"):
            timing = timings[worker.build.id]
            timing.add_offline(worker.ask(do="offline", batch=timing.batch, samples=samples, **limits))
    return timings


def _in_turn(workers: list[Worker], watch: Watch, progress: Callable[[str], None], what: str) -> Iterator[Worker]:
    """Every worker once a round; rounds go forth and back."""
    for number in range(ROUNDS):
        progress(f"{what}, round {number + 1} of {ROUNDS}")
        watch.look()
        yield from workers if number % 2 == 0 else reversed(workers)


def _idle_watts(worker: Worker, seconds: float) -> dict[str, float]:
    """Power of an idle machine by counter of energy; no time passes where there is none."""
    if not seconds or not find_counters()[0]:
        return {}
    return {name: joules / seconds for name, joules in worker.ask(do="idle", seconds=seconds)["joules"].items()}


def _measurement(worker: Worker, timing: _Timing, protocol: Protocol, conditions: Conditions) -> Measurement:
    latencies = np.concatenate(timing.rounds)
    p50, p90, p99 = percentiles(latencies, (50, 90, 99))
    rounds_p50, rounds_p90 = zip(*(percentiles(round_, (50, 90)) for round_ in timing.rounds), strict=True)
    single_stream = offline = None
    if protocol.offline_samples:
        seconds = protocol.min_seconds
        single_stream = mlperf.single_stream(latencies, timing.seconds, min_seconds=seconds)
        said = timing.batch, timing.larger_batch, timing.offline_samples, timing.offline_seconds
        offline = mlperf.offline(*said, min_seconds=seconds, min_samples=protocol.offline_samples)
    return Measurement(
        latency=Latency(
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            mean_ms=float(np.mean(latencies)),
            runs=len(latencies),
            warmup_runs=timing.warmup_runs,
            threads=int(worker.build.settings.get("threads", 1)),
            protocol=protocol.name,
            noise=_noise(rounds_p50, p50, p90),
            rounds_p50_ms=rounds_p50,
            rounds_p90_ms=rounds_p90,
        ),
        load_ms=worker.facts["load_ms"],
        first_inference_ms=worker.facts["first_inference_ms"],
        model_memory_mb=worker.facts["model_memory_mb"],
        peak_memory_mb=timing.peak_memory_mb,
        size_bytes=worker.build.size_bytes,
        runner_overhead_us=float(np.median(timing.overheads_us)),
        energy=per_inference(timing.joules, timing.idle_w, timing.seconds, len(latencies)) if timing.idle_w else (),
        single_stream=single_stream,
        offline=offline,
        conditions=conditions,
        device=DeviceTime(*percentiles(timing.device_ms, (50, 90, 99))) if timing.device_ms else None,
    )


def _noise(medians: Sequence[float], p50: float, p90: float) -> str:
    spread = (max(medians) - min(medians)) / p50
    if p90 > _NOISY_TAIL * p50 or spread > _NOISY_ROUNDS:
        return f"noisy: p90 is {p90 / p50:.2f} x p50, medians of rounds differ by {spread:.0%}"
    return ""
