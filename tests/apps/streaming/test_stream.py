"""What a student says of a stream: window for window that of the offline evaluation; what becomes of bad input."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import soundfile

from apps.runtime import Bundle, BundleError
from apps.runtime.audio import read_audio, resample
from apps.streaming import Block, GateRule, Rule, SoundFile, Stream
from tests.apps.listener import HOP, RATE_HZ, WINDOW


@pytest.fixture(scope="module")
def bundle(listener):
    with Bundle.open(listener.bundle) as opened:
        yield opened


def _steps(stream, samples, sizes=None):
    steps, place = [], 0
    sizes = sizes or iter(lambda: 400, None)
    while place < len(samples):
        size = next(sizes)
        steps += stream.push(Block(samples[place : place + size]))
        place += size
    return steps + stream.finish()


def _offline(samples):
    """Every window at a multiple of the hop that holds some of ``samples``, silence around them; and their starts."""
    lead = (WINDOW - 1) // HOP * HOP
    starts = range(-lead, len(samples), HOP)
    around = np.concatenate([np.zeros(lead), samples, np.zeros(WINDOW)]).astype(np.float32)
    return list(starts), np.stack([around[start + lead : start + lead + WINDOW] for start in starts])


def _words(seconds=4.0, rate=RATE_HZ):
    """Bursts of a second, with near silence between them."""
    time = np.arange(int(seconds * rate)) / rate
    burst = 0.3 * np.sin(2 * np.pi * 500 * time) * (time % 2 < 1)
    return (burst + np.random.default_rng(0).normal(0, 1e-4, len(time))).astype(np.float32)


@pytest.mark.parametrize(
    ("rate", "subtype"), [(8000, "PCM_16"), (44100, "PCM_24"), (48000, "FLOAT"), (11025, "PCM_U8")]
)
def test_a_replayed_wav_gives_the_logits_of_the_evaluation_window_for_window(listener, bundle, tmp_path, rate, subtype):
    soundfile.write(tmp_path / "x.wav", _words(rate=rate), rate, subtype)
    source = SoundFile(tmp_path / "x.wav")
    stream = Stream(bundle, source.rate_hz)
    steps = [step for block in source.blocks() for step in stream.push(block)] + stream.finish()
    starts, windows = _offline(resample(read_audio(tmp_path / "x.wav"), RATE_HZ).samples)
    assert [step.start for step in steps] == starts
    assert np.array_equal(np.stack([step.logits for step in steps]), listener.evaluate(windows))


def test_real_utterances_give_the_logits_of_the_evaluation_window_for_window(listener, bundle, tmp_path, real_data):
    compared = 0
    with zipfile.ZipFile(real_data / "fsdd" / "recordings_flac.zip") as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".flac"))[::9]:
            pcm, rate = soundfile.read(io.BytesIO(archive.read(name)), dtype="int16")
            soundfile.write(tmp_path / "x.wav", pcm, rate)
            source, stream = SoundFile(tmp_path / "x.wav"), Stream(bundle, rate)
            steps = [step for block in source.blocks() for step in stream.push(block)] + stream.finish()
            # Two in three windows overlap others of the same utterance: enough to compare every third.
            starts, windows = _offline(pcm / np.float32(32768))
            assert [step.start for step in steps] == starts
            assert np.array_equal(np.stack([step.logits for step in steps[::3]]), listener.evaluate(windows[::3]))
            compared += 1
    assert compared >= 300


def test_a_file_as_long_as_a_window_is_one_of_its_windows(bundle, tmp_path):
    soundfile.write(tmp_path / "x.wav", _words(1.0), RATE_HZ)
    (step,) = [s for s in _steps(Stream(bundle), read_audio(tmp_path / "x.wav").samples) if s.start == 0]
    assert np.array_equal(step.logits, bundle.outputs(bundle.read(tmp_path / "x.wav").array[None])[0])


def test_the_gate_leaves_windows_out_and_changes_none(listener, bundle):
    samples = _words(8.0)
    stream = Stream(bundle, gate=GateRule())
    steps = _steps(stream, samples)
    starts, windows = _offline(samples)
    expected = dict(zip(starts, listener.evaluate(windows), strict=True))
    heard = [step for step in steps if step.logits is not None]
    assert all(np.array_equal(step.logits, expected[step.start]) for step in heard)
    assert [step.start for step in steps] == starts
    assert stream.counters.windows == len(starts)
    assert stream.counters.inferred == len(heard) < 0.8 * len(starts)


@pytest.mark.parametrize("rate", [8000, 22050])
def test_nothing_depends_on_how_the_stream_comes_in_pieces(bundle, rate):
    samples = _words(6.0, rate)
    rule = Rule(threshold=0.3)
    whole = _steps(Stream(bundle, rate, rule=rule, gate=GateRule()), samples, iter([len(samples)]))
    sizes = np.random.default_rng(1).integers(1, 5000, 10_000)
    parts = _steps(Stream(bundle, rate, rule=rule, gate=GateRule()), samples, iter(sizes.tolist()))
    assert [(s.start, None if s.logits is None else s.logits.tolist()) for s in whole] == [
        (s.start, None if s.logits is None else s.logits.tolist()) for s in parts
    ]
    events = [
        [(e.label, e.start_s, e.end_s, e.confidence) for s in steps for e in s.events] for steps in (whole, parts)
    ]
    assert events[0] == events[1]
    assert events[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_silence_and_counted(bundle, value):
    samples = _words(3.0)
    spoilt, mended = samples.copy(), samples.copy()
    spoilt[500:520], mended[500:520] = value, 0
    stream = Stream(bundle)
    found = [step.logits for step in _steps(stream, spoilt)]
    assert stream.counters.not_numbers == 20
    assert np.array_equal(found, [step.logits for step in _steps(Stream(bundle), mended)])
    assert np.isfinite(found).all()


def test_clipped_and_lost_samples_are_counted(bundle):
    stream = Stream(bundle)
    stream.push(Block(np.array([0.5, 1.0, -1.0, 2.0], np.float32), dropped=3))
    assert (stream.counters.clipped, stream.counters.dropped) == (3, 3)


def test_digital_silence_costs_no_inference(bundle):
    stream = Stream(bundle, gate=GateRule())
    assert not any(step.events for step in _steps(stream, np.zeros(5 * RATE_HZ, np.float32)))
    assert (stream.counters.inferred, stream.counters.gated) == (0, stream.counters.windows)


def test_a_sound_that_is_no_class_is_told_once_as_unknown(bundle):
    stream = Stream(bundle, rule=Rule(threshold=1.0), gate=GateRule())
    events = [event for step in _steps(stream, _words(4.0)) for event in step.events]
    assert [event.label for event in events] == ["?", "?"]
    assert all(event.guess in "0123456789" and 0 < event.confidence < 1 for event in events)
    for event, (start, end) in zip(events, [(0, 1), (2, 3)], strict=True):
        assert event.start_s == pytest.approx(start, abs=0.05)
        assert event.end_s == pytest.approx(end, abs=0.05)
        # The gate waits for its hangover, then for the end of a hop.
        assert 300 <= event.latency_ms <= 300 + 1000 * HOP / RATE_HZ + 200
    assert (stream.counters.events, stream.counters.unknown) == (0, 2)


def test_the_gain_makes_the_input_louder(bundle):
    samples = _words(2.0)
    louder = [s.logits for s in _steps(Stream(bundle, gain_db=20 * np.log10(2.0)), samples)]
    assert np.array_equal(louder, [s.logits for s in _steps(Stream(bundle), samples * np.float32(2))])


def test_events_of_a_whole_stream_in_five_lines(bundle, tmp_path):
    soundfile.write(tmp_path / "x.wav", _words(4.0), RATE_HZ)
    source = SoundFile(tmp_path / "x.wav")
    events = Stream(bundle, source.rate_hz, gate=GateRule()).follow(source.blocks())
    assert len(list(events)) >= 2


def test_a_student_that_follows_no_stream_is_refused(finished_run, listener, bundle):
    with pytest.raises(BundleError, match="no class 'ten'; the classes are 0, 1"):
        Stream(bundle, rule=Rule(thresholds={"ten": 0.5}))
    with pytest.raises(BundleError, match="must be above 0 and at most 1, received 0"):
        Stream(bundle, rule=Rule(threshold=0))
    with pytest.raises(BundleError, match="must be above 0 and at most 1, received 80 for 3"):
        Stream(bundle, rule=Rule(thresholds={"3": 80}))
    with Bundle.open(finished_run / "bundles" / "cpu") as rows, pytest.raises(BundleError, match="rows of .* values"):
        Stream(rows).push(Block(np.zeros((5, 2), np.float32)))


def test_rows_of_a_sequence_are_windows_without_padding(finished_run):
    with Bundle.open(finished_run / "bundles" / "cpu") as bundle:
        rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
        hop = bundle.manifest.input.hop
        assert hop == 4  # a tenth of a window of 40 rows
        steps = _steps(Stream(bundle, 50), rows, iter(lambda: 7, None))
        assert [step.start for step in steps] == list(range(0, 61, hop))
        for step in steps:
            assert np.array_equal(step.logits, bundle.outputs(rows[None, step.start : step.start + 40])[0])


def test_a_row_that_is_no_number_is_the_row_before(finished_run):
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    spoilt = rows.copy()
    spoilt[30, 1] = np.nan
    rows[30] = rows[29]
    with Bundle.open(finished_run / "bundles" / "cpu") as bundle:
        found, expected = (_steps(Stream(bundle, 50), values, iter(lambda: 30, None)) for values in (spoilt, rows))
        assert np.array_equal([s.logits for s in found], [s.logits for s in expected])
