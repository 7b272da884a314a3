"""Learning-rate schedules: share of the epochs done, in [0, 1), to a factor on the rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
