"""Sound files to waveforms that a student reads: decoded, mixed to mono, resampled, fitted. numpy only."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

_MAX_FILE_BYTES = 1 << 30
_MAX_DECODED = 1 << 28  # values, of packed formats: hours of silence pack into nothing
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_HALF_WIDTH = 16  # zero crossings of the resampling kernel on each side
_BLOCK_TAPS = 1 << 20  # values of a block of the resampler, whatever the rates
SILENCE_DBFS = -70.0


@dataclass(frozen=True)
class Waveform:
    """``samples`` ``(n,)`` float32 mono in [-1, 1] (a clipped or float file may exceed it)."""

    samples: NDArray[np.float32]
    rate_hz: int

    @property
    def peak_dbfs(self) -> float:
        """Peak level relative to full scale; -inf for digital silence."""
        peak = float(np.abs(self.samples).max(initial=0.0))
        return 20 * float(np.log10(peak)) if peak > 0 else float("-inf")


def read_audio(path: Path) -> Waveform:
    """Decodes a wav file; other formats through soundfile where that is installed.

    Raises:
        BundleError: not sound, damaged, empty, or holding values that are no numbers.
    """
    if not path.is_file():
        raise BundleError("no such file", where=path)
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise BundleError("is larger than 1 GB", where=path)
    with path.open("rb") as file:
        is_wav = file.read(4) in (b"RIFF", b"RIFX", b"RF64")
    wave = parse_wav(path.read_bytes(), path) if is_wav else _through_soundfile(path)
    return usable(wave, path)


def usable(wave: Waveform, where: object = "sound") -> Waveform:
    """``wave``, if there is something to hear.

    Raises:
        BundleError: empty, or holding values that are no numbers.
    """
    if not wave.samples.size:
        raise BundleError("holds no sound", where=where)
    if not np.isfinite(wave.samples).all():
        raise BundleError("holds NaN or infinity", where=where)
    return wave


def parse_wav(data: bytes, where: object = "wav") -> Waveform:
    """A RIFF wave file: PCM of 8, 16, 24 or 32 bits, or float of 32 or 64, any number of channels.

    A data chunk that claims more than the file holds is read as far as it goes.

    Raises:
        BundleError: not a wave file, or a coding that is not among these.
    """
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BundleError("not a RIFF wave file", where=where)
    layout: tuple[int, int, int, int] | None = None
    position = 12
    while position + 8 <= len(data):
        name, size = data[position : position + 4], struct.unpack_from("<I", data, position + 4)[0]
        body = data[position + 8 : position + 8 + size]
        if name == b"fmt ":
            layout = _layout(body, where)
        elif name == b"data":
            if layout is None:
                raise BundleError("has its data before its format", where=where)
            return _decode(body, *layout, where)
        position += 8 + size + size % 2
    raise BundleError("has no data chunk", where=where)


def _layout(body: bytes, where: object) -> tuple[int, int, int, int]:
    """Coding, channels, rate in Hz and bits per value."""
    if len(body) < 16:
        raise BundleError("has a damaged format chunk", where=where)
    coding, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if coding == _EXTENSIBLE and len(body) >= 26:
        coding = struct.unpack_from("<H", body, 24)[0]
    if not 1 <= channels <= 64 or not 1000 <= rate <= 768_000:
        raise BundleError(f"claims {channels} channels at {rate} Hz", where=where)
    return coding, channels, rate, bits


def _decode(body: bytes, coding: int, channels: int, rate: int, bits: int, where: object) -> Waveform:
    frame = channels * bits // 8
    body = body[: len(body) // frame * frame] if frame else b""
    values: NDArray[Any]
    if (coding, bits) == (_PCM, 8):
        values = (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128
    elif (coding, bits) == (_PCM, 16):
        values = np.frombuffer(body, "<i2").astype(np.float32) / 32768
    elif (coding, bits) == (_PCM, 24):
        raw = np.frombuffer(body, np.uint8).reshape(-1, 3).astype(np.int32)
        unsigned = raw[:, 0] | raw[:, 1] << 8 | raw[:, 2] << 16
        values = ((unsigned ^ 0x800000) - 0x800000).astype(np.float32) / 0x800000
    elif (coding, bits) == (_PCM, 32):
        values = (np.frombuffer(body, "<i4") / 2147483648.0).astype(np.float32)
    elif coding == _FLOAT and bits in (32, 64):
        with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinity, and is refused as such
            values = np.frombuffer(body, f"<f{bits // 8}").astype(np.float32)
    else:
        raise BundleError(
            f"is coded as format {coding} with {bits} bits",
            where=where,
            fix="convert it to 16-bit PCM, for example with `sox IN -b 16 OUT.wav`",
        )
    with np.errstate(all="ignore"):
        return Waveform(values.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate)


def _through_soundfile(path: Path) -> Waveform:
    try:
        import soundfile
    except ImportError:
        raise BundleError(
            "is not a wav file",
            where=path,
            fix="convert it to wav, or install soundfile (pip install 'mst-edge[apps]')",
        ) from None
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames * file.channels > _MAX_DECODED:
                raise BundleError(f"unpacks to {file.frames} x {file.channels} values: refused", where=path)
            values, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.SoundFileError as error:
        raise BundleError(f"cannot be decoded ({error})", where=path) from None
    return Waveform(values.mean(axis=1, dtype=np.float32), int(rate))


def resample(wave: Waveform, rate_hz: int) -> Waveform:
    """The waveform at another rate: Kaiser-windowed sinc, cut off at the lower of the two half rates."""
    if wave.rate_hz == rate_hz:
        return wave
    divisor = int(np.gcd(wave.rate_hz, rate_hz))
    up, down = rate_hz // divisor, wave.rate_hz // divisor
    stretch = max(1.0, down / up)  # of the kernel, in input samples
    reach = int(np.ceil(_HALF_WIDTH * stretch))
    offsets = np.arange(-reach, reach + 1)
    padded = np.pad(wave.samples.astype(np.float64), (reach, reach + 1))
    count = -(-len(wave.samples) * up // down)
    out = np.empty(count, np.float32)
    block = max(1, _BLOCK_TAPS // len(offsets))
    for start in range(0, count, block):
        steps = np.arange(start, min(start + block, count), dtype=np.int64) * down
        # Of ordinary rates there are few phases, and as few kernels.
        phases, which = np.unique(steps % up, return_inverse=True)
        distance = (offsets[None] - (phases / up)[:, None]) / stretch
        kernel = np.sinc(distance) * _kaiser(distance / _HALF_WIDTH)
        kernel /= kernel.sum(axis=1, keepdims=True)
        heard = padded[(steps // up)[:, None] + offsets[None] + reach]
        out[start : start + len(steps)] = (heard * kernel[which]).sum(axis=1)
    return Waveform(out, rate_hz)


def _kaiser(position: NDArray[np.float64], beta: float = 9.0) -> NDArray[np.float64]:
    inside = np.clip(1 - position**2, 0, None)
    return np.where(np.abs(position) <= 1, np.i0(beta * np.sqrt(inside)) / np.i0(beta), 0.0)


def fit_length(samples: NDArray[np.float32], length: int) -> tuple[NDArray[np.float32], int]:
    """Exactly ``length`` samples, and where they start in ``samples`` (negative where silence was put before).

    A shorter sound is centred in silence; of a longer one the stretch with the most energy is taken.
    """
    if len(samples) <= length:
        before = (length - len(samples)) // 2
        return np.pad(samples, (before, length - len(samples) - before)), -before
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    start = int(np.argmax(energy[length:] - energy[:-length]))
    return samples[start : start + length], start
