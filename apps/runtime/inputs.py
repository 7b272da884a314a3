"""A file from disk, or a text, as one sample that a bundle takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import MAGIC, decode_npy
from .audio import SILENCE_DBFS, Waveform, fit_length, parse_wav, read_audio, resample, usable
from .errors import BundleError
from .images import decode_image, read_image
from .manifest import InputSpec

if TYPE_CHECKING:
    from .tokenizer import AnyTokenizer

_MAX_TEXT_BYTES = 16 << 20
_MAX_ARRAY_BYTES = 1 << 30


@dataclass(frozen=True)
class Sample:
    """``array`` fits the input spec; ``notes`` says what had to be done to the file, or is odd about it."""

    array: NDArray[Any]
    notes: tuple[str, ...] = ()


def read_sample(path: str | Path, spec: InputSpec, tokenizer: AnyTokenizer | None = None) -> Sample:
    """Reads wav (and what soundfile reads), pictures, videos, text, or ``.npy`` arrays, by the input's kind.

    Args:
        tokenizer: the bundle's, where its input is text.

    Raises:
        BundleError: the file does not exist, is damaged, or does not fit.
    """
    path = Path(path)
    if tokenizer is not None:
        return _from_text_file(path, tokenizer)
    if path.suffix == ".npy":
        return _from_array(read_array(path), spec, path)
    if spec.kind == "audio":
        return sample_of_sound(read_audio(path), spec, path.name)
    if spec.kind == "image":
        return sample_of_pixels(read_image(path, spec.sizes), spec)
    if spec.kind == "video" and spec.dtype == "uint8":
        return _from_video(path, spec)
    raise BundleError(f"an input of kind {spec.kind} is read from .npy files", where=path)


def decode_sample(data: bytes, spec: InputSpec, tokenizer: AnyTokenizer | None = None, name: str = "upload") -> Sample:
    """A file's bytes, from wherever they came: a wav, a picture, a text in UTF-8, or an ``.npy`` array.

    Raises:
        BundleError: they are none, damaged, or do not fit.
    """
    if tokenizer is not None:
        text, notes = decode_text(data, name)
        sample = encode_text(text, tokenizer, name)
        return Sample(sample.array, (*notes, *sample.notes))
    if data.startswith(MAGIC):
        return _from_array(decode_npy(data, name), spec, name)
    if spec.kind == "audio":
        return sample_of_sound(usable(parse_wav(data, name), name), spec, name)
    if spec.kind == "image":
        return sample_of_pixels(decode_image(data, spec.sizes, name), spec)
    raise BundleError(f"an input of kind {spec.kind} is read from .npy files", where=name)


def encode_text(text: str, tokenizer: AnyTokenizer, name: str = "the text") -> Sample:
    """Token ids of a text; the notes say where it is empty, or longer than what the student reads."""
    ids, cut = tokenizer.encode(text)
    notes = []
    if tokenizer.says_nothing(ids):
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
    return decode_text(data, path)


def decode_text(data: bytes, where: object = "the text") -> tuple[str, tuple[str, ...]]:
    """Bytes as ``read_text`` reads a file.

    Raises:
        BundleError: not a text.
    """
    if b"\0" in data:
        raise BundleError("is not a text in UTF-8", where=where, fix="save it as plain text, encoded in UTF-8")
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        name = where.name if isinstance(where, Path) else where
        text = data.decode("utf-8-sig", errors="replace")
        return text, (f"{name} is not UTF-8 throughout: what is not was replaced",)


def _from_text_file(path: Path, tokenizer: AnyTokenizer) -> Sample:
    text, notes = read_text(path)
    sample = encode_text(text, tokenizer, path.name)
    return Sample(sample.array, (*notes, *sample.notes))


def _from_video(path: Path, spec: InputSpec) -> Sample:
    from .clips import read_clip  # of other students, none pays for it

    clip, info = read_clip(path, spec.sizes)
    few = info.frames < len(clip)
    return Sample(clip, (f"{path.name} has {info.frames} frames: some are seen more than once",) if few else ())


def read_array(path: Path) -> NDArray[Any]:
    """An array of numbers from an ``.npy`` file.

    Raises:
        BundleError: no such file, damaged, or larger than 1 GB.
    """
    return decode_npy(_npy_bytes(path), path)


def _npy_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_ARRAY_BYTES:
            raise BundleError("is larger than 1 GB", where=path)
        return path.read_bytes()
    except OSError as error:
        raise BundleError("no such file" if not path.exists() else str(error), where=path) from None


def _from_array(array: NDArray[Any], spec: InputSpec, where: object) -> Sample:
    if not spec.fits(array.shape):
        raise BundleError(f"holds {array.shape} {array.dtype}, the bundle takes {spec.text()}", where=where)
    with np.errstate(all="ignore"):
        cast = array.astype(spec.dtype)
    if not (np.isfinite(array).all() and np.isfinite(cast).all()):
        raise BundleError("holds NaN or infinity", where=where)
    return Sample(cast)


def sample_of_pixels(image: NDArray[np.uint8], spec: InputSpec) -> Sample:
    """Pixels of the input's shape, as its dtype wants them: whole, or from 0 to 1."""
    return Sample(image if spec.dtype == "uint8" else (image / 255.0).astype(np.float32))


def sample_of_sound(wave: Waveform, spec: InputSpec, name: str) -> Sample:
    """A sound at the rate and of the length that the input has; ``name`` is what the notes call it.

    Raises:
        BundleError: the bundle does not say at which rate it listens.
    """
    notes = []
    if wave.peak_dbfs < SILENCE_DBFS:
        notes.append(f"{name} is silent")
    if spec.sample_rate_hz is None:
        raise BundleError("the bundle does not say at which rate it listens", where=name)
    resampled = resample(wave, spec.sample_rate_hz)
    (length,) = spec.sizes
    samples, start = fit_length(resampled.samples, length)
    if start > 0:
        rate = spec.sample_rate_hz
        notes.append(
            f"{name} lasts {len(resampled.samples) / rate:.2f} s: "
            f"heard {start / rate:.2f} to {(start + length) / rate:.2f} s, where it is loudest"
        )
    return Sample(samples.astype(spec.dtype), tuple(notes))
