"""Tracks of real spoken digits in silence and noise, for the benchmarks of streams.

Utterances are those of the Free Spoken Digit Dataset, noise is ESC-10. What a bundle was trained on is left out: its
utterances were split by recording with seed 0, as ``recipes/avmnist.yaml`` does, and so are folds of ESC-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.datasets.raw import esc10, fsdd
from distill.datasets.splits import SplitRule, assign

RATE_HZ = fsdd.SAMPLE_RATE_HZ
PARTS = {"val": 1, "test": 2}
_FOLD = {"val": 4, "test": 5}
_FETCH = "mst-edge data fetch avmnist"
_PEAK = 0.3
_FRAME = RATE_HZ // 50
_QUIET_DB = 45.0  # "silence" is white noise so far below the words


@dataclass(frozen=True)
class Word:
    """A digit at ``start_s`` to ``end_s`` of a track: the frames of 20 ms within 30 dB of its loudest."""

    digit: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Track:
    """``samples`` ``(n,)`` at 8 kHz and the words in them."""

    samples: NDArray[np.float32]
    words: tuple[Word, ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / RATE_HZ


class Studio:
    """Makes tracks of one part of the data: ``val`` to tune on, ``test`` to report."""

    def __init__(self, root: Path, part: str, seed: int = 0) -> None:
        utterances = list(fsdd.read_fsdd(root, _FETCH))
        digits = np.array([utterance.digit for utterance in utterances])
        mine = np.flatnonzero(assign(digits, None, SplitRule(seed=0)) == PARTS[part])
        self._utterances = [utterances[k] for k in mine]
        self._noises = [clip.wave for clip in esc10.read_esc10(root, _FETCH, RATE_HZ) if clip.fold == _FOLD[part]]
        self._seed = seed

    def words(self, count: int, snr_db: float | None, gap_s: tuple[float, float] = (0.4, 2.0)) -> Track:
        """``count`` utterances at random, silence of ``gap_s`` between them, noise without an end under all of it.

        Args:
            snr_db: mean power of the words over that of the noise; None for white noise 45 dB below.
        """
        rng = np.random.default_rng([self._seed, 0 if snr_db is None else 100 + int(snr_db)])
        parts, words, place = [], [], 0
        for number in rng.choice(len(self._utterances), count, replace=count > len(self._utterances)):
            gap = int(rng.uniform(*gap_s) * RATE_HZ)
            wave = self._utterances[number].pcm / 32768.0
            wave = wave * (_PEAK / np.abs(wave).max())
            power = np.square(wave[: len(wave) // _FRAME * _FRAME]).reshape(-1, _FRAME).mean(axis=1)
            loud = np.flatnonzero(power > power.max() / 1000) * _FRAME + place + gap
            words.append(Word(self._utterances[number].digit, loud[0] / RATE_HZ, (loud[-1] + _FRAME) / RATE_HZ))
            parts += [np.zeros(gap), wave]
            place += gap + len(wave)
        track = np.concatenate([*parts, np.zeros(RATE_HZ)])
        spoken = np.concatenate(parts[1::2])
        noise = rng.normal(size=len(track)) if snr_db is None else self._noise(len(track), rng)
        power_ratio = 10 ** ((_QUIET_DB if snr_db is None else snr_db) / 10)
        return _track(track + noise * np.sqrt(np.square(spoken).mean() / power_ratio), tuple(words))

    def noise(self, seconds: float, rms: float) -> Track:
        """Noise alone, its loudness ``rms`` of full scale."""
        rng = np.random.default_rng([self._seed, 1])
        return _track(rms * self._noise(int(seconds * RATE_HZ), rng), ())

    def _noise(self, length: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Clips one after the other, each of unit power; ESC-10 pads short sounds with zeros, which are left out."""
        parts, held = [], 0
        while held < length:
            clip = self._noises[rng.integers(len(self._noises))]
            sound = np.flatnonzero(clip)
            clip = clip[sound[0] : sound[-1] + 1]
            parts.append(clip / np.sqrt(np.square(clip).mean()))
            held += len(clip)
        return np.concatenate(parts)[:length]


def _track(wave: NDArray[np.float64], words: tuple[Word, ...]) -> Track:
    """As 16-bit sound is: what is beyond full scale is cut off."""
    return Track((np.round(np.clip(wave, -1, 1) * 32767) / 32768).astype(np.float32), words)
