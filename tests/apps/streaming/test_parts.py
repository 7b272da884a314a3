"""The parts of a stream by themselves: ring buffer, resampler, gate, decisions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.audio import Resampler, Waveform, resample
from apps.streaming.decide import Decider, Rule
from apps.streaming.gate import Gate, GateRule
from apps.streaming.windows import Ring, Windows, pieces

RATE = 8000


@given(st.lists(st.integers(0, 25), max_size=30), st.integers(1, 12))
def test_a_ring_holds_the_latest_samples_in_one_piece(sizes, size):
    ring, everything = Ring(size), np.zeros(size, np.float32)
    for count in sizes:
        samples = np.arange(len(everything), len(everything) + count, dtype=np.float32)
        everything = np.concatenate([everything, samples])
        ring.push(samples)
        assert np.array_equal(ring.latest(), everything[-size:])


@given(st.integers(1, 60), st.integers(1, 12), st.data(), st.booleans())
def test_windows_are_those_of_the_whole_stream(length, size, data, padded):
    hop = data.draw(st.integers(1, size))
    samples = np.arange(1, length + 1, dtype=np.float32)
    windows = Windows(size, hop, padded=padded)
    found = [(windows.place - size, window.copy()) for window in _cut(samples, windows)]
    found += [
        (windows.place - size, window.copy()) for window in _cut(np.zeros(windows.missing(), np.float32), windows)
    ]
    around = np.concatenate([np.zeros(size), samples, np.zeros(size)])
    starts = [s for s in range(-(size // hop) * hop, length, hop) if (-size < s if padded else 0 <= s <= length - size)]
    assert [start for start, _ in found] == starts
    assert all(np.array_equal(window, around[size + start : 2 * size + start]) for start, window in found)


def _cut(samples, windows):
    for piece in pieces(samples, windows):
        window = windows.push(piece)
        if window is not None:
            yield window


def test_a_hop_beyond_the_window_is_refused():
    with pytest.raises(ValueError, match="a hop of 11"):
        Windows(10, 11)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(44100, 8000), (48000, 16000), (8000, 16000), (11025, 8000), (16000, 8000), (22051, 8000)]),
    st.integers(0, 5000),
    st.integers(0, 2**32 - 1),
)
def test_sound_resampled_in_pieces_has_the_bits_of_the_whole(rates, length, seed):
    rng = np.random.default_rng(seed)
    samples = rng.normal(0, 0.3, length).astype(np.float32)
    resampler, parts, place = Resampler(*rates), [], 0
    while place < length:
        size = int(rng.integers(1, 1500))
        parts.append(resampler.push(samples[place : place + size]))
        place += size
    parts.append(resampler.finish())
    assert np.array_equal(np.concatenate(parts), resample(Waveform(samples, rates[0]), rates[1]).samples)


@pytest.mark.parametrize("rates", [(44100, 8000), (8000, 16000), (22051, 8000)])
def test_the_resampler_computes_a_kaiser_windowed_sinc(rates):
    """Julius O. Smith, Digital Audio Resampling, with 16 zero crossings and beta 9; sample by sample."""
    old, new = rates
    samples = np.random.default_rng(0).normal(0, 0.3, 900)
    found = resample(Waveform(samples.astype(np.float32), old), new).samples
    assert len(found) == -(-len(samples) * new // old)
    stretch, inputs = max(1.0, old / new), np.arange(-2000, 3000)
    padded = np.pad(samples.astype(np.float32), (2000, 2100))
    for number in range(0, len(found), 37):
        distance = (inputs - number * old / new) / stretch
        inside = np.sqrt(np.clip(1 - (distance / 16) ** 2, 0, None))
        kernel = np.where(np.abs(distance) <= 16, np.sinc(distance) * np.i0(9 * inside) / np.i0(9), 0)
        assert found[number] == pytest.approx((padded * kernel).sum() / kernel.sum(), abs=1e-6)


def _level(*parts, rate=RATE):
    """Noise of so many dBFS for so many seconds, one after the other."""
    rng = np.random.default_rng(0)
    return np.concatenate([10 ** (level / 20) * rng.normal(size=int(s * rate)) for level, s in parts]).astype(
        np.float32
    )


def _openings(gate, samples):
    """Seconds at which the gate was seen to open and close."""
    found, was = [], False
    for start in range(0, len(samples), 160):
        gate.push(samples[start : start + 160])
        if gate.open != was:
            found.append(round((start + 160) / RATE, 2))
            was = gate.open
    return found


def test_the_gate_opens_for_sound_and_closes_a_hangover_after_it():
    gate = Gate(RATE, GateRule(least_s=0.06, hangover_s=0.3))
    assert _openings(gate, _level((-60, 1), (-20, 0.5), (-60, 1))) == pytest.approx([1.06, 1.82], abs=0.03)
    assert gate.start / RATE == pytest.approx(1.0, abs=0.021)
    assert gate.end / RATE == pytest.approx(1.5, abs=0.021)


def test_a_click_does_not_open_the_gate():
    assert not _openings(Gate(RATE, GateRule(least_s=0.06)), _level((-60, 1), (-10, 0.03), (-60, 1)))


def test_a_short_dip_does_not_close_the_gate():
    dip = _level((-60, 1), (-20, 0.3), (-60, 0.15), (-20, 0.3), (-60, 1))
    assert len(_openings(Gate(RATE, GateRule(hangover_s=0.3)), dip)) == 2


def test_between_its_two_thresholds_the_gate_stays_as_it_is():
    rule = GateRule(open_db=12, close_db=4, rise_db_per_s=0)
    before = _level((-60, 1), (-52, 1), (-60, 1))
    assert not _openings(Gate(RATE, rule), before)
    assert len(_openings(Gate(RATE, rule), _level((-60, 1), (-30, 0.2), (-52, 2)))) == 1


def test_the_floor_follows_a_background_that_grew_louder_and_one_that_fell():
    gate = Gate(RATE, GateRule(open_db=9, rise_db_per_s=4))
    opened, closed = _openings(gate, _level((-60, 1), (-45, 10)))
    assert opened == pytest.approx(1.06, abs=0.03)
    # 15 dB at 4 dB per second, till the floor is within close_db of the level; and the hangover.
    assert closed == pytest.approx(1 + 10 / 4 + 0.3, abs=1.0)
    gate.push(_level((-66, 0.4)))
    assert gate.floor_db == pytest.approx(-66, abs=3)


def test_a_stream_that_begins_amid_a_word_is_heard():
    assert _openings(Gate(RATE), _level((-20, 0.5), (-60, 1)))[0] < 0.1


def test_digital_silence_is_no_background_to_stand_out_from():
    gate = Gate(RATE)
    gate.push(np.zeros(5 * RATE, np.float32))
    gate.push(_level((-65, 1)))
    assert not gate.opened


def _decide(rows, rule=None, hop_s=0.1, labels="ab"):
    decider = Decider(labels, rule or Rule(smooth_s=0.3, threshold=0.6, rest_s=0.0), hop_s)
    return [decider.hear(np.array(row, float)) for row in rows], decider


def test_probabilities_are_averaged_and_were_zero_before():
    said, decider = _decide([(0.9, 0.1), (0.9, 0.1), (0.6, 0.4)])
    assert decider.smoothed == pytest.approx([0.8, 0.2])
    assert said == [None, 0, None]  # 0.9 / 3, then 1.8 / 3


def test_a_class_is_told_once_and_again_after_it_was_gone():
    there, gone = [(0.9, 0.1)] * 4, [(0.1, 0.3)] * 4
    said, _ = _decide([*there, *there, *gone, *there])
    assert [number for number in said if number is not None] == [0, 0]


def test_the_windows_that_agree_must_follow_one_another():
    rule = Rule(smooth_s=0.1, threshold=0.6, hold=2, rest_s=0)
    assert _decide([(0.9, 0.1), (0.1, 0.1), (0.9, 0.1), (0.1, 0.9)], rule)[0] == [None] * 4
    assert _decide([(0.9, 0.1), (0.9, 0.1)], rule)[0] == [None, 0]


def test_events_keep_their_distance():
    rule = Rule(smooth_s=0.1, threshold=0.6, rest_s=0.3)
    assert _decide([(0.9, 0), (0, 0.9), (0, 0.9), (0, 0.9), (0, 0.9)], rule)[0] == [0, None, None, 1, None]


def test_a_class_may_have_a_threshold_of_its_own():
    rule = Rule(smooth_s=0.1, threshold=0.6, thresholds={"a": 0.95}, rest_s=0)
    said, decider = _decide([(0.9, 0.1), (0.1, 0.7), (0.96, 0)], rule)
    assert said == [None, 1, 0]
    assert decider.best == (0, 0.96)
