"""Test samples as files that a person can play, look at, and hand to ``predict``."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.variant import InputSpec

MOST_EXAMPLES, MOST_UNNAMED = 10, 5


def example_files(
    spec: InputSpec, sample: Callable[[int], NDArray[Any]], target: NDArray[Any], labels: Sequence[str]
) -> Mapping[str, bytes]:
    """File name to content: the first sample of each class, for up to ten classes; the first few where
    samples have no class.

    Sound becomes 16-bit wav, 8-bit pictures become png, strings txt, everything else ``.npy``. A file is named after
    its true class, or its place. The samples are the first ones, not those that a student gets right.

    Args:
        sample: a test sample by its number, as a device records it.
    """
    files: dict[str, bytes] = {}
    for number, name, row in _chosen(target, labels):
        suffix, content = _encode(spec, np.asarray(sample(row)))
        stem = re.sub(r"[^\w-]+", "_", name).strip("_") or f"class_{number}"
        file = f"{stem}{suffix}"
        files[file if file not in files else f"{stem}_{number}{suffix}"] = content
    return files


def _chosen(target: NDArray[Any], labels: Sequence[str]) -> Iterator[tuple[int, str, int]]:
    """A file's number, what it is named after, and the number of its sample."""
    if target.ndim > 1:
        yield from ((row, f"sample_{row}", row) for row in range(min(MOST_UNNAMED, len(target))))
        return
    for number, name in enumerate(labels[:MOST_EXAMPLES]):
        rows = np.flatnonzero(target == number)
        if len(rows):
            yield number, name, int(rows[0])


def _encode(spec: InputSpec, sample: NDArray[Any]) -> tuple[str, bytes]:
    out = io.BytesIO()
    if sample.dtype.kind == "U":
        return ".txt", str(sample).encode("utf-8", errors="replace")
    if spec.kind == "audio" and spec.sample_rate_hz is not None:
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(spec.sample_rate_hz)
            file.writeframes(_pcm16(sample).tobytes())
        return ".wav", out.getvalue()
    if spec.kind == "image" and sample.dtype == np.uint8:
        from PIL import Image

        Image.fromarray(sample.squeeze()).save(out, "PNG")
        return ".png", out.getvalue()
    np.save(out, sample, allow_pickle=False)
    return ".npy", out.getvalue()


def _pcm16(samples: NDArray[Any]) -> NDArray[np.int16]:
    """Samples in [-1, 1] at full scale."""
    return np.clip(np.round(samples.astype(np.float64) * 32768), -32768, 32767).astype("<i2")
