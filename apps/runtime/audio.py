"""Sound files to waveforms that a student reads: decoded, mixed to mono, resampled, fitted. numpy only."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

_MAX_FILE_BYTES = 1 << 30
_MAX_DECODED = 1 << 28  # values, of packed formats: hours of silence pack into nothing
PCM, FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_HALF_WIDTH = 16  # zero crossings of the resampling kernel on each side
_GROUP = 128  # outputs of the resampler that are made at once, at least
_LONGEST_PERIOD = 512
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


@dataclass(frozen=True)
class SampleFormat:
    """How sound lies in bytes: interleaved ``channels`` of ``bits``, little-endian.

    Raises:
        BundleError: a coding that is not PCM of 8, 16, 24 or 32 bits or float of 32 or 64; ``where`` names it.
    """

    coding: int
    bits: int
    channels: int
    rate_hz: int
    where: object = "sound"

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= 64 or not 1000 <= self.rate_hz <= 768_000:
            raise BundleError(f"claims {self.channels} channels at {self.rate_hz} Hz", where=self.where)
        if self.bits not in {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}.get(self.coding, ()):
            raise BundleError(
                f"is coded as format {self.coding} with {self.bits} bits",
                where=self.where,
                fix="convert it to 16-bit PCM, for example with `sox IN -b 16 OUT.wav`",
            )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * self.bits // 8

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """``(n,)`` mono, the mean of the channels; half a frame at the end is left out."""
        data = data[: len(data) // self.frame_bytes * self.frame_bytes]
        values: NDArray[Any]
        if self.coding == FLOAT:
            with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinity, and is refused as such
                values = np.frombuffer(data, f"<f{self.bits // 8}").astype(np.float32)
        elif self.bits == 8:
            values = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
        elif self.bits == 16:
            values = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        elif self.bits == 24:
            raw = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
            unsigned = raw[:, 0] | raw[:, 1] << 8 | raw[:, 2] << 16
            values = ((unsigned ^ 0x800000) - 0x800000).astype(np.float32) / 0x800000
        else:
            values = (np.frombuffer(data, "<i4") / 2147483648.0).astype(np.float32)
        with np.errstate(all="ignore"):
            return values.reshape(-1, self.channels).mean(axis=1, dtype=np.float32)


def parse_wav(data: bytes, where: object = "wav") -> Waveform:
    """A RIFF wave file: PCM of 8, 16, 24 or 32 bits, or float of 32 or 64, any number of channels.

    A data chunk that claims more than the file holds is read as far as it goes.

    Raises:
        BundleError: not a wave file, or a coding that is not among these.
    """
    file = io.BytesIO(data)
    layout, size = find_sound(file, where)
    return Waveform(layout.decode(file.read(size)), layout.rate_hz)


def find_sound(file: BinaryIO, where: object = "wav") -> tuple[SampleFormat, int]:
    """Leaves a RIFF wave file at its first sample; its format, and how many bytes of sound it claims to hold.

    Raises:
        BundleError: not a wave file, or a coding that ``SampleFormat`` does not know.
    """
    head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise BundleError("not a RIFF wave file", where=where)
    layout: SampleFormat | None = None
    while len(head := file.read(8)) == 8:
        name, size = head[:4], int(struct.unpack_from("<I", head, 4)[0])
        if name == b"data":
            if layout is None:
                raise BundleError("has its data before its format", where=where)
            return layout, size
        start = file.tell()
        if name == b"fmt ":
            layout = _layout(file.read(min(size, 40)), where)
        file.seek(start + size + size % 2)
    raise BundleError("has no data chunk", where=where)


def _layout(body: bytes, where: object) -> SampleFormat:
    if len(body) < 16:
        raise BundleError("has a damaged format chunk", where=where)
    coding, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if coding == _EXTENSIBLE and len(body) >= 26:
        coding = struct.unpack_from("<H", body, 24)[0]
    return SampleFormat(coding, bits, channels, rate, where)


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
    """The waveform at another rate, see ``Resampler``."""
    if wave.rate_hz == rate_hz:
        return wave
    resampler = Resampler(wave.rate_hz, rate_hz)
    return Waveform(np.concatenate([resampler.push(wave.samples), resampler.finish()]), rate_hz)


class Resampler:
    """Brings sound to another rate piece by piece: Kaiser-windowed sinc, cut off at the lower of the two half rates.

    Outputs are made in groups of a fixed size that begin at fixed places, so that the same sound gives the same bits
    however it is cut into pieces. There is silence before and after it; n samples become ceil(n * to / from).
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        divisor = int(np.gcd(from_hz, to_hz))
        self._up, self._down = to_hz // divisor, from_hz // divisor
        self._stretch = max(1.0, self._down / self._up)  # of the kernel, in input samples
        self._reach = int(np.ceil(_HALF_WIDTH * self._stretch))
        # In groups of whole periods all kernels are the same; a period of odd rates is too long for that.
        periods = -(-_GROUP // self._up)
        self._group = periods * self._up if self._up <= _LONGEST_PERIOD else _GROUP
        self._plan(0)
        self._pieces = [np.zeros(self._reach)]
        self._held = self._reach  # samples in ``_pieces``; the first is ``_reach`` before the next output's place
        self._taken = self._made = 0

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The outputs ``(m,)`` that can be made with ``samples`` ``(n,)`` and what came before."""
        self._taken += len(samples)
        return self._through(samples)

    def finish(self) -> NDArray[np.float32]:
        """The outputs that remain when the sound is over."""
        count = -(-self._taken * self._up // self._down)
        missing, parts = count - self._made, [np.empty(0, np.float32)]
        while missing > sum(map(len, parts)):
            parts.append(self._through(np.zeros(self._index[-1, -1] + 1, np.float32)))
        return np.concatenate(parts)[:missing]

    def _through(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        self._pieces.append(samples.astype(np.float64))
        self._held += len(samples)
        out: list[NDArray[np.float32]] = []
        if self._held > self._index[-1, -1]:
            sound, start = np.concatenate(self._pieces), 0
            while len(sound) - start > self._index[-1, -1]:
                np.take(sound[start:], self._index, out=self._gathered, mode="clip")
                out.append(np.einsum("ij,ij->i", self._gathered, self._kernel).astype(np.float32))
                place = self._made * self._down
                self._made += self._group
                start += self._made * self._down // self._up - place // self._up
                if self._made * self._down % self._up != place % self._up:
                    self._plan(self._made * self._down % self._up)
            self._pieces, self._held = [sound[start:]], len(sound) - start
        return np.concatenate(out) if out else np.empty(0, np.float32)

    def _plan(self, phase: int) -> None:
        """Which inputs a group takes, and with which weights; its first output lies ``phase / up`` after an input."""
        steps = phase + np.arange(self._group, dtype=np.int64) * self._down
        offsets = np.arange(-self._reach, self._reach + 1)
        distance = (offsets[None] - (steps % self._up / self._up)[:, None]) / self._stretch
        kernel = np.sinc(distance) * _kaiser(distance / _HALF_WIDTH)
        self._kernel = kernel / kernel.sum(axis=1, keepdims=True)
        self._index = (steps // self._up)[:, None] + offsets[None] + self._reach
        self._gathered = np.empty(self._index.shape)


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
