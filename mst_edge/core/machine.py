"""What this machine is: read, never assumed."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Names of cpuinfo flags (x86) and HWCAP features (Arm) that decide which kernels a runtime may use.
_X86_FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx_vnni": "vnni",
    "avx512_vnni": "vnni",
    "avx512_bf16": "bf16",
    "amx_tile": "amx",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
}
_ARM_FEATURES = {"asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "asimdhp": "fp16", "sve": "sve"}


@dataclass(frozen=True)
class Machine:
    """One machine, as far as results depend on it."""

    system: str
    arch: str
    cpu: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    governor: str

    @property
    def int8_can_overflow(self) -> bool:
        """Whether two products of 8-bit values can overflow the 16 bits that the CPU adds them in."""
        return self.arch in ("x86_64", "AMD64") and not {"vnni", "amx_int8"} & set(self.isa)

    def to_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "system": self.system,
            "arch": self.arch,
            "cpu": self.cpu,
            "isa": list(self.isa),
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "governor": self.governor,
        }


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """The machine this process runs on."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    table = _ARM_FEATURES if platform.machine() in ("aarch64", "arm64") else _X86_FEATURES
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        cpu=info.get("model name") or _mac_cpu_name() or platform.processor() or "unknown",
        isa=tuple(sorted({feature for flag, feature in table.items() if flag in flags})),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
    )


def usable_cores() -> int:
    """Cores that this process may use: affinity mask and cgroup quota, whichever is smaller."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def physical_cores() -> int:
    """Cores that this process may use, two threads of one core counted once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    distinct = {_read(topology.format(core)) or str(core) for core in allowed}
    return min(len(distinct), usable_cores())


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty where there is none."""
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _mac_cpu_name() -> str:
    if platform.system() != "Darwin":
        return ""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _memory_bytes() -> int:
    """Physical memory, or the cgroup's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
