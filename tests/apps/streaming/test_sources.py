"""Where streams come from: files of any size, pipes, a microphone on paper, tables; and what a stranger may send."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import types

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime import BundleError
from apps.runtime.audio import PCM, SampleFormat, parse_wav, read_audio
from apps.streaming import Microphone, RawSound, SoundFile, Table

STEREO = SampleFormat(PCM, 16, 2, 8000)


def _all(source):
    blocks = list(source.blocks())
    return np.concatenate([block.samples for block in blocks]) if blocks else np.empty(0, np.float32)


@pytest.mark.parametrize("name", ["x.wav", "x.flac"])
def test_a_file_in_blocks_is_the_file(tmp_path, name):
    soundfile.write(tmp_path / name, np.random.default_rng(0).uniform(-1, 1, (5001, 2)), 16000)
    source = SoundFile(tmp_path / name)
    assert source.rate_hz == 16000
    assert np.array_equal(_all(source), read_audio(tmp_path / name).samples)
    assert max(len(block.samples) for block in source.blocks()) == 800


def test_a_wav_that_claims_more_than_it_holds_ends_where_it_ends(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.full(1000, 0.25), 8000)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    place = content.index(b"data")
    content[place + 4 : place + 8] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "x.wav").write_bytes(content)
    assert len(_all(SoundFile(tmp_path / "x.wav"))) == 1000


@pytest.mark.parametrize(("content", "says"), [(None, "no such file"), (b"RIFF", "not a RIFF"), (b"hello", "x.wav")])
def test_what_is_no_sound_is_told(tmp_path, content, says):
    if content is not None:
        (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(BundleError, match=says):
        SoundFile(tmp_path / "x.wav")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 43), st.binary(max_size=12))
def test_no_bytes_make_the_wav_stream_fail_otherwise_or_differ_from_the_whole(tmp_path_factory, tail, place, patch):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.linspace(-0.5, 0.5, 16), 8000, "PCM_16", format="WAV")
    content = bytearray(buffer.getvalue() + tail)
    content[place : place + len(patch)] = patch
    if content[:4] != b"RIFF":
        return
    path = tmp_path_factory.getbasetemp() / "fuzz.wav"
    path.write_bytes(content)
    try:
        expected = parse_wav(bytes(content)).samples
    except BundleError:
        with pytest.raises(BundleError):
            SoundFile(path)
        return
    assert np.array_equal(_all(SoundFile(path)), expected, equal_nan=True)


def test_raw_sound_from_a_pipe_is_decoded_wherever_the_pipe_cuts_it():
    pcm = np.arange(-500, 500, dtype="<i2").reshape(-1, 2)
    read, write = os.pipe()

    def trickle():
        with open(write, "wb", buffering=0) as pipe:  # noqa: PTH123 - a file descriptor
            data = pcm.tobytes() + b"\x01"  # and half a sample
            for start in range(0, len(data), 7):
                pipe.write(data[start : start + 7])

    thread = threading.Thread(target=trickle)
    thread.start()
    with open(read, "rb") as pipe:  # noqa: PTH123
        found = _all(RawSound(pipe, STEREO, timeout_s=20))
    thread.join()
    assert found == pytest.approx(pcm.mean(axis=1) / 32768)


def test_a_pipe_that_stalls_is_a_timeout():
    read, write = os.pipe()
    os.write(write, b"\0" * 8)
    with open(read, "rb") as pipe:  # noqa: PTH123
        blocks = RawSound(pipe, STEREO, timeout_s=0.2).blocks()
        assert len(next(blocks).samples) == 2
        with pytest.raises(BundleError, match=r"standard input: gave nothing for 0\.2 s"):
            next(blocks)
    os.close(write)


class _Portaudio(types.ModuleType):
    """sounddevice on paper: a stream that calls back with ``given`` (samples, overflow) from a thread of its own."""

    class PortAudioError(Exception):
        pass

    given = ()
    refuses = ""

    def InputStream(self, callback, **options):  # noqa: N802 - the library's name
        if self.refuses:
            raise self.PortAudioError(self.refuses)
        self.options = options
        return _Running(self.given, callback)


class _Running:
    def __init__(self, given, callback):
        self.thread = threading.Thread(target=self.run, args=(given, callback))

    def run(self, given, callback):
        for samples, overflow in given:
            callback(
                np.array(samples, np.float32)[:, None],
                len(samples),
                None,
                types.SimpleNamespace(input_overflow=overflow),
            )

    def __enter__(self):
        self.thread.start()
        self.thread.join()

    def __exit__(self, *_):
        pass


@pytest.fixture
def portaudio(monkeypatch):
    module = _Portaudio("sounddevice")
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def test_the_microphone_gives_what_it_hears_and_a_stall_is_a_timeout(portaudio):
    portaudio.given = [([0.1] * 400, False), ([0.2] * 400, False)]
    blocks = Microphone(8000, "3", timeout_s=0.1).blocks()
    assert [float(next(blocks).samples[0]) for _ in range(2)] == pytest.approx([0.1, 0.2])
    assert portaudio.options["device"] == 3
    assert (portaudio.options["samplerate"], portaudio.options["blocksize"]) == (8000, 400)
    with pytest.raises(BundleError, match=r"microphone: gave nothing for 0\.1 s; is it still plugged in\?"):
        next(blocks)


def test_silence_stands_for_what_the_driver_lost(portaudio):
    portaudio.given = [([0.1] * 4, True)]
    block = next(Microphone(8000).blocks())
    assert block.dropped == 4
    assert block.samples == pytest.approx([0] * 4 + [0.1] * 4)


def test_silence_stands_for_what_nobody_took_in_time(portaudio):
    kept = 100  # 5 s in blocks of 50 ms
    portaudio.given = [([0.1] * 400, False)] * (kept + 7)
    microphone = Microphone(8000, timeout_s=0.1)
    blocks = microphone.blocks()
    first = [next(blocks) for _ in range(kept)]
    microphone._take(np.full((400, 1), 0.1, np.float32), 400, None, types.SimpleNamespace(input_overflow=False))
    late = next(blocks)
    assert sum(block.dropped for block in first) == 0
    assert late.dropped == 7 * 400
    assert len(late.samples) == 8 * 400


def test_a_microphone_that_cannot_be_opened_is_told(portaudio, monkeypatch):
    portaudio.refuses = "Invalid sample rate"
    with pytest.raises(BundleError, match=r"--microphone: cannot be opened at 8000 Hz \(Invalid sample rate\)"):
        next(Microphone(8000).blocks())
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(BundleError, match="--microphone: needs sounddevice and PortAudio .*pip install"):
        Microphone(8000)


def test_rows_of_a_table_are_read_whatever_stands_around_them():
    table = Table("t.csv", ["t,x,y\n", "0,1,2\n", "\n", "1,,-3e-1\n", "2,hello,4\n", "3, 5 ,6"], columns=2, skip=1)
    assert np.array_equal(_all(table), np.float32([[1, 2], [np.nan, -0.3], [5, 6]]), equal_nan=True)
    assert table.skipped == 1


def test_a_table_of_other_columns_is_told():
    with pytest.raises(BundleError, match=r"t\.csv: line 2 has 3 values, the student reads 2; --skip-columns"):
        _all(Table("t.csv", ["a,b,c", "0,1,2"], columns=2))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=20))
def test_no_text_makes_the_table_fail_otherwise(lines):
    try:
        found = _all(Table("t.csv", lines, columns=2))
    except BundleError:
        return
    assert found.ndim == 1 or found.shape[1] == 2
