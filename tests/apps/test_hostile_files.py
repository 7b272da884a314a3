"""Files of strangers: damaged, lying, made to hurt. Each is read, or refused in one line and at little cost."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from apps.digits_camera.find import Framing, find_digits
from apps.runtime import Bundle, BundleError, audio
from apps.runtime.arrays import decode_npy
from apps.runtime.audio import Waveform, parse_wav, read_audio, resample, usable
from apps.runtime.images import FORMATS, decode_image, open_picture
from apps.runtime.inputs import decode_sample, read_sample
from apps.runtime.manifest import InputSpec
from tests.apps.paper_bundles import ear

SOUND = InputSpec("audio", "audio", (800,), "float32", 8000)
PICTURE = InputSpec("image", "image", (8, 8), "uint8", None)
COLOURS = InputSpec("image", "image", (6, 8, 3), "float32", None)
FACTS = InputSpec("facts", "vector", (3,), "float32", None)


def _npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _wav(values, rate=8000, subtype="PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, values, rate, subtype, format="WAV")
    return buffer.getvalue()


def _picture(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


WHOLE = [
    (SOUND, _wav(np.linspace(-1, 1, 300))),
    (SOUND, _wav(np.linspace(-1, 1, 300).reshape(-1, 2), 44100, "FLOAT")),
    (SOUND, _npy(np.zeros(800, np.float32))),
    (FACTS, _npy(np.zeros(3))),
    (FACTS, _npy(np.zeros(3, ">i4"))),
    *((spec, _picture(kind)) for kind in FORMATS for spec in (PICTURE, COLOURS)),
    *((PICTURE, _picture("PNG", mode)) for mode in ("L", "P", "RGBA", "1")),
]


def _fitting(data: bytes, spec: InputSpec) -> bool:
    """Whether the bytes are a sample of ``spec``; no error but ours may say that they are not."""
    try:
        sample = decode_sample(data, spec)
    except BundleError:
        return False
    assert spec.fits(sample.array.shape)
    assert sample.array.dtype == spec.dtype
    assert np.isfinite(sample.array).all()
    return True


@pytest.mark.parametrize(("spec", "data"), WHOLE)
def test_whole_files_are_read(spec, data):
    assert _fitting(data, spec)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    st.integers(0, 1 << 16),
)
def test_files_that_were_tampered_with_are_read_or_refused(whole, patches, length):
    spec, data = whole
    changed = bytearray(data)
    for place, patch in patches:
        start = place % len(data)
        changed[start : start + len(patch)] = patch
    _fitting(bytes(changed), spec)
    _fitting(bytes(changed[: length % len(changed)]), spec)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([SOUND, PICTURE, COLOURS, FACTS]), st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(spec, data):
    _fitting(data, spec)


_HEADER = st.fixed_dictionaries(
    {
        "coding": st.sampled_from([1, 3, 0xFFFE, 6, 0]),
        "channels": st.sampled_from([0, 1, 2, 3, 64, 65535]),
        "rate": st.sampled_from([0, 1000, 8000, 44100, 767_999, 2**32 - 1]),
        "bits": st.sampled_from([0, 1, 8, 12, 16, 24, 32, 64, 65535]),
        "size": st.sampled_from([0, 1, 7, 64, 2**31, 2**32 - 1]),
    }
)


@settings(max_examples=400, deadline=None)
@given(_HEADER, st.binary(max_size=600))
@example({"coding": 3, "channels": 1, "rate": 8000, "bits": 64, "size": 64}, struct.pack("<d", 1e300) * 8)
@example({"coding": 3, "channels": 2, "rate": 8000, "bits": 32, "size": 64}, struct.pack("<2f", np.inf, -np.inf) * 8)
def test_wav_headers_that_lie_are_read_or_refused(header, body):
    form = struct.pack("<HHIIHH", header["coding"], header["channels"], header["rate"], 0, 0, header["bits"])
    data = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", header["size"]) + body
    if _fitting(data, SOUND):
        assert len(parse_wav(data).samples) * header["channels"] * header["bits"] // 8 <= len(body)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["<f4", ">f8", "|u1", "<i2", ">u4", "<f2", "|i1", "<i8"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.booleans(),
)
def test_arrays_are_read_as_numpy_reads_them(dtype, shape, fortran):
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), dtype, order="F" if fortran else "C")
    found = decode_npy(_npy(array))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1 << 40,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4294967296, 4294967296)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<U9', 'fortran_order': False, 'shape': (3,)}",
        "{'fortran_order': False, 'shape': (3,)}",
        "__import__('os').getpid()",
        "[" * 9000,
        "-" * 9000 + "1",
        "{1: " * 2000,
        "",
        "\0",
    ],
)
def test_array_headers_that_lie_are_refused_before_memory_is_taken(tmp_path, header):
    text = header.encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(24)
    (tmp_path / "x.npy").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            read_sample(tmp_path / "x.npy", FACTS)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_an_archive_of_arrays_is_no_array(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(BundleError, match=r"not a readable \.npy array"):
        read_sample(tmp_path / "x.npy", FACTS)


def test_postscript_never_reaches_an_interpreter(monkeypatch):
    """Pillow hands it to Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was called"))
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "EPS")
    with pytest.raises(BundleError, match="not a picture"):
        decode_image(buffer.getvalue(), (4, 4))


@pytest.mark.parametrize(("width", "height"), [(8001, 8001), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM"])
def test_pictures_that_claim_to_be_huge_are_refused(kind, width, height):
    head = {
        "BMP": b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0),
        "GIF": b"GIF89a" + struct.pack("<HHBBB", min(width, 65535), min(height, 65535), 0, 0, 0) + b",",
        "PPM": b"P6 %d %d 255\n" % (width, height),
    }[kind]
    with pytest.raises(BundleError):
        open_picture(head + bytes(64), "L")


def test_a_long_silence_that_packs_well_is_refused(tmp_path, monkeypatch):
    """Hours of it fit into a small FLAC."""
    soundfile.write(tmp_path / "x.flac", np.zeros(100_000), 8000)
    assert (tmp_path / "x.flac").stat().st_size < 20_000
    assert len(read_audio(tmp_path / "x.flac").samples) == 100_000
    monkeypatch.setattr(audio, "_MAX_DECODED", 99_999)
    with pytest.raises(BundleError, match="unpacks to 100000 x 1 values: refused"):
        read_audio(tmp_path / "x.flac")


@pytest.mark.parametrize("rate", [1000, 1001, 7999, 44_101, 767_999, 768_000])
def test_no_rate_takes_much_memory(rate):
    sound = Waveform(np.random.default_rng(0).normal(0, 0.1, rate // 8).astype(np.float32), rate)
    tracemalloc.start()
    try:
        found = resample(sound, 8000)
        assert tracemalloc.get_traced_memory()[1] < 150e6
    finally:
        tracemalloc.stop()
    assert len(found.samples) == -(-len(sound.samples) * 8000 // rate)


def test_samples_that_a_model_makes_no_numbers_of_are_told(tmp_path):
    """A float wav may hold values that are finite, and too large to add up."""
    with Bundle.open(ear(tmp_path / "ear")) as bundle:
        sample = decode_sample(
            _wav(3e38 * np.sin(2 * np.pi * 300 * np.arange(8000) / 8000), subtype="FLOAT"), bundle.manifest.input
        )
        with pytest.raises(BundleError, match="the model gives NaN or infinity for this input"):
            bundle.predict(sample.array)


def test_a_sound_of_nothing_is_told():
    with pytest.raises(BundleError, match="holds no sound"):
        usable(parse_wav(_wav(np.zeros(0))))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5, 40]))
def test_any_picture_can_be_searched_for_digits(height, width, seed, block):
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 30, 128, 255], (-(-height // block), -(-width // block))).astype(np.uint8)
    grey = np.kron(coarse, np.ones((block, block), np.uint8))[:height, :width]
    for found in find_digits(grey, Framing((28, 28))):
        assert found.sample.shape == (28, 28)
        assert 0 <= found.box.top < found.box.bottom <= height
        assert 0 <= found.box.left < found.box.right <= width
