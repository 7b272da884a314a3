"""The benchmarks of streams count what they say they count."""

from __future__ import annotations

import numpy as np
import pytest

from apps.runtime import Bundle
from apps.streaming import Block, Counters, Rule, Stream
from benchmarks import soak, stream
from benchmarks.listening import RATE_HZ, Studio, Track, Word
from benchmarks.stream import Told, judge

WORDS = (Word(3, 1.0, 1.5), Word(7, 3.0, 3.4))


@pytest.mark.parametrize(
    ("told", "detected", "confused", "false_alarms"),
    [
        ([("3", 1.6), ("7", 3.2)], 2, 0, 0),
        ([("3", 2.6), ("7", 2.9)], 0, 0, 2),  # too late, too early
        ([("4", 1.6), ("3", 1.8)], 1, 1, 0),
        ([("3", 1.6), ("3", 1.9)], 1, 1, 0),  # a word is told once
        ([("?", 1.6)], 0, 0, 0),
        ([], 0, 0, 0),
    ],
)
def test_events_are_judged_by_the_words_that_were_said(told, detected, confused, false_alarms):
    track = Track(np.zeros(7200 * RATE_HZ // 100, np.float32), WORDS)
    score = judge(track, [Told(*event) for event in told], Counters())
    assert (score.detected, score.confused, score.false_alarms) == (detected, confused, false_alarms)
    assert score.per_hour == pytest.approx(false_alarms * 3600 / 72)
    if told == [("3", 1.6), ("7", 3.2)]:
        assert score.latencies_s == pytest.approx((0.1, -0.2))


def test_tracks_hold_the_words_at_the_asked_ratio(real_data):
    studio = Studio(real_data, "val")
    track = studio.words(20, 10.0)
    assert len(track.words) == 20
    spoken = np.concatenate([track.samples[int(w.start_s * RATE_HZ) : int(w.end_s * RATE_HZ)] for w in track.words])
    between = [(a.end_s + 0.1, b.start_s - 0.1) for a, b in zip(track.words[:-1], track.words[1:], strict=True)]
    pauses = np.concatenate([track.samples[int(a * RATE_HZ) : int(b * RATE_HZ)] for a, b in between])
    ratio_db = 10 * np.log10((np.square(spoken).mean() - np.square(pauses).mean()) / np.square(pauses).mean())
    assert ratio_db == pytest.approx(10, abs=3)
    assert not studio.noise(2.0, 0.03).words


def test_the_tables_are_printed(listener, real_data, capsys, monkeypatch):
    arguments = ["stream", str(listener.bundle), "--data-root", str(real_data), "--words", "3", "--snr", "10"]
    monkeypatch.setattr("sys.argv", [*arguments, "--noise-minutes", "0.1"])
    stream.main()
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("|") and "---" not in line]
    assert names[1:4] == ["quiet", "10 dB", "noise alone"]
    assert names[5:] == ["the defaults", "no gate", "no smoothing"]
    assert lines[-2].split("|")[7].strip() == "100%"


def test_a_soaked_stream_says_the_same_in_every_round(listener):
    time = np.arange(44100 * 3) / 44100
    sound = (0.3 * np.sin(3000 * time) * (time < 1)).astype(np.float32)
    blocks = [Block(sound[start : start + 2205]) for start in range(0, len(sound), 2205)] * 5
    with Bundle.open(listener.bundle) as bundle:
        following = Stream(bundle, 44100, rule=Rule(threshold=0.2), gate=soak.GATE)
        rounds = soak.soak(following, blocks, 4, 3 * RATE_HZ)
    assert len(rounds) == 4
    assert len({one.digest for one in rounds[1:]}) == 1
    assert all(one.events and one.inferred and one.cpu_s > 0 for one in rounds)
    head, _, row = soak.table(rounds, 3.0)
    assert head.count("|") == row.count("|")
    assert "| 0 of 3 | 0 |" in row
