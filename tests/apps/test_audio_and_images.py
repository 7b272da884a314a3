"""Sound and pictures: decoders against well-kept libraries, and whatever a stranger may send."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.signal import resample_poly

from apps.runtime.audio import Waveform, fit_length, parse_wav, read_audio, resample
from apps.runtime.errors import BundleError
from apps.runtime.images import read_image
from apps.runtime.inputs import read_sample
from apps.runtime.manifest import InputSpec
from distill.datasets import files

SPEC = InputSpec("audio", "audio", (8000,), "float32", 8000)


def _wav(values: np.ndarray, rate: int = 8000, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, subtype, format="WAV")
    return buffer.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_wav_files_decode_as_libsndfile_does(subtype, channels):
    values = np.random.default_rng(0).uniform(-0.9, 0.9, (500, channels))
    content = _wav(values, 16000, subtype)
    expected, _ = soundfile.read(io.BytesIO(content), always_2d=True)
    found = parse_wav(content)
    assert found.rate_hz == 16000
    assert found.samples == pytest.approx(expected.mean(axis=1), abs=1e-6)


def test_the_extensible_format_is_read():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full((10, 2), 0.5), 8000, "PCM_16", format="WAVEX")
    assert parse_wav(buffer.getvalue()).samples == pytest.approx(np.full(10, 0.5), abs=1e-4)


def test_a_header_that_claims_too_much_is_read_as_far_as_it_goes():
    content = bytearray(_wav(np.full(100, 0.25)))
    place = content.index(b"data")
    content[place + 4 : place + 8] = struct.pack("<I", 0xFFFFFFFF)
    assert len(parse_wav(bytes(content)).samples) == 100


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: b"RIFX" + c[4:], "not a RIFF wave file"),
        (lambda c: c[:36], "has no data chunk"),
        (lambda c: c[:20], "damaged format chunk"),
        (lambda c: c.replace(b"fmt ", b"fmx "), "data before its format"),
        (lambda c: c[:20] + struct.pack("<H", 85) + c[22:], "coded as format 85"),
        (lambda c: c[:22] + struct.pack("<H", 0) + c[24:], "claims 0 channels"),
        (lambda c: c[:24] + struct.pack("<I", 4_000_000_000) + c[28:], "claims 1 channels at 4000000000 Hz"),
        (lambda c: b"", "not a RIFF"),
    ],
)
def test_damaged_wav_files_are_told(change, says):
    with pytest.raises(BundleError, match=says):
        parse_wav(change(_wav(np.zeros(10))))


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 43), st.binary(max_size=12))
def test_no_bytes_make_the_wav_reader_fail_otherwise(tail, place, patch):
    content = bytearray(_wav(np.zeros(16)) + tail)
    content[place : place + len(patch)] = patch
    try:
        found = parse_wav(bytes(content))
    except BundleError:
        return
    assert found.samples.ndim == 1


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(16000, 8000), (44100, 8000), (48000, 16000), (8000, 16000), (11025, 8000)]
)
def test_resampling_agrees_with_scipy_inside_the_band(rate_in, rate_out):
    time = np.arange(rate_in) / rate_in
    tone = (0.5 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 2000 * time)).astype(np.float32)
    ours = resample(Waveform(tone, rate_in), rate_out)
    theirs = resample_poly(tone.astype(float), rate_out, rate_in)
    assert ours.rate_hz == rate_out
    assert len(ours.samples) == len(theirs)
    middle = slice(len(theirs) // 10, -len(theirs) // 10)
    assert np.abs(ours.samples[middle] - theirs[middle]).max() < 0.01


def test_resampling_removes_what_the_new_rate_cannot_hold():
    time = np.arange(16000) / 16000
    tone = Waveform(np.sin(2 * np.pi * 6000 * time).astype(np.float32), 16000)
    assert np.abs(resample(tone, 8000).samples[500:-500]).max() < 0.01


def test_the_same_rate_changes_nothing():
    wave_ = Waveform(np.ones(5, np.float32), 8000)
    assert resample(wave_, 8000) is wave_


@given(st.integers(1, 400), st.integers(1, 300), st.integers(0, 100))
def test_a_device_fits_lengths_as_training_did(samples, length, seed):
    sound = np.random.default_rng(seed).normal(size=samples)
    ours, start = fit_length(sound.astype(np.float32), length)
    assert ours.shape == (length,)
    assert ours == pytest.approx(files.fit_length(sound.astype(np.float32).astype(float), length), abs=1e-6)
    assert start <= 0 or start + length <= samples


def test_the_loudest_stretch_of_a_long_sound_is_heard(tmp_path):
    sound = np.zeros(40_000)
    sound[30_000:34_000] = 0.5 * np.sin(np.arange(4000))
    path = tmp_path / "long.wav"
    path.write_bytes(_wav(sound))
    sample = read_sample(path, SPEC)
    assert np.sum(sample.array**2) == pytest.approx(np.sum(sound**2), rel=0.01)
    assert "lasts 5.00 s: heard" in sample.notes[0]


def test_silence_is_heard_as_silence(tmp_path):
    path = tmp_path / "silent.wav"
    path.write_bytes(_wav(np.zeros(4000)))
    sample = read_sample(path, SPEC)
    assert sample.notes == ("silent.wav is silent",)
    assert not sample.array.any()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "cannot be decoded"), (b"hello", "cannot be decoded"), (_wav(np.zeros(0)), "holds no sound")],
)
def test_files_that_are_no_sound_are_told(tmp_path, content, says):
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=says):
        read_audio(path)


def test_nan_in_a_float_file_is_told(tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(_wav(np.array([0.0, np.nan]), subtype="FLOAT"))
    with pytest.raises(BundleError, match="holds NaN"):
        read_audio(path)


def test_other_formats_are_read_where_soundfile_is_installed(tmp_path):
    soundfile.write(tmp_path / "x.flac", np.full(100, 0.5), 8000)
    assert read_audio(tmp_path / "x.flac").samples == pytest.approx(np.full(100, 0.5), abs=1e-4)


def test_the_standard_library_writes_what_we_read(tmp_path):
    path = tmp_path / "x.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(struct.pack("<3h", 0, 16384, -16384))
    assert read_audio(path).samples.tolist() == [0.0, 0.5, -0.5]


def test_pictures_are_resized_and_put_into_the_students_colours(tmp_path):
    Image.new("RGB", (64, 48), (255, 0, 0)).save(tmp_path / "red.png")
    assert read_image(tmp_path / "red.png", (8, 8)).shape == (8, 8)
    assert read_image(tmp_path / "red.png", (8, 6, 3))[0, 0].tolist() == [255, 0, 0]


def test_pictures_that_are_none_are_told(tmp_path):
    (tmp_path / "x.png").write_bytes(b"hello")
    with pytest.raises(BundleError, match="not a picture"):
        read_image(tmp_path / "x.png", (8, 8))
    with pytest.raises(BundleError, match="no such file"):
        read_image(tmp_path / "none.png", (8, 8))
    Image.new("L", (64, 64)).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="damaged picture"):
        read_image(tmp_path / "cut.png", (8, 8))


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BundleError, match="more pixels than any camera"):
        read_image(tmp_path / "big.png", (8, 8))
