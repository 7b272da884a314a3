"""Readers of raw public files. Archives are read member by member in memory, never unpacked to disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError

_MAX_CLIP_BYTES = 64 << 20
_MAX_IDX_BYTES = 256 << 20
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> NDArray[Any]:
    """An array in LeCun's idx format, gzip-compressed.

    Raises:
        UserError: truncated, corrupt, or not idx.
    """
    try:
        with gzip.open(path, "rb") as file:
            data = file.read(_MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"not a whole gzip file ({error})", where=path, fix="fetch it again") from None
    if len(data) > _MAX_IDX_BYTES:
        raise UserError(f"unpacks to more than {_MAX_IDX_BYTES} bytes", where=path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise UserError("does not start like an idx file", where=path, fix="fetch it again")
    rank = data[3]
    shape = tuple(np.frombuffer(data, ">u4", rank, 4).tolist()) if len(data) >= 4 + 4 * rank else ()
    values = np.frombuffer(data, _IDX_TYPES[data[2]], offset=4 + 4 * rank)
    if not shape or values.size != int(np.prod(shape)):
        raise UserError(f"header says shape {shape}, the file holds {values.size} values", where=path)
    return values.reshape(shape)


class AudioZip:
    """The audio clips in a zip archive, by stem (file name without folder and extension)."""

    _EXTENSIONS = (".wav", ".flac", ".ogg")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"not a whole zip archive ({error})", where=path, fix="fetch it again") from None
        self._members = {
            Path(info.filename).stem: info
            for info in self._zip.infolist()
            if info.filename.lower().endswith(self._EXTENSIONS)
        }

    def stems(self) -> list[str]:
        """Stems of all clips, sorted."""
        return sorted(self._members)

    def extension(self, stem: str) -> str:
        """The clip's file extension, with its dot."""
        return Path(self._members[stem].filename).suffix.lower()

    def read(self, stem: str) -> tuple[NDArray[np.int16], int]:
        """``(samples,)`` 16-bit PCM (channels averaged) and the sample rate in Hz.

        Raises:
            UserError: the member is corrupt or unreasonably large.
        """
        import soundfile

        info = self._members[stem]
        where = f"{self.path}:{info.filename}"
        if info.file_size > _MAX_CLIP_BYTES:
            raise UserError(f"claims to unpack to {info.file_size} bytes", where=where)
        try:
            data = self._zip.read(info)
            pcm, rate = soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)
        except (zipfile.BadZipFile, zlib.error, soundfile.SoundFileError) as error:
            raise UserError(f"cannot be decoded ({error})", where=where, fix="fetch the archive again") from None
        mono = pcm[:, 0] if pcm.shape[1] == 1 else np.round(pcm.mean(axis=1)).astype(np.int16)
        return mono, int(rate)

    def __enter__(self) -> AudioZip:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()


def pcm_digest(pcm: NDArray[np.int16]) -> str:
    """First 16 hexadecimal digits of the sha256 of little-endian 16-bit PCM."""
    return hashlib.sha256(pcm.astype("<i2").tobytes()).hexdigest()[:16]


def resample(wave: NDArray[np.float64], rate_in: int, rate_out: int) -> NDArray[np.float64]:
    """``wave`` at another sample rate in Hz (scipy's polyphase filter)."""
    from math import gcd

    from scipy.signal import resample_poly

    if rate_in == rate_out:
        return wave
    divisor = gcd(rate_in, rate_out)
    return resample_poly(wave, rate_out // divisor, rate_in // divisor)
