"""What the machine did while builds were timed: clocks, throttling, temperature, load. Read, never assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from mst_edge.core.machine import usable_cores
from targets.gpu_watch import GpuConditions, GpuWatch

_CPUS = "sys/devices/system/cpu"
_CLOCK_VARIES, _STEAL = 0.1, 0.01  # shares above which a person should know
_THROTTLED = {"throttled_usec": 1e3, "throttled_time": 1e6}  # of cgroup v2 and v1, with what makes a millisecond
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


@dataclass(frozen=True)
class Conditions:
    """The machine during one measurement. None: not readable here.

    Attributes:
        governors: of all cores, each once.
        clock_mhz: of the core that was the fastest at the moment, lowest and highest seen between rounds.
        cpu_quota: how many cores' time the control group may use.
        quota_throttled_ms: how long the control group was held back for it.
        thermal_throttles: how often cores or packages slowed down for heat.
        temperature_c: highest of any sensor of the CPU.
        load: highest average number of running processes over a minute.
        steal: share of CPU time that went to other virtual machines.
        problems: why latencies are invalid; empty if they are valid.
        warnings: what makes them less certain.
        unread: what of energy could not be read, and why.
    """

    governors: tuple[str, ...]
    clock_mhz: tuple[float, float] | None
    cpu_quota: float | None
    quota_throttled_ms: float | None
    thermal_throttles: int | None
    temperature_c: float | None
    load: float | None
    steal: float | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    gpu: GpuConditions | None = None


@dataclass
class Watch:
    """Watches the machine from its making on: ``look`` now and then, ``conditions`` at the end.

    Args:
        root: of the file system that holds ``sys`` and ``proc``.
        gpu: the watch of the GPU, where builds run on one.
    """

    root: Path = Path("/")
    cores: int = field(default_factory=usable_cores)
    gpu: GpuWatch | None = None

    def __post_init__(self) -> None:
        self._throttled_ms = quota_throttled_ms(self.root)
        self._throttles = thermal_throttles(self.root)
        self._times = cpu_times(self.root)
        self._clocks: list[float] = []
        self._temperatures: list[float] = []
        self._loads: list[float] = []
        self.look()

    def look(self) -> None:
        """Notes what changes from moment to moment."""
        self._clocks += sorted(clocks_mhz(self.root))[-1:]  # others may idle
        self._temperatures += temperatures_c(self.root)
        self._loads += load(self.root)
        if self.gpu is not None:
            self.gpu.look()

    def conditions(self, unread: tuple[str, ...] = ()) -> Conditions:
        """What happened since the watch was made."""
        self.look()
        throttled_ms = _grown(self._throttled_ms, quota_throttled_ms(self.root))
        throttles = _grown(self._throttles, thermal_throttles(self.root))
        seen = Conditions(
            governors=governors(self.root),
            clock_mhz=(min(self._clocks), max(self._clocks)) if self._clocks else None,
            cpu_quota=cpu_quota(self.root),
            quota_throttled_ms=throttled_ms,
            thermal_throttles=None if throttles is None else int(throttles),
            temperature_c=max(self._temperatures, default=None),
            load=max(self._loads, default=None),
            steal=_steal(self._times, cpu_times(self.root)),
            unread=unread,
            gpu=None if self.gpu is None else self.gpu.conditions(),
        )
        return replace(seen, problems=_problems(seen), warnings=_warnings(seen, self.cores))


def governors(root: Path) -> tuple[str, ...]:
    """The cores' frequency governors, each once."""
    return tuple(sorted({_read(file) for file in _of_cores(root, "cpufreq/scaling_governor")} - {""}))


def clocks_mhz(root: Path) -> list[float]:
    """The cores' clocks now: of cpufreq, or what /proc/cpuinfo says where there is none."""
    kilohertz = [_read(file) for file in _of_cores(root, "cpufreq/scaling_cur_freq")]
    if any(value.isdigit() for value in kilohertz):
        return [int(value) / 1e3 for value in kilohertz if value.isdigit()]
    lines = (line.partition(":") for line in _read(root / "proc/cpuinfo").splitlines())
    return [float(value) for key, _, value in lines if key.strip() == "cpu MHz"]


def thermal_throttles(root: Path) -> int | None:
    """How often cores and packages slowed down for heat since the machine started (x86)."""
    counts = [_read(file) for file in _of_cores(root, "thermal_throttle/*_throttle_count")]
    return sum(int(count) for count in counts if count) if counts else None


def temperatures_c(root: Path) -> list[float]:
    """What the CPU's sensors say: thermal zones, and hwmon's drivers of CPUs."""
    files = [*(root / "sys/class/thermal").glob("thermal_zone*/temp")]
    for sensor in (root / "sys/class/hwmon").glob("hwmon*"):
        if _read(sensor / "name") in _CPU_SENSORS:
            files += sensor.glob("temp*_input")
    return [int(value) / 1e3 for value in map(_read, files) if value.lstrip("-").isdigit()]


def load(root: Path) -> list[float]:
    """The average number of running processes over the last minute; empty where the system does not tell."""
    return [float(value) for value in _read(root / "proc/loadavg").split()[:1]]


def cpu_times(root: Path) -> list[int]:
    """``user nice system idle iowait irq softirq steal`` of all cores, in ticks; empty where not told (proc(5))."""
    first, _, _ = _read(root / "proc/stat").partition("\n")
    return [int(value) for value in first.split()[1:9]]


def cpu_quota(root: Path) -> float | None:
    """The smallest quota of this process' control groups, in cores; None where there is none."""
    quotas = []
    for folder in _control_groups(root):
        both = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us"),
            _read(folder / "cpu.cfs_period_us"),
        ]
        if both[0].isdigit() and both[1].isdigit():  # not max, not -1
            quotas.append(int(both[0]) / int(both[1]))
    return min(quotas, default=None)


def quota_throttled_ms(root: Path) -> float | None:
    """How long this process' control groups have been held back for their quota (cgroup v2: us, v1: ns)."""
    found = []
    for folder in _control_groups(root):
        said = dict(line.split() for line in _read(folder / "cpu.stat").splitlines() if len(line.split()) == 2)
        found += [int(said[key]) / per_ms for key, per_ms in _THROTTLED.items() if key in said]
    return max(found, default=None)


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders of the groups that this process is in, up to the root of each hierarchy."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"]
        else:
            continue
        steps = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            # In a container the path may be the host's: what is not there is skipped.
            yield from (mount.joinpath(*steps[:count]) for count in range(len(steps), -1, -1))


def _problems(seen: Conditions) -> tuple[str, ...]:
    problems = []
    if seen.quota_throttled_ms:
        cores = "its quota" if seen.cpu_quota is None else f"its quota of {seen.cpu_quota:g} cores"
        problems.append(f"throttled: the control group was held back {seen.quota_throttled_ms:.0f} ms for {cores}")
    if seen.thermal_throttles:
        problems.append(f"throttled: the CPU slowed down for heat {seen.thermal_throttles} times")
    return (*problems, *(() if seen.gpu is None else seen.gpu.problems))


def _warnings(seen: Conditions, cores: int) -> tuple[str, ...]:
    warnings = []
    if seen.load is not None and seen.load > cores + 1:  # the build itself may take all cores
        warnings.append(f"busy: {seen.load:.1f} processes ran on {cores} cores")
    if seen.steal is not None and seen.steal > _STEAL:
        warnings.append(f"{seen.steal:.0%} of CPU time went to other virtual machines")
    if seen.clock_mhz is not None and seen.clock_mhz[0] < (1 - _CLOCK_VARIES) * seen.clock_mhz[1]:
        low, high = seen.clock_mhz
        said = f" (governor {', '.join(seen.governors)})" if seen.governors else ""
        warnings.append(f"the clock varied from {low:.0f} to {high:.0f} MHz{said}")
    return (*warnings, *(() if seen.gpu is None else seen.gpu.warnings))


def _steal(before: list[int], after: list[int]) -> float | None:
    if len(before) < 8 or len(after) < 8:
        return None
    passed = [late - early for early, late in zip(before, after, strict=True)]
    return passed[7] / sum(passed) if sum(passed) > 0 else None


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _of_cores(root: Path, name: str) -> list[Path]:
    return sorted((root / _CPUS).glob(f"cpu[0-9]*/{name}"))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
