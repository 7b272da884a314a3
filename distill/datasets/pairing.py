"""Pairs of recordings of two modalities that share a class, made inside each split; and noise at a given SNR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.datasets.splits import SplitRule


@dataclass(frozen=True)
class Pairs:
    """``first`` and ``second`` are recording numbers, ``split`` 0 train, 1 val, 2 test; all ``(pairs,)``."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    target: NDArray[np.int64]
    split: NDArray[np.int64]


def pair_within_class(
    first_target: NDArray[np.int64],
    first_split: NDArray[np.int64],
    second_target: NDArray[np.int64],
    second_split: NDArray[np.int64],
    rule: SplitRule,
    pairs: int,
) -> Pairs:
    """Draws ``pairs`` pairs at random within class and split, every recording used about equally often.

    The two ``*_split`` say in which split each recording lies; a pair never crosses splits, so no
    recording is ever in two of them.
    """
    rng = np.random.default_rng([rule.seed, 1])
    classes = np.unique(first_target)
    parts: list[tuple[NDArray[np.int64], ...]] = []
    for code, share in enumerate(rule.shares):
        per_class = np.full(len(classes), round(pairs * share) // len(classes))
        per_class[: round(pairs * share) % len(classes)] += 1
        for label, count in zip(classes, per_class, strict=True):
            first = _deal(np.flatnonzero((first_target == label) & (first_split == code)), count, rng)
            second = _deal(np.flatnonzero((second_target == label) & (second_split == code)), count, rng)
            parts.append((first, second, np.full(count, label), np.full(count, code)))
    columns = [np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True)]
    order = rng.permutation(len(columns[0]))
    return Pairs(*(column[order] for column in columns))


def _deal(members: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` members in random order, none used twice before all were used once."""
    if not len(members):
        raise ValueError("a class has no recording in one of the splits")
    rounds = -(-count // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)])[:count]


def mix_at_snr(speech: NDArray[np.float64], noise: NDArray[np.float64], snr_db: float) -> NDArray[np.float64]:
    """``speech`` plus ``noise`` scaled so that their power ratio is ``snr_db``.

    Speech power is taken where there is speech (non-zero samples), so that padding does not count.
    """
    active = speech[speech != 0]
    speech_power = float(np.mean(active**2)) if active.size else 0.0
    noise_power = float(np.mean(noise**2))
    if speech_power == 0 or noise_power == 0:
        return speech
    return speech + noise * np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10))


def place(clip: NDArray[np.float64], length: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """``clip`` at a random offset in ``length`` samples of silence; a longer one is cut at random."""
    if len(clip) >= length:
        start = int(rng.integers(0, len(clip) - length + 1))
        return clip[start : start + length]
    out = np.zeros(length)
    start = int(rng.integers(0, length - len(clip) + 1))
    out[start : start + len(clip)] = clip
    return out


def to_pcm16(wave: NDArray[np.float64], peak: float = 0.9) -> NDArray[np.int16]:
    """16-bit PCM; scaled down to ``peak`` only where it would clip."""
    loudest = float(np.abs(wave).max(initial=0.0))
    scale = peak / loudest if loudest > peak else 1.0
    return np.round(wave * scale * 32767).astype(np.int16)
