"""Counters of energy: RAPL of x86 CPUs, NVML of NVIDIA GPUs. Each is of a whole package or board, whoever uses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.nvml import Nvml

_POWERCAP = "sys/class/powercap"
_ZONES = "intel-rapl:[0-9]"  # packages; their parts have two colons (AMD's driver uses the same names)


@dataclass(frozen=True)
class Energy:
    """Energy of one inference by one counter.

    Attributes:
        mj: all that the package or board took, in mJ per inference.
        above_idle_mj: the same less what it takes when nothing runs.
        idle_w: measured just before.
    """

    counter: str
    mj: float
    above_idle_mj: float
    idle_w: float


class Counter(ABC):
    """A counter that only grows, up to ``range_j`` at which it starts anew."""

    name: str
    range_j: float = float("inf")

    @abstractmethod
    def joules(self) -> float:
        """Energy since some moment in the past."""

    def between(self, before: float, after: float) -> float:
        """Joules from one reading to a later one, over one wrap at most."""
        return after - before if after >= before else after + self.range_j - before


class RaplCounter(Counter):
    """One package's zone of Linux' powercap interface (kernel documentation, power/powercap)."""

    def __init__(self, zone: Path) -> None:
        self.name = f"RAPL {(zone / 'name').read_text(encoding='ascii').strip()}"
        self.range_j = int((zone / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
        self._file = zone / "energy_uj"

    def joules(self) -> float:
        return int(self._file.read_text(encoding="ascii")) / 1e6


class NvmlCounter(Counter):
    """One GPU: ``nvmlDeviceGetTotalEnergyConsumption``, in mJ since the driver was loaded (Volta and later)."""

    def __init__(self, library: Nvml, index: int) -> None:
        self.name = f"NVML GPU {index}"
        self._library = library
        self._device: Any = library.handle(index)

    def joules(self) -> float:
        return self._library.energy_mj(self._device) / 1e3


def find_counters(root: Path = Path("/")) -> tuple[list[Counter], list[str]]:
    """The counters that can be read here, and of the others why not."""
    counters: list[Counter] = []
    reasons: list[str] = []
    for find in (_rapl, _nvml):
        try:
            counters += find(root)
        except PermissionError as error:
            reasons.append(f"RAPL: no permission to read {error.filename} (as root: chmod a+r {error.filename})")
        except OSError as error:
            reasons.append(str(error))
    return counters, reasons


def read(counters: Sequence[Counter]) -> list[float]:
    """A reading of each, in J."""
    return [counter.joules() for counter in counters]


def used(counters: Sequence[Counter], before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """Joules by counter between two readings."""
    return {c.name: c.between(*readings) for c, *readings in zip(counters, before, after, strict=True)}


def per_inference(joules: dict[str, float], idle_w: dict[str, float], seconds: float, runs: int) -> tuple[Energy, ...]:
    """Energy of one of ``runs`` inferences that took ``seconds`` and ``joules`` together."""
    return tuple(
        Energy(name, 1e3 * total / runs, 1e3 * (total - idle_w[name] * seconds) / runs, idle_w[name])
        for name, total in joules.items()
    )


def _rapl(root: Path) -> list[Counter]:
    zones = sorted((root / _POWERCAP).glob(_ZONES))
    if not zones:
        raise OSError("RAPL: none here")
    counters: list[Counter] = [RaplCounter(zone) for zone in zones]
    read(counters)  # root alone may, on most systems since CVE-2020-8694
    return counters


def _nvml(_: Path) -> list[Counter]:
    library = Nvml()
    counters: list[Counter] = [NvmlCounter(library, index) for index in range(library.count())]
    read(counters)
    return counters
