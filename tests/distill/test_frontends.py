"""Front ends against independent renderings of their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import ImageScale, LogMel, NoOptions, frontend_options, make_frontend
from distill.mels import LogMelOptions, mel_bank
from mst_edge.core.errors import UserError


def _audio(samples: int = 4000, rate: int | None = 8000) -> ModalitySpec:
    return ModalitySpec("audio", Kind.AUDIO, (samples,), "int16", rate)


def _log_mel_by_fft(wave: np.ndarray, options: LogMelOptions, rate: int) -> np.ndarray:
    """The textbook way: frames, window, FFT, filters, logarithm; float64."""
    n_fft = options.n_fft or options.window
    hann = np.array([0.5 - 0.5 * np.cos(2 * np.pi * n / options.window) for n in range(options.window)])
    starts = range(0, len(wave) - options.window + 1, options.hop)
    frames = np.stack([wave[s : s + options.window] * hann / hann.sum() for s in starts])
    power = np.abs(np.fft.rfft(frames, n_fft)) ** 2
    floor = 10 ** (options.floor_db / 10)
    return np.log(power @ mel_bank(options.mels, n_fft, rate, options.low_hz, options.high_hz).T / floor + 1).T


@pytest.mark.parametrize(
    "options",
    [
        LogMelOptions(),
        LogMelOptions(window=400, hop=68, n_fft=1024, mels=112),
        LogMelOptions(window=200, hop=80, n_fft=256, mels=20),
    ],
)
def test_log_mel_agrees_with_an_fft(options):
    rng = np.random.default_rng(0)
    waves = (rng.normal(0, 0.1, (3, 4000)) * np.linspace(0, 1, 4000)).astype(np.float32)
    frontend = LogMel(_audio(), options)
    ours = frontend.transform(torch.from_numpy(waves)).numpy()
    assert ours.shape == (3, *frontend.feature_shape)
    for wave, features in zip(waves, ours, strict=True):
        assert np.abs(features[0] - _log_mel_by_fft(wave.astype(float), options, 8000)).max() < 2e-4


def test_log_mel_of_silence_is_zero_and_finite():
    frontend = LogMel(_audio(), LogMelOptions())
    assert torch.equal(frontend.transform(torch.zeros(1, 4000)), torch.zeros(1, *frontend.feature_shape))


def test_a_tone_lights_up_the_band_it_lies_in():
    frontend = LogMel(_audio(), LogMelOptions())
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(4000) / 8000)[None]
    band = int(frontend.transform(tone).mean(dim=3)[0, 0].argmax())
    edges = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 4000 / 700), 42) / 2595) - 1)
    assert edges[band] < 1000 < edges[band + 2]


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        (_audio(rate=None), LogMelOptions(), "sample rate is not known"),
        (_audio(), LogMelOptions(window=256, mels=112), "falls between two"),
        (_audio(100), LogMelOptions(), "do not fit 100 samples"),
        (_audio(), LogMelOptions(window=512, n_fft=256), "do not fit"),
    ],
)
def test_what_cannot_be_analysed_is_told(spec, options, says):
    with pytest.raises(UserError, match=says):
        LogMel(spec, options)


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        (Kind.IMAGE, (8, 8), "uint8"),
        (Kind.IMAGE, (8, 6, 3), "uint8"),
        (Kind.IMAGE, (8, 6, 3), "float32"),
        (Kind.SEQUENCE, (40, 5), "float32"),
        (Kind.VECTOR, (12,), "float32"),
        (Kind.AUDIO, (2000,), "int16"),
    ],
)
def test_fitted_features_have_mean_zero_and_deviation_one(kind, shape, dtype):
    spec = ModalitySpec("x", kind, shape, dtype, 8000 if kind is Kind.AUDIO else None)
    frontend = make_frontend(spec, frontend_options(kind)())
    rng = np.random.default_rng(1)
    raw = (
        rng.integers(0, 256, (50, *shape)).astype(np.uint8)
        if dtype == "uint8"
        else rng.normal(3, 0.2, (50, *shape)).astype(np.float32)
    )
    frontend.fit(torch.from_numpy(raw).split(7))
    features = frontend(torch.from_numpy(raw))
    assert features.shape == (50, *frontend.feature_shape)
    axes = [0, *(axis + 1 for axis, size in enumerate(frontend.scale.shape) if size == 1)]
    assert features.mean(dim=axes).abs().max() < 1e-3
    assert (features.std(dim=axes, correction=0) - 1).abs().max() < 1e-2


def test_a_constant_feature_is_centred_and_stays_finite():
    frontend = make_frontend(ModalitySpec("x", Kind.VECTOR, (3,), "float32"), NoOptions())
    raw = torch.full((20, 3), 5.0)
    frontend.fit([raw])
    assert torch.isfinite(frontend(raw)).all()
    assert frontend(raw).abs().max() < 1e-3


def test_images_put_their_channels_first():
    frontend = ImageScale(ModalitySpec("x", Kind.IMAGE, (2, 3, 3), "uint8"), NoOptions())
    raw = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    raw[0, 1, 2, 0] = 255
    assert frontend(raw)[0, 0, 1, 2] == 255
    assert frontend(raw).sum() == 255
