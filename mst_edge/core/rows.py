"""Arrays written row by row to ``.npy`` files, so that a full disk is an error that can be told."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Append = Callable[[NDArray[Any]], None]


@contextlib.contextmanager
def npy_rows(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[Append]:
    """Yields a function that appends blocks of rows ``(n, *shape[1:])`` until ``shape`` is full.

    By plain writes: on a full disk they raise ``OSError``, where a write through a memory map kills the
    process (SIGBUS).

    Raises:
        ValueError: more or fewer rows than ``shape`` says.
    """
    kind, bytes_left = np.dtype(dtype), math.prod(shape) * np.dtype(dtype).itemsize

    def append(rows: NDArray[Any]) -> None:
        nonlocal bytes_left
        block = np.ascontiguousarray(rows, dtype=kind)
        if block.shape[1:] != shape[1:] or block.nbytes > bytes_left:
            raise ValueError(f"rows of shape {block.shape} do not go on with an array of {shape}")
        file.write(block.reshape(-1).view(np.uint8).data)
        bytes_left -= block.nbytes

    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield append
        if bytes_left:
            raise ValueError(f"{bytes_left} bytes of an array of {shape} were never written")
        file.flush()
        os.fsync(file.fileno())
