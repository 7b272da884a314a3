"""Where a stream comes from: sound files, standard input, the microphone, tables of sensor readings."""

from __future__ import annotations

import queue
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from apps.runtime import BundleError
from apps.runtime.audio import FLOAT, PCM, SampleFormat, find_sound, read_audio

BLOCK_S = 0.05
FORMATS = {"u8": (PCM, 8), "s16": (PCM, 16), "s24": (PCM, 24), "s32": (PCM, 32), "f32": (FLOAT, 32), "f64": (FLOAT, 64)}


@dataclass(frozen=True)
class Block:
    """A piece of a stream: ``samples`` ``(n,)`` or ``(n, channels)`` float32, of which so many were ``dropped``: lost
    on the way, silence stands for them."""

    samples: NDArray[np.float32]
    dropped: int = 0


class Source(ABC):
    """A stream of blocks. ``rate_hz`` is None where the source does not know it."""

    name: str
    rate_hz: int | None

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The stream, once.

        Raises:
            BundleError: it cannot be read, or stalled.
        """


class SoundFile(Source):
    """A wav file of any length, never in memory as a whole; other formats through soundfile, which are.

    A header that claims more sound than there is ends the stream where the file ends.

    Raises:
        BundleError: no such file, or not sound.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._layout: SampleFormat | None = None
        if not path.is_file():
            raise BundleError("no such file", where=path)
        with path.open("rb") as file:
            if file.read(4) == b"RIFF":
                file.seek(0)
                self._layout, self._size = find_sound(file, path)
                self._start = file.tell()
                self.rate_hz = self._rate = self._layout.rate_hz
                return
        self._wave = read_audio(path)
        self.rate_hz = self._rate = self._wave.rate_hz

    def blocks(self) -> Iterator[Block]:
        step = max(1, int(BLOCK_S * self._rate))
        if self._layout is None:
            for start in range(0, len(self._wave.samples), step):
                yield Block(self._wave.samples[start : start + step])
            return
        with self._path.open("rb") as file:
            file.seek(self._start)
            left = self._size
            while data := file.read(min(left, step * self._layout.frame_bytes)):
                left -= len(data)
                yield Block(self._layout.decode(data))


class RawSound(Source):
    """PCM without a header, as ``arecord -t raw`` or ``ffmpeg -f s16le`` write it.

    Args:
        timeout_s: how long the pipe may give nothing; None for as long as it likes.
    """

    name = "-"

    def __init__(self, file: BinaryIO, layout: SampleFormat, timeout_s: float | None = None) -> None:
        self.rate_hz = layout.rate_hz
        self._file, self._layout, self._timeout_s = file, layout, timeout_s

    def blocks(self) -> Iterator[Block]:
        most = max(1, int(BLOCK_S * self._layout.rate_hz)) * self._layout.frame_bytes
        held = b""
        while data := self._read(most):
            held += data
            whole = len(held) // self._layout.frame_bytes * self._layout.frame_bytes
            if whole:
                yield Block(self._layout.decode(held[:whole]))
            held = held[whole:]

    def _read(self, most: int) -> bytes:
        """What is there, at most ``most`` bytes; nothing at the end."""
        if self._timeout_s is not None and not select.select([self._file], [], [], self._timeout_s)[0]:
            raise BundleError(f"gave nothing for {self._timeout_s:g} s", where="standard input")
        read: Any = getattr(self._file, "read1", self._file.read)  # not until ``most`` bytes are there
        data: bytes = read(most)
        return data


class Inbox:
    """Blocks from a thread that must not wait, for one that may be late.

    What comes while nobody takes it is kept, up to ``kept_s`` of it, and then dropped: counted, and silence stands for
    it, so that times stay right.
    """

    def __init__(self, name: str, timeout_s: float, kept_s: float = 5.0) -> None:
        self._name, self._timeout_s = name, timeout_s
        self._queue: queue.Queue[Block] = queue.Queue(maxsize=int(kept_s / BLOCK_S))
        self._lost = 0

    def put(self, samples: NDArray[np.float32], lost: int = 0) -> None:
        """A block, before which ``lost`` samples are missing; never waits."""
        lost += self._lost
        try:
            self._queue.put_nowait(Block(np.concatenate([np.zeros(lost, np.float32), samples]), lost))
            self._lost = 0
        except queue.Full:
            self._lost = lost + len(samples)

    def blocks(self) -> Iterator[Block]:
        """Blocks without an end.

        Raises:
            BundleError: there was none for ``timeout_s``.
        """
        while True:
            try:
                yield self._queue.get(timeout=self._timeout_s)
            except queue.Empty:
                raise BundleError(
                    f"gave nothing for {self._timeout_s:g} s", where=self._name, fix="is it still plugged in?"
                ) from None


class Microphone(Source):
    """The microphone, through sounddevice (PortAudio) and an ``Inbox``.

    Args:
        device: number or part of a name, as ``python -m sounddevice`` lists them; None for the system's choice.
        timeout_s: how long it may give nothing.

    Raises:
        BundleError: sounddevice is not installed, or there is no such microphone.
    """

    def __init__(self, rate_hz: int, device: str | None = None, timeout_s: float = 3.0) -> None:
        try:
            import sounddevice
        except (ImportError, OSError) as error:
            raise BundleError(
                f"needs sounddevice and PortAudio ({error})",
                where="--microphone",
                fix="pip install 'mst-edge[microphone]', on Linux also apt-get install libportaudio2",
            ) from None
        self.name = "microphone"
        self.rate_hz = self._rate = rate_hz
        self._library = sounddevice
        self._device = int(device) if device is not None and device.isdecimal() else device
        self._inbox = Inbox(self.name, timeout_s)

    def blocks(self) -> Iterator[Block]:
        try:
            opened = self._library.InputStream(
                samplerate=self._rate,
                blocksize=max(1, int(BLOCK_S * self._rate)),
                device=self._device,
                channels=1,
                dtype="float32",
                callback=self._take,
            )
        except (self._library.PortAudioError, ValueError) as error:
            raise BundleError(
                f"cannot be opened at {self._rate} Hz ({error})",
                where="--microphone",
                fix="`python -m sounddevice` lists devices",
            ) from None
        with opened:
            yield from self._inbox.blocks()

    def _take(self, data: NDArray[np.float32], frames: int, when: Any, status: Any) -> None:
        """Called by PortAudio's own thread. It tells that it lost sound, not how much: counted as one block."""
        self._inbox.put(data[:, 0], frames if status.input_overflow else 0)


class Table(Source):
    """Rows of numbers from a CSV text, a column per channel; a line of column names is skipped.

    Args:
        lines: of the text.
        columns: how many numbers the student reads per row.
        skip: columns on the left that are none of them (a time stamp).

    Attributes:
        skipped: lines that were no rows of numbers.
    """

    _ROWS = 32

    def __init__(
        self, name: str, lines: Iterable[str], columns: int, skip: int = 0, rate_hz: int | None = None
    ) -> None:
        self.name, self.rate_hz = name, rate_hz
        self.skipped = 0
        self._lines, self._columns, self._skip = lines, columns, skip

    def blocks(self) -> Iterator[Block]:
        """A block per so many rows, and at the latest every 50 ms."""
        rows: list[list[float]] = []
        since = time.monotonic()
        for number, line in enumerate(self._lines, start=1):
            if line.strip():
                rows += self._row(line, number)
            if rows and (len(rows) >= self._ROWS or time.monotonic() - since > BLOCK_S):
                yield Block(np.array(rows, np.float32))
                rows, since = [], time.monotonic()
        if rows:
            yield Block(np.array(rows, np.float32))

    def _row(self, line: str, number: int) -> list[list[float]]:
        """The line's numbers; NaN for a field that is empty. Nothing for what is no row: counted."""
        fields = line.strip().split(",")[self._skip :]
        try:
            row = [float(value) if value.strip() else float("nan") for value in fields]
        except ValueError:
            self.skipped += number > 1  # the first line may name columns
            return []
        if len(row) != self._columns:
            raise BundleError(
                f"line {number} has {len(row)} values, the student reads {self._columns}",
                where=self.name,
                fix="--skip-columns leaves out columns on the left, a time stamp say",
            )
        return [row]


def in_real_time(blocks: Iterator[Block], rate_hz: float) -> Iterator[Block]:
    """The blocks as slowly as they were recorded."""
    begun, given = time.monotonic(), 0
    for block in blocks:
        given += len(block.samples)
        time.sleep(max(0.0, begun + given / rate_hz - time.monotonic()))
        yield block
