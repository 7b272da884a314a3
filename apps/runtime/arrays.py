""".npy files that a stranger may have written: nothing is believed that the bytes do not hold."""

from __future__ import annotations

import ast
import math
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # characters; numpy's own limit, too
_NUMBERS = re.compile(r"[<>|=]?[fiu][1248]")


def decode_npy(data: bytes, where: object = "array") -> NDArray[Any]:
    """The array of an ``.npy`` file: floats or whole numbers, of the shape that its header tells.

    numpy's own reader takes memory for whatever the header claims, before it reads a value.

    Raises:
        BundleError: not such a file, or it holds something else than numbers, or fewer than it claims.
    """
    try:
        header, start = _header(data)
        dtype, shape = np.dtype(header["descr"]), header["shape"]
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError, struct.error) as error:
        raise BundleError(f"not a readable .npy array ({type(error).__name__})", where=where) from None
    count = math.prod(shape)
    if count * dtype.itemsize > len(data) - start:
        raise BundleError(f"claims {shape} {dtype} and holds {len(data) - start} bytes", where=where)
    values = np.frombuffer(data, dtype, count, start)
    return values.reshape(shape, order="F" if header["fortran_order"] else "C")


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """What the header says, and where the values start."""
    if data[:6] != MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise ValueError("no .npy header")
    width = 2 if data[6] == 1 else 4
    (length,) = struct.unpack_from("<H" if width == 2 else "<I", data, 8)
    start = 8 + width + length
    if length > _MAX_HEADER or start > len(data):
        raise ValueError("header too long")
    header = ast.literal_eval(data[8 + width : start].decode("latin1").strip())
    if not isinstance(header, dict) or not _NUMBERS.fullmatch(header["descr"]):
        raise ValueError("no numbers")
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 32:
        raise ValueError("no shape")
    return {**header, "fortran_order": bool(header["fortran_order"])}, start
