"""Makes ``spoken_digits.flac`` and ``spoken_digits.csv``: spoken digits synthesised with eSpeak NG.

Run once, with the program ``espeak-ng`` (1.51 made the committed files) on the path:

    python distill/datasets/assets/synthesize_spoken_digits.py

A speaker is one accent with one voice variant; every speaker says every digit once, at a random
speed and pitch. Clips are resampled to 8 kHz, trimmed, brought to one peak level, rounded to 12 bits
(noise is mixed in later, far above that) and written one after the other into a single FLAC file,
which is lossless from there on. The table says where each clip lies.
"""

from __future__ import annotations

import csv
import io
import subprocess
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

SAMPLE_RATE_HZ = 8000
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ACCENTS = ["en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc"]
VARIANTS = [
    "Andy",
    "Annie",
    "Denis",
    "Gene",
    "Lee",
    "Michael",
    "adam",
    "anika",
    "belinda",
    "caleb",
    "f2",
    "f4",
    "f5",
    "john",
    "klatt2",
    "linda",
    "m1",
    "m3",
    "m7",
    "steph",
]
_PEAK_12_BIT = 1843  # 0.9 of full scale
_SILENCE = 0.01  # of the peak


def synthesize(voice: str, speed_wpm: int, pitch: int, word: str) -> NDArray[np.int16]:
    """``(samples,)`` 16-bit PCM at 8 kHz whose lowest 4 bits are zero."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed_wpm), "-p", str(pitch), "--stdout", word]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    # espeak-ng streams with a data length it cannot know yet: write the true one into the header.
    wav = wav[:40] + (len(wav) - 44).to_bytes(4, "little") + wav[44:]
    wave, rate = soundfile.read(io.BytesIO(wav))
    wave = resample_poly(wave, SAMPLE_RATE_HZ // 50, rate // 50)
    peak = np.abs(wave).max()
    loud = np.flatnonzero(np.abs(wave) > _SILENCE * peak)
    wave = wave[max(0, loud[0] - 80) : loud[-1] + 80]
    return (np.round(wave / peak * _PEAK_12_BIT) * 16).astype(np.int16)


def main() -> None:
    """Writes both files beside this script."""
    rng = np.random.default_rng(2025)
    rows, clips, start = [], [], 0
    for variant in VARIANTS:
        for accent in ACCENTS:
            for digit, word in enumerate(WORDS):
                speed, pitch = int(rng.integers(120, 230)), int(rng.integers(20, 81))
                clip = synthesize(f"{accent}+{variant}", speed, pitch, word)
                rows.append((digit, f"{accent}+{variant}", speed, pitch, start, len(clip)))
                clips.append(clip)
                start += len(clip)
    here = Path(__file__).parent
    soundfile.write(here / "spoken_digits.flac", np.concatenate(clips), SAMPLE_RATE_HZ, "PCM_16", compression_level=1.0)
    with (here / "spoken_digits.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("digit", "speaker", "speed_wpm", "pitch", "start", "samples"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
