"""Digits in a picture, each framed as the student's own training pictures are. numpy and Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.digits_camera.ink import LOOKED_AT, Box, ink_of, marked, signs

_PLAIN_EXTENT = 20 / 28  # of MNIST: digits in a square of 20 pixels, centred in 28


@dataclass(frozen=True)
class Framing:
    """How a student's pictures are framed.

    Attributes:
        shape: rows and columns.
        extent: longer side of the ink, as a share of the picture's.
        light_ink: whether ink is light on dark ground.
    """

    shape: tuple[int, int]
    extent: float = _PLAIN_EXTENT
    light_ink: bool = True

    @classmethod
    def of(cls, pictures: NDArray[np.uint8]) -> Framing:
        """As in examples ``(n, H, W)``, such as a bundle's reference inputs."""
        values = pictures.astype(np.float64)
        light = bool(np.median(values) < 0.5 * (values.min() + values.max()))
        extents = []
        for picture in values if light else 255.0 - values:
            strong = picture > 0.5 * picture.max()
            sides = (np.flatnonzero(strong.any(axis=axis)) for axis in (0, 1))
            extents.append(max((side[-1] - side[0] + 1) / pictures.shape[1] for side in sides if len(side)))
        return cls((pictures.shape[1], pictures.shape[2]), float(np.median(extents)), light)


@dataclass(frozen=True)
class Digit:
    """Where in the picture something like a digit is, and what of it the student sees, ``(rows, columns)``."""

    box: Box
    sample: NDArray[np.uint8]


def find_digits(grey: NDArray[np.uint8], framing: Framing) -> list[Digit]:
    """What may be digits in ``(H, W)``, in reading order: dark on light or light on dark, under uneven light."""
    if min(grey.shape) < 3:
        return []
    scale = min(1.0, LOOKED_AT / max(grey.shape))
    small = _resized(grey, max(3, round(grey.shape[0] * scale)), max(3, round(grey.shape[1] * scale)))
    ink = ink_of(small)
    across = (grey.shape[0] / small.shape[0], grey.shape[1] / small.shape[1])
    found = []
    for box, own in signs(marked(ink)):
        around = np.pad(own, 1)  # the soft edge of a stroke belongs to it
        own_ink = np.pad(ink, 1)[box.top : box.bottom + 2, box.left : box.right + 2] * _grown(around)
        found.append(Digit(_scaled(box, across), framed(own_ink, framing)))
    return found


def framed(ink: NDArray[Any], framing: Framing) -> NDArray[np.uint8]:
    """Ink ``(h, w)``, 0 where there is none, as the student's pictures are: same size, centred by weight."""
    rows, columns = framing.shape
    full = float(np.percentile(ink[ink > 0], 80)) if (ink > 0).any() else 0.0
    if full <= 0:
        return np.full(framing.shape, 0 if framing.light_ink else 255, np.uint8)
    even = np.clip(ink / full, 0, 1) * 255
    scale = framing.extent * min(rows, columns) / max(even.shape)
    inner = _resized(even, max(1, round(even.shape[0] * scale)), max(1, round(even.shape[1] * scale)))
    out = np.zeros(framing.shape, np.uint8)
    weights = inner.astype(np.float64) + 1e-9
    top = _start(rows, inner.shape[0], float((weights.sum(axis=1) @ np.arange(len(inner))) / weights.sum()))
    left = _start(columns, inner.shape[1], float((weights.sum(axis=0) @ np.arange(inner.shape[1])) / weights.sum()))
    out[top : top + inner.shape[0], left : left + inner.shape[1]] = inner[: rows - top, : columns - left]
    return out if framing.light_ink else 255 - out


def _start(size: int, inner: int, centre: float) -> int:
    """Where ``inner`` pixels begin among ``size``, so that their ``centre`` of weight is in the middle, all inside."""
    return int(np.clip(round((size - 1) / 2 - centre), 0, max(0, size - inner)))


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``mask`` and its neighbours."""
    padded = np.pad(mask, 1)
    shifts = [padded[r : r + mask.shape[0], c : c + mask.shape[1]] for r in (0, 1, 2) for c in (0, 1, 2)]
    return np.logical_or.reduce(shifts)


def _scaled(box: Box, by: tuple[float, float]) -> Box:
    return Box(int(box.top * by[0]), int(box.left * by[1]), round(box.bottom * by[0]), round(box.right * by[1]))


def _resized(values: NDArray[Any], rows: int, columns: int) -> NDArray[np.uint8]:
    from PIL import Image

    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    method = Image.Resampling.BOX if rows < values.shape[0] else Image.Resampling.BILINEAR
    return np.asarray(picture.resize((columns, rows), method), dtype=np.uint8)
