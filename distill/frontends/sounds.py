"""Front ends of sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from distill import mels as mels_module
from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends.base import BASE, Standardiser
from distill.mels import fourier_rows, mel_bank
from mst_edge.core.errors import UserError


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


class LogMel(Standardiser):
    """``(B, samples)`` waveform in [-1, 1] to a log-mel spectrogram ``(B, 1, mels, frames)``.

    The short-time Fourier transform is a convolution with fixed weights: it exports to any runtime and
    agrees with an FFT to float precision. Frames are not padded at the ends, so that a stream and a file
    give the same frames.
    """

    kind = Kind.AUDIO
    Options = LogMelOptions
    code = (BASE, Path(__file__), Path(mels_module.__file__))
    fourier: Tensor
    bank: Tensor

    def __init__(self, spec: ModalitySpec, options: LogMelOptions) -> None:
        where = f"modalities.{spec.name}"
        if spec.sample_rate_hz is None:
            raise UserError("the sample rate is not known", where=where, fix="give sample_rate_hz in dataset.yaml")
        n_fft = options.n_fft or options.window
        frames = 1 + (spec.shape[0] - options.window) // options.hop
        if not 0 < options.window <= n_fft or options.hop < 1 or frames < 1:
            raise UserError(
                f"window {options.window}, hop {options.hop} and n_fft {n_fft} do not fit {spec.shape[0]} samples",
                where=where,
            )
        super().__init__(spec, (1, options.mels, 1))
        self.feature_shape = (1, options.mels, frames)
        self._hop = options.hop
        self._samples = spec.shape[0]
        bank = mel_bank(options.mels, n_fft, spec.sample_rate_hz, options.low_hz, options.high_hz)
        if not (bank.sum(axis=1) > 0).all():
            empty = int(np.argmin(bank.sum(axis=1) > 0))
            raise UserError(
                f"mel band {empty} of {options.mels} falls between two of the {n_fft}-point transform's lines",
                where=where,
                fix="raise n_fft, or take fewer mels",
            )
        self.register_buffer("fourier", torch.from_numpy(fourier_rows(options.window, n_fft))[:, None])
        floor = 10 ** (options.floor_db / 10)
        self.register_buffer("bank", torch.from_numpy(bank / floor)[:, :, None])

    def transform(self, raw: Tensor) -> Tensor:
        # reshape, not unsqueeze: OpenVINO drops the keep-in-f32 mark from the latter.
        lines = nn.functional.conv1d(raw.reshape(-1, 1, self._samples), self.fourier, stride=self._hop)
        real, imaginary = lines.chunk(2, dim=1)
        mel = nn.functional.conv1d(real * real + imaginary * imaginary, self.bank)
        # In units of the floor, so that 1 is added and not 1e-8: torch's ONNX exporter (2.13) takes the
        # latter for zero and drops it.
        return torch.log(mel + 1).reshape(-1, *self.feature_shape)


@dataclass(frozen=True)
class RawOptions:
    """A waveform without analysis."""

    features: Literal["raw"] = "raw"


class RawWave(Standardiser):
    """``(B, samples)`` waveform in [-1, 1] to itself, standardised: ``(B, 1, samples)``."""

    kind = Kind.AUDIO
    augmented_as = Kind.SEQUENCE
    Options = RawOptions
    code = (BASE, Path(__file__))

    def __init__(self, spec: ModalitySpec, options: RawOptions) -> None:
        super().__init__(spec, (1, 1))
        self.feature_shape = (1, *spec.shape)

    def transform(self, raw: Tensor) -> Tensor:
        return raw.reshape(-1, *self.feature_shape)
