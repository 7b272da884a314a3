"""Bundles made on the spot, without training: their students compare an input with examples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from apps.runtime.tokenizer import Tokenizer
from quantize.variant import InputSpec
from tests.apps.bundles import model_of, packed


def nearest(examples: NDArray[Any], per_class: int, scale: float) -> onnx.ModelProto:
    """The nearest neighbour: ``examples`` ``(classes * per_class, *shape)``, class after class.

    Logits are ``-scale |x - e|²`` of the nearest example of each class, but for a term that all share.
    """
    flat = examples.reshape(len(examples), -1).astype(np.float32)
    tables = {
        "examples": 2 * scale * flat.T,
        "norms": -scale * (flat**2).sum(axis=1),
        "flat": np.array([-1, flat.shape[1]], np.int64),
        "by_class": np.array([-1, len(flat) // per_class, per_class], np.int64),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["cast", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "examples"], ["products"]),
        helper.make_node("Add", ["products", "norms"], ["close"]),
        helper.make_node("Reshape", ["close", "by_class"], ["grouped"]),
        helper.make_node("ReduceMax", ["grouped", "last"], ["logits"], keepdims=0),
    ]
    given = ("x", list(examples.shape[1:]), helper.np_dtype_to_tensor_dtype(examples.dtype))
    return model_of(nodes, given, len(flat) // per_class, **tables)


def write_bundle(
    folder: Path,
    kind: str,
    examples: NDArray[Any],
    labels: Sequence[str],
    *,
    per_class: int = 1,
    rate_hz: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """A bundle of two equal builds, ``a-fp32`` and ``b-int8`` by name, of a nearest neighbour among ``examples``."""
    scale = 8.0 / max(1.0, float(np.square(examples.astype(np.float64)).reshape(len(examples), -1).sum(axis=1).mean()))
    return packed(
        folder,
        nearest(examples, per_class, scale),
        InputSpec("x", kind, examples.shape[1:], str(examples.dtype), rate_hz),
        examples[:: max(1, len(examples) // 8)][:8],
        tuple(labels),
        builds={"a-fp32": "fp32", "b-int8": "int8"},
        tokenizer=tokenizer,
    )


# Digits as strokes in a unit square, from the top left: (x, y).
STROKES: dict[str, list[list[tuple[float, float]]]] = {
    "0": [
        [
            (0.5, 0.05),
            (0.25, 0.2),
            (0.2, 0.5),
            (0.25, 0.8),
            (0.5, 0.95),
            (0.75, 0.8),
            (0.8, 0.5),
            (0.75, 0.2),
            (0.5, 0.05),
        ]
    ],
    "1": [[(0.35, 0.2), (0.5, 0.05), (0.5, 0.95)]],
    "4": [[(0.65, 0.95), (0.65, 0.05), (0.2, 0.65), (0.85, 0.65)]],
    "7": [[(0.2, 0.05), (0.8, 0.05), (0.45, 0.95)]],
}


def drawn_digit(label: str, side: int, width: float = 0.09) -> NDArray[np.float64]:
    """A digit's ink, 0 to 1, ``(side, side)``: strokes of ``width`` times ``side``, with soft edges."""
    rows, columns = (np.mgrid[:side, :side] + 0.5) / side
    ink = np.zeros((side, side))
    for stroke in STROKES[label]:
        for (x0, y0), (x1, y1) in pairwise(stroke):
            along = ((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
            along = np.clip(along, 0, 1)
            distance = np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0))
            ink = np.maximum(ink, np.clip((width / 2 - distance) * side + 0.5, 0, 1))
    return ink


def eye(folder: Path) -> Path:
    """A bundle whose student knows the drawn digits, framed as MNIST's are: 20 pixels in 28."""
    pictures = [np.pad(np.round(255 * drawn_digit(label, 20, 0.12)).astype(np.uint8), 4) for label in STROKES]
    return write_bundle(folder, "image", np.stack(pictures), list(STROKES))


def ear(folder: Path) -> Path:
    """A bundle whose student knows a low and a high tone, at 8 kHz, one second, in four phases each."""
    time_s = np.arange(8000) / 8000
    tones = [np.sin(2 * np.pi * hertz * time_s + phase) for hertz in (300, 1800) for phase in np.arange(4) * np.pi / 2]
    return write_bundle(
        folder, "audio", (0.5 * np.stack(tones)).astype(np.float32), ["low", "high"], per_class=4, rate_hz=8000
    )


def reader(folder: Path) -> Path:
    """A bundle whose student tells two texts apart."""
    tokenizer = Tokenizer((), 16, True)
    ids = tokenizer.encode_all(["we need water", "nice weather"])
    return write_bundle(folder, "text", ids, ["needs_help", "chatter"], tokenizer=tokenizer)
