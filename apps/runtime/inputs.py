"""A file from disk, or a text, as one sample that a bundle takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .audio import SILENCE_DBFS, fit_length, read_audio, resample
from .errors import BundleError
from .images import read_image
from .manifest import InputSpec

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

_MAX_TEXT_BYTES = 16 << 20


@dataclass(frozen=True)
class Sample:
    """``array`` fits the input spec; ``notes`` says what had to be done to the file, or is odd about it."""

    array: NDArray[Any]
    notes: tuple[str, ...] = ()


def read_sample(path: str | Path, spec: InputSpec, tokenizer: Tokenizer | None = None) -> Sample:
    """Reads wav (and what soundfile reads), pictures, text, or ``.npy`` arrays, by the input's kind.

    Args:
        tokenizer: the bundle's, where its input is text.

    Raises:
        BundleError: the file does not exist, is damaged, or does not fit.
    """
    path = Path(path)
    if tokenizer is not None:
        return _from_text_file(path, tokenizer)
    if path.suffix == ".npy":
        return _from_npy(path, spec)
    if spec.kind == "audio":
        return _from_audio(path, spec)
    if spec.kind == "image":
        image = read_image(path, spec.sizes)
        return Sample(image if spec.dtype == "uint8" else (image / 255.0).astype(np.float32))
    raise BundleError(f"an input of kind {spec.kind} is read from .npy files", where=path)


def encode_text(text: str, tokenizer: Tokenizer, name: str = "the text") -> Sample:
    """Token ids of a text; the notes say where it is empty, or longer than what the student reads."""
    ids, cut = tokenizer.encode(text)
    notes = []
    if not ids.any():
        notes.append(f"{name} is empty")
    if cut:
        notes.append(f"{name} is longer than {tokenizer.max_tokens} tokens: its end was not read")
    return Sample(ids, tuple(notes))


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """A text file's content in UTF-8, and a note where some of it is not: it was replaced by U+FFFD.

    Raises:
        BundleError: no such file, not a text, or larger than 16 MB.
    """
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise BundleError("is larger than 16 MB", where=path)
        data = path.read_bytes()
    except OSError as error:
        raise BundleError("no such file" if not path.exists() else str(error), where=path) from None
    if b"\0" in data:
        raise BundleError("is not a text in UTF-8", where=path, fix="save it as plain text, encoded in UTF-8")
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        text = data.decode("utf-8-sig", errors="replace")
        return text, (f"{path.name} is not UTF-8 throughout: what is not was replaced",)


def _from_text_file(path: Path, tokenizer: Tokenizer) -> Sample:
    text, notes = read_text(path)
    sample = encode_text(text, tokenizer, path.name)
    return Sample(sample.array, (*notes, *sample.notes))


def _from_npy(path: Path, spec: InputSpec) -> Sample:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise BundleError("no such file", where=path) from None
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"not a readable .npy array ({error})", where=path) from None
    if not spec.fits(array.shape) or array.dtype.kind not in "fiu":
        raise BundleError(f"holds {array.shape} {array.dtype}, the bundle takes {spec.text()}", where=path)
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
    (length,) = spec.sizes
    samples, start = fit_length(resampled.samples, length)
    if start > 0:
        rate = spec.sample_rate_hz
        notes.append(
            f"{path.name} lasts {len(resampled.samples) / rate:.2f} s: "
            f"heard {start / rate:.2f} to {(start + length) / rate:.2f} s, where it is loudest"
        )
    return Sample(samples.astype(spec.dtype), tuple(notes))
