"""Learning-rate schedules: share of a network's epochs done, in [0, 1), to a factor on the rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}


@dataclass(frozen=True)
class ScheduledOptimizer:
    """An optimiser and the part of its schedule that one phase runs through.

    Attributes:
        span: shares of the schedule at the phase's first epoch and after its last. A network that is
            trained over several phases anneals once, not once per phase.
    """

    optimizer: Optimizer
    schedule: Callable[[float], float] = SCHEDULES["constant"]
    span: tuple[float, float] = (0.0, 1.0)

    def factor(self, done: float) -> float:
        """Factor on the learning rate when the share ``done`` of the phase's epochs is over."""
        start, end = self.span
        return self.schedule(start + done * (end - start))
