"""What an NVIDIA GPU did while builds were timed on it: clocks, heat, and what held it back. Read through NVML."""

from __future__ import annotations

from dataclasses import dataclass

from targets.nvml import POWER_CAP, SLOWDOWNS, Nvml, State, cuda_index

_CLOCK_VARIES = 0.1  # share above which a person should know


@dataclass(frozen=True)
class GpuConditions:
    """The GPU during one measurement. None: it does not say.

    Attributes:
        clock_mhz: of its multiprocessors, lowest and highest seen between rounds.
        slowdowns: what held the clock down against its owner's will.
        at_power_limit: whether the clock was held down to stay within the set power.
    """

    name: str
    driver: str
    clock_mhz: tuple[int, int] | None
    temperature_c: int | None
    slowdowns: tuple[str, ...]
    at_power_limit: bool

    @property
    def problems(self) -> tuple[str, ...]:
        """Why latencies are invalid."""
        return tuple(f"throttled: of the GPU, {reason}" for reason in self.slowdowns)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes them less certain."""
        said = ["the GPU ran at its power limit"] if self.at_power_limit else []
        if self.clock_mhz is not None and self.clock_mhz[0] < (1 - _CLOCK_VARIES) * self.clock_mhz[1]:
            low, high = self.clock_mhz
            said.append(f"the GPU's clock varied from {low} to {high} MHz (sudo nvidia-smi -lgc {high} locks it)")
        return tuple(said)


class GpuWatch:
    """Watches CUDA's first GPU from its making on.

    Raises:
        OSError: no driver answers.
    """

    def __init__(self) -> None:
        self._library = Nvml()
        self._gpu = self._library.gpu(cuda_index())
        self._handle = self._library.handle(self._gpu.index)
        self._states: list[State] = []

    def look(self) -> None:
        """Notes what it does now."""
        self._states.append(self._library.state(self._handle))

    def conditions(self) -> GpuConditions:
        """What was seen since the watch was made."""
        clocks = [state.clock_mhz for state in self._states if state.clock_mhz is not None]
        bits = 0
        for state in self._states:
            bits |= state.reasons or 0
        return GpuConditions(
            name=self._gpu.name,
            driver=self._gpu.driver,
            clock_mhz=(min(clocks), max(clocks)) if clocks else None,
            temperature_c=max((s.temperature_c for s in self._states if s.temperature_c is not None), default=None),
            slowdowns=tuple(text for bit, text in SLOWDOWNS.items() if bits & bit),
            at_power_limit=bool(bits & POWER_CAP),
        )
