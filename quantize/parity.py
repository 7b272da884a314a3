"""How far an ONNX file is from the torch student that it was made from, as ONNX Runtime computes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.variant import ROUNDS_WEIGHTS

MOST_MEAN_STEPS = 1.0
_BATCH = 4


@dataclass(frozen=True)
class Parity:
    """Differences over all outputs of some samples.

    Attributes:
        mean_steps, max_steps: in steps of the output's 256 levels.
    """

    mean_steps: float
    max_steps: float


def steps_between(wanted: NDArray[Any], said: NDArray[Any], step: NDArray[Any] | float | None = None) -> Parity:
    """Compares outputs ``(samples, ...)``; a step is that of 256 levels over ``wanted`` unless it is given."""
    found = np.abs(said - wanted) / (np.ptp(wanted) / 255 if step is None else step)
    return Parity(float(found.mean()), float(found.max()))


def run_onnx(model: Path, samples: NDArray[Any]) -> NDArray[Any]:
    """What ONNX Runtime computes of ``(samples, ...)``; what is float in the file stays float."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(model), providers=["CPUExecutionProvider"], disabled_optimizers=[ROUNDS_WEIGHTS]
    )
    name = session.get_inputs()[0].name
    batches = (samples[start : start + _BATCH] for start in range(0, len(samples), _BATCH))
    return np.concatenate([session.run(None, {name: np.array(batch)})[0] for batch in batches])
