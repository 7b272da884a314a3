"""Power from ``tegrastats``: which rails add up to the board's, energy between two moments, and signs of throttling."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

INTERVAL_MS = 100
# "NAME 4761mW/4778mW": now and since the start, on JetPack 7.2 with a third number; without units on old boards. Thor's
# GPU rail reads less than nothing at rest.
_RAIL = re.compile(r"(?<!\S)(?P<rail>(?:VDD|VIN|POM)_\w+|VIN)\s+(?P<now>-?\d+)(?:mW)?(?:/-?\d+(?:mW)?){0,2}(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)(\w+)@(-?\d+(?:\.\d+)?)C(?!\S)")
# A rail that all others hang on; else those that add up (AGX Orin; Thor).
_INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")
_SUMS = (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"))
_COOLING, _MONITORS = "sys/class/thermal", "sys/class/hwmon"


@dataclass(frozen=True)
class Reading:
    """One line of ``tegrastats``: power by rail in mW, temperature by sensor in degrees Celsius."""

    rails_mw: Mapping[str, int]
    temperatures_c: Mapping[str, float]

    @property
    def counted(self) -> tuple[str, ...]:
        """Names of the rails whose sum is the board's power; none where they are not known."""
        for name in _INPUTS:
            if name in self.rails_mw:
                return (name,)
        return next((names for names in _SUMS if set(names) <= set(self.rails_mw)), ())

    @property
    def total_mw(self) -> int | None:
        """The board's power; None where its rails are not known."""
        return sum(self.rails_mw[name] for name in self.counted) if self.counted else None


def parse_line(line: str) -> Reading:
    """What a line of ``tegrastats`` says of power and temperature."""
    rails = {match["rail"]: int(match["now"]) for match in _RAIL.finditer(line)}
    return Reading(rails, {name: float(degrees) for name, degrees in _TEMPERATURE.findall(line)})


def energy_mj(times_s: Sequence[float], power_mw: Sequence[float], start_s: float, end_s: float) -> float:
    """Integral of power from ``start_s`` to ``end_s``, straight between samples, constant before and after them."""
    inside = [t for t in times_s if start_s < t < end_s]
    at = np.array([start_s, *inside, end_s])
    power = np.interp(at, times_s, power_mw)
    return float((np.diff(at) * (power[1:] + power[:-1]) / 2).sum())


class Watch:
    """``with Watch() as watch:`` reads ``tegrastats`` and the kernel's throttling alerts in the background."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._readings: list[tuple[float, Reading]] = []
        self._alerts: set[str] = set()
        self.problem = ""

    def __enter__(self) -> Watch:
        self._events = _over_current_events(self._root)
        try:
            self._process = subprocess.Popen(
                ["tegrastats", "--interval", str(INTERVAL_MS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
        except OSError as error:
            self.problem = f"tegrastats did not start ({error})"
            return self
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.problem and not self._readings:
            return
        if self._process.poll() is not None:
            self.problem = f"tegrastats ended by itself with exit code {self._process.returncode}"
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        self._look()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._readings.append((time.perf_counter(), parse_line(line)))
                self._look()

    def _look(self) -> None:
        self._alerts |= _alerts(self._root)
        now = _over_current_events(self._root)
        self._alerts |= {name for name, count in now.items() if count > self._events.get(name, count)}

    @property
    def alerts(self) -> list[str]:
        """What the kernel said of throttling since the watch began."""
        return sorted(self._alerts)

    @property
    def hottest_c(self) -> float | None:
        """The highest temperature that any sensor had."""
        return max((t for _, reading in self._readings for t in reading.temperatures_c.values()), default=None)

    @property
    def rails(self) -> tuple[str, ...]:
        """The rails that were added up."""
        return self._readings[0][1].counted if self._readings else ()

    def energy_mj(self, start_s: float, end_s: float) -> float | None:
        """Energy of the whole board between two moments of ``time.perf_counter``; None where no power was read."""
        known = [(t, r.total_mw) for t, r in self._readings if r.total_mw is not None]
        if sum(start_s <= t <= end_s for t, _ in known) < 2:
            return None
        return energy_mj([t for t, _ in known], [float(mw or 0) for _, mw in known], start_s, end_s)


def _alerts(root: Path) -> set[str]:
    """Cooling devices by which the kernel says that it throttles, and does so now."""
    found = set()
    for device in (root / _COOLING).glob("cooling_device*"):
        kind, state = _line(device / "type"), _line(device / "cur_state")
        if "alert" in kind and state not in ("", "0"):
            found.add(kind)
    return found


def _over_current_events(root: Path) -> dict[str, int]:
    """Counters of over-current throttling by name."""
    counters = ((path.name, _line(path)) for path in sorted((root / _MONITORS).glob("hwmon*/oc*_event_cnt")))
    return {name: int(count) for name, count in counters if count.isdecimal()}


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
