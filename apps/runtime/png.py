"""Label maps as PNG files that any viewer shows in colours. Standard library and numpy only."""

from __future__ import annotations

import colorsys
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _GREY = 3, 0
_GOLDEN = 0.618033988749895  # steps of hue that never come close to one another


def write_label_map(path: Path, labels: NDArray[Any]) -> None:
    """Writes class numbers ``(H, W)`` as an indexed PNG: pixel values are the numbers, colours tell them apart.

    More than 256 classes are written as 16-bit grey.

    Raises:
        BundleError: the file cannot be written.
    """
    height, width = labels.shape
    wide = int(labels.max()) > 255
    rows = labels.astype(">u2" if wide else np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)  # each row says that it is not filtered
    header = struct.pack(">IIBBBBB", width, height, 16 if wide else 8, _GREY if wide else _PALETTE, 0, 0, 0)
    palette = b"" if wide else _chunk(b"PLTE", b"".join(_colour(k) for k in range(256)))
    body = _chunk(b"IHDR", header) + palette + _chunk(b"IDAT", zlib.compress(raw)) + _chunk(b"IEND", b"")
    try:
        path.write_bytes(_SIGNATURE + body)
    except OSError as error:
        raise BundleError(f"cannot be written ({error})", where=path) from None


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _colour(number: int) -> bytes:
    """Class 0 is black, the others go round the colours."""
    if number == 0:
        return b"\0\0\0"
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.65, 0.95 if number % 2 else 0.7)
    return bytes(round(255 * part) for part in (red, green, blue))
