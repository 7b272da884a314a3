"""Readers of raw public files. Archives are read member by member in memory, never unpacked to disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError

_MAX_FILE_BYTES = 64 << 20
_MAX_IDX_BYTES = 256 << 20
_STREAMED_RIFF = 0xFFFFFFFF  # what a writer that cannot seek leaves as length
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


class RawFiles:
    """Files of one kind in a zip archive or below a folder, by stem (name without folder and extension).

    Names only select members, which are read in memory: no path of an archive is ever written to.

    Raises:
        UserError: not a whole archive, or two different files share a stem.
    """

    def __init__(self, path: Path, extensions: Sequence[str]) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        members: dict[str, tuple[str, int]] = {}
        for name, size in self._list_folder() if path.is_dir() else self._list_zip():
            file = PurePosixPath(name)
            if file.suffix.lower() not in extensions or file.name.startswith(".") or "__MACOSX" in file.parts:
                continue
            if members.setdefault(file.stem, (name, size))[1] != size:
                raise UserError(f"holds two different files called {file.stem}", where=path)
        self._members = members

    def _list_folder(self) -> Iterator[tuple[str, int]]:
        for file in sorted(self.path.rglob("*")):
            if file.is_file():
                yield file.relative_to(self.path).as_posix(), file.stat().st_size

    def _list_zip(self) -> Iterator[tuple[str, int]]:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"not a whole zip archive ({error})", where=self.path, fix="fetch it again") from None
        for info in self._zip.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size

    def __contains__(self, stem: object) -> bool:
        return stem in self._members

    def stems(self) -> list[str]:
        """Stems of all files, sorted."""
        return sorted(self._members)

    def extension(self, stem: str) -> str:
        """The file's extension in lower case, with its dot."""
        return PurePosixPath(self._members[stem][0]).suffix.lower()

    def where(self, stem: str) -> str:
        """The file's place, for messages."""
        return f"{self.path}{':' if self._zip else '/'}{self._members[stem][0]}"

    def content(self, stem: str) -> bytes:
        """The file's bytes.

        Raises:
            UserError: the member is corrupt or unreasonably large.
        """
        name, size = self._members[stem]
        if size > _MAX_FILE_BYTES:
            raise UserError(f"claims to hold {size} bytes", where=self.where(stem))
        if self._zip is None:
            return (self.path / name).read_bytes()
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"cannot be decoded ({error})", where=self.where(stem), fix="fetch it again") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()


class AudioFiles(RawFiles):
    """The sound clips in a zip archive or below a folder, by stem."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, (".wav", ".flac", ".ogg"))

    def read(self, stem: str) -> tuple[NDArray[np.int16], int]:
        """``(samples,)`` 16-bit PCM (channels averaged) and the sample rate in Hz.

        Raises:
            UserError: the file is corrupt, cut off, empty or unreasonably large.
        """
        import soundfile

        where, content = self.where(stem), self.content(stem)
        # libsndfile reads a cut wav as a shorter one without a word: the header knows better.
        if content[:4] == b"RIFF" and len(content) + 1 < int.from_bytes(content[4:8], "little") + 8 < _STREAMED_RIFF:
            raise UserError(f"is cut off: holds {len(content)} bytes, its header says more", where=where)
        try:
            with soundfile.SoundFile(io.BytesIO(content)) as sound:
                rate, frames = sound.samplerate, sound.frames
                pcm = sound.read(dtype="int16", always_2d=True)
        except soundfile.SoundFileError as error:
            raise UserError(f"cannot be decoded ({error})", where=where, fix="fetch it again") from None
        if not len(pcm) or len(pcm) < frames:
            raise UserError(f"is cut off: {len(pcm)} of {frames} samples can be decoded", where=where)
        mono = pcm[:, 0] if pcm.shape[1] == 1 else np.round(pcm.mean(axis=1)).astype(np.int16)
        return mono, int(rate)


class NpzFile:
    """The arrays in an ``.npz`` file, read row by row: none is ever wholly in memory.

    Raises:
        UserError: not a whole npz file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"not a whole npz file ({error})", where=path) from None
        self._names = {name.removesuffix(".npy") for name in self._zip.namelist()}

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array.

        Raises:
            UserError: there is no such array, or it holds Python objects.
        """
        with self._open(name) as file:
            return self._header(file, name)[0]

    def rows(self, name: str) -> Iterator[NDArray[Any]]:
        """The array's rows, one in memory at a time.

        Raises:
            UserError: the array is cut off, damaged or holds Python objects.
        """
        with self._open(name) as file:
            shape, dtype = self._header(file, name)
            count = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            for row in range(shape[0]):
                try:
                    content = file.read(count)
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise UserError(f"row {row} of {name} is damaged ({error})", where=self.path) from None
                if len(content) < count:
                    raise UserError(f"{name} is cut off in row {row} of {shape[0]}", where=self.path)
                yield np.frombuffer(content, dtype).reshape(shape[1:])

    def whole(self, name: str) -> NDArray[Any]:
        """A small array, in memory."""
        rows = list(self.rows(name))
        return np.stack(rows) if rows else np.zeros(self.shape(name))

    def _open(self, name: str) -> IO[bytes]:
        if name not in self:
            raise UserError(f"holds no array {name}, only {', '.join(sorted(self._names)) or 'none'}", where=self.path)
        return self._zip.open(f"{name}.npy")

    def _header(self, file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{name} is no array ({error})", where=self.path) from None
        if dtype.hasobject or fortran or not shape:
            raise UserError(
                f"{name} must be an array of numbers or names in C order",
                where=self.path,
                fix="numpy.ascontiguousarray",
            )
        return shape, dtype

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()


def finite(rows: Iterable[NDArray[Any]], what: str, where: object) -> Iterator[NDArray[Any]]:
    """The rows as they are.

    Raises:
        UserError: one holds NaN or infinity; names it.
    """
    for number, row in enumerate(rows):
        if not np.isfinite(row).all():
            raise UserError(f"{what} of sample {number} holds NaN or infinity", where=where)
        yield row


def decode_picture(content: bytes, size: int, where: object) -> NDArray[np.uint8]:
    """``(size, size, 3)`` RGB of a picture file's bytes, resized without a crop.

    Raises:
        UserError: damaged, or of more pixels than any camera's.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content)) as image:
                resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"not a whole picture ({error})", where=where) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UserError("has more pixels than any camera: refused", where=where) from None
    return np.asarray(resized, dtype=np.uint8)


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
