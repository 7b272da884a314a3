"""Windows of a stream: a ring buffer, cut every ``hop`` samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class Ring:
    """The latest ``size`` samples ``(n, *tail)``, always in one piece: of memory for twice as many."""

    def __init__(self, size: int, tail: tuple[int, ...] = ()) -> None:
        self._size = size
        self._memory = np.zeros((2 * size, *tail), np.float32)
        self._end = size

    def push(self, samples: NDArray[np.float32]) -> None:
        """Adds samples; of more than ``size`` only the last are kept."""
        samples = samples[-self._size :]
        if self._end + len(samples) > len(self._memory):
            self._memory[: self._size] = self._memory[self._end - self._size : self._end].copy()
            self._end = self._size
        self._memory[self._end : self._end + len(samples)] = samples
        self._end += len(samples)

    def latest(self) -> NDArray[np.float32]:
        """The last ``size`` samples, zeros where there were fewer; valid until the next ``push``."""
        return self._memory[self._end - self._size : self._end]


class Windows:
    """Cuts a stream into windows of ``size`` samples that begin at multiples of ``hop``.

    Args:
        padded: whether there is silence before and after the stream, so that every window that holds at least one
            sample of it is given: from ``-lead`` on, the multiple of ``hop`` next to ``-size``. Otherwise only windows
            that lie inside the stream are given.

    Attributes:
        place: samples taken so far.
    """

    def __init__(self, size: int, hop: int, tail: tuple[int, ...] = (), *, padded: bool = True) -> None:
        if not 1 <= hop <= size:
            raise ValueError(f"a hop of {hop} does not fit windows of {size} samples")
        self.place = 0
        self._size, self._hop, self._padded = size, hop, padded
        self._tail = tail
        self._ring = Ring(size, tail)
        self._next_end = size - (size - 1) // hop * hop if padded else size

    @property
    def wanted(self) -> int:
        """How many samples are missing to the end of the next window."""
        return self._next_end - self.place

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Takes at most ``wanted`` samples ``(n, *tail)``; the window that they complete, valid until the next."""
        if len(samples) > self.wanted:
            raise ValueError(f"{len(samples)} samples, {self.wanted} are wanted")
        self._ring.push(samples)
        self.place += len(samples)
        if self.wanted:
            return None
        self._next_end += self._hop
        return self._ring.latest()

    def missing(self) -> int:
        """How much silence after the stream completes the windows that hold some of it."""
        if not self._padded or not self.place:
            return 0
        last_start = (self.place - 1) // self._hop * self._hop
        return last_start + self._size - self.place


def pieces(samples: NDArray[np.float32], windows: Windows) -> Iterator[NDArray[np.float32]]:
    """``samples`` cut where windows end."""
    start = 0
    while start < len(samples):
        piece = samples[start : start + windows.wanted]
        start += len(piece)
        yield piece
