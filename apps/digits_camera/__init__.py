"""Recognises handwritten digits in picture files: finds the ink, centres it, evens out the light."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime import Bundle, BundleError
from apps.runtime.images import read_image

_WORK = 128  # pixels on a side that a picture is looked at with
_MARGIN = 0.2  # of the digit's longer side, left free around it


def main(arguments: list[str]) -> int:
    """``mst-edge app digits-camera BUNDLE FILE...``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mst-edge app digits-camera", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle whose student sees")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="pictures")
    parser.add_argument("--json", action="store_true", help="one JSON object per picture")
    parser.add_argument("--as-is", action="store_true", help="only resize: the picture is framed already")
    chosen = parser.parse_args(arguments)
    with Bundle.open(chosen.bundle) as bundle:
        spec = bundle.manifest.input
        if spec.kind != "image" or spec.dtype != "uint8" or len(spec.sizes) != 2:
            raise BundleError("its student does not read grey pictures", where=chosen.bundle)
        bundle.load()
        for note in bundle.notes:
            print(f"note: {note}", file=sys.stderr)
        for file in chosen.files:
            grey = read_image(file, spec.sizes if chosen.as_is else (_WORK, _WORK))
            sample = grey if chosen.as_is else frame_digit(grey, spec.sizes)
            said = bundle.predict(sample)
            if chosen.json:
                record = {"file": str(file), "label": said.label, "confidence": said.confidence}
                print(json.dumps({**record, "latency_ms": said.latency_ms}), flush=True)
            else:
                print(f"{file}  {said.label:>4}  {said.confidence:6.1%}  {said.latency_ms:7.3f} ms", flush=True)
    return 0


def frame_digit(grey: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Light ink on black, centred, ``shape`` pixels; of dark ink on uneven paper or the reverse.

    The background is taken from the picture's border, row by row and column by column, so that a shadow
    across the page does not count as ink.
    """
    values = grey.astype(np.float64)
    background = (
        np.linspace(0, 1, len(values))[:, None] * (values[-4:].mean(axis=0) - values[:4].mean(axis=0))
    ) + values[:4].mean(axis=0)
    contrast = values - background
    if contrast.mean() < 0:
        contrast = -contrast
    ink = np.clip(contrast, 0, None)
    strong = ink > max(20.0, 0.35 * float(np.percentile(ink, 99)))
    if not strong.any():
        return np.zeros(shape, np.uint8)
    rows, columns = np.flatnonzero(strong.any(axis=1)), np.flatnonzero(strong.any(axis=0))
    ink = np.where(strong, ink, 0.0)
    return _centre(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], shape)


def _centre(ink: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    from PIL import Image

    side = round(max(ink.shape) * (1 + 2 * _MARGIN))
    canvas = np.zeros((side, side))
    top, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink * (255.0 / ink.max())
    picture: Any = Image.fromarray(canvas.astype(np.uint8)).resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.uint8)
