"""Memory that stays with the process between batches: what training frees, its next step takes again."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator

# Names in malloc.h (glibc), and the largest value that both thresholds take.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MOST = 2**31 - 1


@contextlib.contextmanager
def freed_memory_is_reused() -> Iterator[None]:
    """While open, freed memory stays with the process; see ``reuse_freed_memory``."""
    reuse_freed_memory(True)
    try:
        yield
    finally:
        reuse_freed_memory(False)


def reuse_freed_memory(reuse: bool) -> None:
    """Whether freed memory stays with the process, however large the block, or goes back to the system.

    By default glibc maps every block above 32 MB anew and gives it back when it is freed, so a network with large
    maps pays for the same pages again in every layer of every batch: a third of the time of a small CNN on
    spectrograms of 112 x 112. Elsewhere than with glibc nothing changes.
    """
    options = _mallopt()
    if options is None:
        return
    # Without reuse: what glibc itself arrives at once a process has freed a large block.
    options(_MMAP_MAX, 0 if reuse else 65536)
    options(_MMAP_THRESHOLD, 32 << 20)
    options(_TRIM_THRESHOLD, _MOST if reuse else 64 << 20)
    if not reuse:
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
