"""What a student sees of an input, small enough for a page: spectrogram, picture or tokens."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime.manifest import InputSpec
from apps.runtime.tokenizer import FIRST_BYTE, FIRST_MERGE, URL, USER, AnyTokenizer
from apps.runtime.tokenizer_json import JsonTokenizer

_RANGE_DB = 70.0
_MOST_COLUMNS = 400
_MOST_PIXELS = 320  # of a picture's side, in the page


def view_of(array: NDArray[Any], spec: InputSpec, tokenizer: AnyTokenizer | None) -> dict[str, Any]:
    """One sample ``(*spec.shape)`` as a JSON object whose ``kind`` tells what else is in it."""
    if tokenizer is not None:
        return {"kind": "tokens", "tokens": token_texts(array, tokenizer), "most": tokenizer.max_tokens}
    if spec.kind == "audio" and spec.sample_rate_hz is not None:
        return _spectrogram(array, spec.sample_rate_hz)
    if spec.kind == "image":
        return _picture(array)
    return {"kind": "array", "shape": list(array.shape)}


def spectrogram_db(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float64]:
    """Power ``(frequencies, times)`` in dB, 0 at the loudest and no less than -70; frames of about 25 ms, Hann."""
    frame = min(512, 1 << int(np.ceil(np.log2(0.025 * rate_hz))))
    hop = max(1, int(0.01 * rate_hz), -(-len(samples) // _MOST_COLUMNS))
    padded = np.pad(samples.astype(np.float64), (frame // 2, frame))
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame)[: len(samples) : hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(frame), axis=1)) ** 2
    peak = float(power.max())
    if peak <= 0:
        return np.full(power.T.shape, -_RANGE_DB)
    return 10 * np.log10(np.maximum(power.T / peak, 10 ** (-_RANGE_DB / 10)))


def _spectrogram(samples: NDArray[np.float32], rate_hz: int) -> dict[str, Any]:
    levels = spectrogram_db(samples, rate_hz)
    step = max(1, len(samples) // 1000)
    wave = np.abs(samples[: len(samples) // step * step]).reshape(-1, step).max(axis=1, initial=0)
    return {
        "kind": "spectrogram",
        **_bytes((levels / _RANGE_DB + 1) * 255),
        "seconds": len(samples) / rate_hz,
        "top_hz": rate_hz / 2,
        "range_db": _RANGE_DB,
        "envelope": [round(float(peak), 3) for peak in np.minimum(wave, 1)],
    }


def _picture(array: NDArray[Any]) -> dict[str, Any]:
    pixels = array if array.dtype == np.uint8 else array * 255.0
    step = -(-max(array.shape[:2]) // _MOST_PIXELS)
    return {"kind": "picture", **_bytes(pixels[::step, ::step]), "shape": list(array.shape)}


def label_map(labels: NDArray[np.int64]) -> dict[str, Any]:
    """Class numbers ``(H, W)``, those beyond 255 as 255."""
    step = -(-max(labels.shape) // _MOST_PIXELS)
    return _bytes(labels[::step, ::step])


def _bytes(values: NDArray[Any]) -> dict[str, Any]:
    """``(rows, columns)`` or ``(rows, columns, channels)``, clipped to bytes, in base64."""
    packed = np.clip(values, 0, 255).astype(np.uint8)
    channels = packed.shape[2] if packed.ndim == 3 else 1
    data = base64.b64encode(packed.tobytes()).decode("ascii")
    return {"rows": packed.shape[0], "columns": packed.shape[1], "channels": channels, "data": data}


def token_texts(ids: NDArray[np.int32], tokenizer: AnyTokenizer) -> list[str]:
    """What each id but padding stands for; U+FFFD where it is a part of a character."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer.spelt(ids)
    named = {URL: b"URL", USER: b"USER"}

    def spelled(token: int) -> bytes:
        if token in named:
            return named[token]
        if token < FIRST_MERGE:
            return bytes([token - FIRST_BYTE])
        first, second = tokenizer.merges[token - FIRST_MERGE]
        return spelled(first) + spelled(second)

    return [spelled(int(token)).decode("utf-8", errors="replace") for token in ids if token]
