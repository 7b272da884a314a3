"""A log-mel spectrogram's options and constants: the Fourier transform as weights of a convolution, and mel bands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LogMelOptions:
    """Analysis of a waveform.

    Attributes:
        features: ``log_mel``; ``raw`` leaves the waveform as it is, and takes no other option.
        window: samples under the Hann window.
        hop: samples from one frame to the next.
        n_fft: points of the Fourier transform, at least ``window``; 0 takes ``window``.
        mels: number of mel bands (HTK scale).
        low_hz, high_hz: edges of the lowest and highest band; ``high_hz`` 0 takes half the sample rate.
        floor_db: level that silence is lifted to, relative to full scale.
    """

    features: Literal["log_mel"] = "log_mel"
    window: int = 256
    hop: int = 128
    n_fft: int = 0
    mels: int = 40
    low_hz: float = 60.0
    high_hz: float = 0.0
    floor_db: float = -80.0


def mel_bank(mels: int, n_fft: int, rate_hz: int, low_hz: float, high_hz: float) -> NDArray[np.float32]:
    """``(mels, n_fft / 2 + 1)`` triangular filters, equally spaced on the HTK mel scale.

    mel(f) = 2595 log10(1 + f / 700) (Young and others, The HTK Book).
    """
    top = high_hz or rate_hz / 2
    edges_mel = np.linspace(_mel(low_hz), _mel(top), mels + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    lines = np.arange(n_fft // 2 + 1) * rate_hz / n_fft
    rising = (lines - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - lines) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def fourier_rows(window: int, n_fft: int) -> NDArray[np.float32]:
    """``(n_fft + 2, window)``: cosine rows, then sine rows, under a periodic Hann window of unit sum."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    phase = 2 * np.pi * np.outer(np.arange(n_fft // 2 + 1), np.arange(window)) / n_fft
    rows = np.concatenate([np.cos(phase), -np.sin(phase)]) * hann / hann.sum()
    return rows.astype(np.float32)
