"""Which calibrator suits a network: the one whose int8 network is closest to the float one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from quantize.assignment import Assignable
from quantize.ranges import Calibrator
from quantize.schemes.base import Material
from quantize.sensitivity import output_sqnr_db

# Entropy is left out: it takes twenty times as long, and the networks that it suits best are still to be met.
CANDIDATES: tuple[Calibrator, ...] = ("minmax", "percentile", "mse")
_AS_GOOD_DB = 0.1


def calibrated(material: Material, *, symmetric: bool = False) -> Assignable:
    """The graph with its ranges; by the best calibrator, on the calibration samples, where ``auto`` is asked for."""
    if material.calibrator != "auto":
        return Assignable.of(material, material.calibrator, symmetric=symmetric)

    def find() -> Assignable:
        found = by_calibrator(material, symmetric=symmetric)
        return found[best_calibrator(closeness_db(found, material.source.input.name, material.calibration.inputs))]

    return material.once(("calibrated", material.exclude, symmetric), find)


def by_calibrator(material: Material, *, symmetric: bool = False) -> dict[Calibrator, Assignable]:
    """The graph with the ranges of each candidate, and of the one that is asked for."""
    names = dict.fromkeys(CANDIDATES if material.calibrator == "auto" else (material.calibrator, *CANDIDATES))
    return {name: Assignable.of(material, name, symmetric=symmetric) for name in names}


def closeness_db(
    found: Mapping[Calibrator, Assignable], input_name: str, samples: NDArray[Any]
) -> dict[Calibrator, float]:
    """SQNR of the network's output in int8 on ``samples`` ``(n, *shape)``, by calibrator."""
    return {name: output_sqnr_db(one, input_name, samples) for name, one in found.items()}


def best_calibrator(closeness: Mapping[Calibrator, float]) -> Calibrator:
    """The first one that is as good as the best."""
    best = max(closeness.values())
    return next(name for name, db in closeness.items() if db >= best - _AS_GOOD_DB)
