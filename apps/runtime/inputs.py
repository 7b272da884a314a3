"""A file from disk as one sample that a bundle takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio import SILENCE_DBFS, fit_length, read_audio, resample
from .errors import BundleError
from .images import read_image
from .manifest import InputSpec


@dataclass(frozen=True)
class Sample:
    """``array`` fits the input spec; ``notes`` says what had to be done to the file, or is odd about it."""

    array: NDArray[Any]
    notes: tuple[str, ...] = ()


def read_sample(path: str | Path, spec: InputSpec) -> Sample:
    """Reads wav (and what soundfile reads), pictures, or ``.npy`` arrays, by the input's kind.

    Raises:
        BundleError: the file does not exist, is damaged, or does not fit.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return _from_npy(path, spec)
    if spec.kind == "audio":
        return _from_audio(path, spec)
    if spec.kind == "image":
        image = read_image(path, spec.shape)
        return Sample(image if spec.dtype == "uint8" else (image / 255.0).astype(np.float32))
    raise BundleError(f"an input of kind {spec.kind} is read from .npy files", where=path)


def _from_npy(path: Path, spec: InputSpec) -> Sample:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise BundleError("no such file", where=path) from None
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"not a readable .npy array ({error})", where=path) from None
    if array.shape != spec.shape or array.dtype.kind not in "fiu":
        raise BundleError(f"holds {array.shape} {array.dtype}, the bundle takes {spec.shape} {spec.dtype}", where=path)
    if not np.isfinite(array).all():
        raise BundleError("holds NaN or infinity", where=path)
    return Sample(array.astype(spec.dtype))


def _from_audio(path: Path, spec: InputSpec) -> Sample:
    wave = read_audio(path)
    notes = []
    if wave.peak_dbfs < SILENCE_DBFS:
        notes.append(f"{path.name} is silent")
    if spec.sample_rate_hz is None:
        raise BundleError("the bundle does not say at which rate it listens", where=path)
    resampled = resample(wave, spec.sample_rate_hz)
    (length,) = spec.shape
    samples, start = fit_length(resampled.samples, length)
    if start > 0:
        rate = spec.sample_rate_hz
        notes.append(
            f"{path.name} lasts {len(resampled.samples) / rate:.2f} s: "
            f"heard {start / rate:.2f} to {(start + length) / rate:.2f} s, where it is loudest"
        )
    return Sample(samples.astype(spec.dtype), tuple(notes))
