"""What a student says of one input, in words that fit its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .manifest import Manifest
from .png import write_label_map


@dataclass(frozen=True)
class Prediction:
    """A class: probabilities by label, best first, and the time it took."""

    label: str
    confidence: float
    probabilities: dict[str, float]
    latency_ms: float

    def text(self) -> str:
        """For a person, without the time."""
        second = list(self.probabilities.items())[1:2]
        also = "".join(f"  (then {label} {share:.1%})" for label, share in second)
        return f"{self.label:12} {self.confidence:6.1%}{also}"

    def record(self) -> dict[str, Any]:
        """For a machine, without the time."""
        return {
            "label": self.label,
            "confidence": round(self.confidence, 6),
            "probabilities": {label: round(share, 6) for label, share in self.probabilities.items()},
        }


@dataclass(frozen=True)
class Numbers:
    """Numbers by name, in ``units`` (empty where not stated), and the time it took.

    Attributes:
        ordinal_class: centre of the ordinal class that the one number falls into; None where the data has no classes.
    """

    values: dict[str, float]
    units: dict[str, str]
    latency_ms: float
    ordinal_class: float | None = None

    def text(self) -> str:
        """For a person, without the time."""
        said = (f"{name} {value:.6g} {self.units[name]}".rstrip() for name, value in self.values.items())
        return ", ".join(said) + ("" if self.ordinal_class is None else f" (class {self.ordinal_class:g})")

    def record(self) -> dict[str, Any]:
        """For a machine, without the time."""
        beside = {} if self.ordinal_class is None else {"ordinal_class": self.ordinal_class}
        return {"values": self.values, "units": self.units, **beside}


@dataclass(frozen=True)
class LabelMap:
    """A class per pixel ``(H, W)``, the share of pixels that each class has, largest first, and the time it took."""

    labels: NDArray[np.int64]
    shares: dict[str, float]
    latency_ms: float

    def text(self) -> str:
        """For a person, without the time."""
        return ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())

    def record(self) -> dict[str, Any]:
        """For a machine, without the time."""
        return {"shares": {name: round(share, 6) for name, share in self.shares.items()}}


Answer = Prediction | Numbers | LabelMap


def answer_of(output: NDArray[np.float32], manifest: Manifest, latency_ms: float) -> Answer:
    """One sample's output, ``(labels, ...)``, as its task means it."""
    if manifest.task == "regression":
        values = {name: float(value) for name, value in zip(manifest.labels, output, strict=True)}
        units = dict(zip(manifest.labels, manifest.units, strict=True))
        return Numbers(values, units, latency_ms, nearest_centre(float(output[0]), manifest.ordinal))
    if manifest.task == "segmentation":
        labels = output.argmax(axis=0)
        counts = np.bincount(labels.reshape(-1), minlength=len(manifest.labels)) / labels.size
        order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
        return LabelMap(labels, {manifest.labels[k]: float(counts[k]) for k in order}, latency_ms)
    probabilities = softmax(output)
    named = {manifest.labels[i]: float(probabilities[i]) for i in np.argsort(-probabilities)}
    label, confidence = next(iter(named.items()))
    return Prediction(label, confidence, named, latency_ms)


def nearest_centre(value: float, centres: Sequence[float]) -> float | None:
    """The centre nearest to a number; of two equally near ones the even one, as numpy rounds. None without centres."""
    return min(centres, key=lambda centre: (abs(value - centre), centre % 2 != 0), default=None)


def keep_label_map(said: Answer, folder: Path, file: Path) -> None:
    """Writes a label map to ``folder``, named after the file that it is of.

    Raises:
        BundleError: the answer is no label map, or the folder cannot be written to.
    """
    if not isinstance(said, LabelMap):
        raise BundleError("only segmentation gives label maps", where="--maps", fix="leave it out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"cannot be made ({error})", where=folder) from None
    write_label_map(folder / f"{file.stem}.png", said.labels)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities along the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
