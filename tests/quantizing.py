"""Quantizes in tests: samples in memory, and the same weights on every CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from quantize.calibration import Calibration, save_calibration
from quantize.in_torch import InTorch
from quantize.schemes.base import SCHEMES, Material
from quantize.schemes.int8_trained import Int8Qat
from quantize.variant import Variant


def schemes_from_a_graph() -> list[str]:
    """Names of the schemes that need no more than a graph and samples: no student, no data, no target."""
    kinds = {name: SCHEMES.get(name) for name in SCHEMES.names()}
    return [name for name, kind in kinds.items() if not (kind.per_target or issubclass(kind, (Int8Qat, InTorch)))]


def keep(samples: np.ndarray, folder: Path, **about: Any) -> Calibration:
    """Calibration samples on disk."""
    return save_calibration(folder, len(samples), samples.__getitem__, **about)


def quantized(source: Variant, samples: np.ndarray, folder: Path, scheme: str = "int8-static", **more: Any) -> Variant:
    """The variant that a scheme makes, with 8-bit weights whether or not this CPU has VNNI."""
    calibration = keep(samples, folder.with_name(f"{folder.name}-calibration"))
    with mock.patch("quantize.assignment.needs_reduced_range", return_value=False):
        return SCHEMES.get(scheme)().make(Material(source, calibration, **more), folder)
