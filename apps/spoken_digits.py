"""Recognises spoken digits in sound files: any sample rate, any number of channels, any length."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.runtime import Bundle, BundleError
from apps.runtime.audio import SILENCE_DBFS, Waveform, fit_length, read_audio, resample

_FRAME_S = 0.02
_JOIN_S = 0.25  # sounds closer than this are one word
_SHORTEST_S = 0.08


@dataclass(frozen=True)
class Heard:
    """One word: when it was said, what it was taken for, and how long that took."""

    file: str
    start_s: float
    end_s: float
    label: str
    confidence: float
    latency_ms: float


def main(arguments: list[str]) -> int:
    """``mst-edge app spoken-digits BUNDLE FILE...``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mst-edge app spoken-digits", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle whose student listens")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="wav files (others with soundfile)")
    parser.add_argument("--json", action="store_true", help="one JSON object per word")
    parser.add_argument("--min-confidence", type=float, default=0.0, help="say '?' below this (0 to 1)")
    chosen = parser.parse_args(arguments)
    with Bundle.open(chosen.bundle) as bundle:
        spec = bundle.manifest.input
        if spec.kind != "audio" or spec.sample_rate_hz is None:
            raise BundleError(f"its student reads {spec.kind}, not sound", where=chosen.bundle)
        bundle.load()
        for note in bundle.notes:
            print(f"note: {note}", file=sys.stderr)
        for file in chosen.files:
            wave = resample(read_audio(file), spec.sample_rate_hz)
            words = find_words(wave, spec.sizes[0])
            if not words:
                print(f"note: {file} is silent", file=sys.stderr)
            for start, end in words:
                _say(_recognise(bundle, file, wave, start, end), chosen.min_confidence, as_json=chosen.json)
    return 0


def find_words(wave: Waveform, window: int) -> list[tuple[int, int]]:
    """Sample ranges of the sounds that stand out from the background, in order.

    A recording no longer than the student's window is one word as it is: noise and all, the student
    was trained on such. In a longer one, frames 9 dB above the quiet tenth of the recording are sound.
    """
    samples, rate = wave.samples, wave.rate_hz
    if wave.peak_dbfs < SILENCE_DBFS:
        return []
    if len(samples) <= window:
        return [(0, len(samples))]
    frame = int(_FRAME_S * rate)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    level_db = 10 * np.log10(np.mean(frames.astype(np.float64) ** 2, axis=1) + 1e-10)
    loud = level_db > max(float(np.percentile(level_db, 10)) + 9.0, SILENCE_DBFS)
    if not loud.any():
        # Even sound from end to end: its loudest window is the best guess there is.
        _, start = fit_length(samples, window)
        return [(start, start + window)]
    return _runs(loud, frame, rate)


def _runs(loud: NDArray[np.bool_], frame: int, rate: int) -> list[tuple[int, int]]:
    words: list[tuple[int, int]] = []
    for index in np.flatnonzero(loud):
        start, end = int(index) * frame, (int(index) + 1) * frame
        if words and start - words[-1][1] <= _JOIN_S * rate:
            words[-1] = (words[-1][0], end)
        else:
            words.append((start, end))
    return [(start, end) for start, end in words if end - start >= _SHORTEST_S * rate]


def _recognise(bundle: Bundle, file: Path, wave: Waveform, start: int, end: int) -> Heard:
    """The word at ``start..end``, with as much of its surroundings as the student's window holds."""
    (window,) = bundle.manifest.input.sizes
    if end - start < window:
        slack = window - (end - start)
        start = max(0, min(start - slack // 2, len(wave.samples) - window))
        end = min(len(wave.samples), start + window)
    samples, offset = fit_length(wave.samples[start:end], window)
    said = bundle.predict(samples.astype(np.float32))
    begin = start + max(0, offset)
    finish = min(end, begin + window)
    return Heard(str(file), begin / wave.rate_hz, finish / wave.rate_hz, said.label, said.confidence, said.latency_ms)


def _say(heard: Heard, min_confidence: float, *, as_json: bool) -> None:
    label = heard.label if heard.confidence >= min_confidence else "?"
    if as_json:
        print(json.dumps({**asdict(heard), "label": label}), flush=True)
    else:
        when = f"{heard.start_s:6.2f} - {heard.end_s:5.2f} s"
        print(f"{heard.file}  {when}  {label:>4}  {heard.confidence:6.1%}  {heard.latency_ms:7.3f} ms", flush=True)
