"""Made-up opinions on an ordinal scale: what is said and what a face does are two views of one number in [-3, 3]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CENTRES = [-3, -2, -1, 0, 1, 2, 3]
_WORDS = ["awful", "poor", "dull", "fine", "nice", "great", "superb"]
# A hundred words, from the most negative to the most positive: what each says takes many texts to learn.
RICH = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("lm", "rt", "nz", "st")]
_FILLERS = ["the", "film", "was", "and", "its", "end", "seemed", "to", "me"]


def make_opinions(
    samples: int, seed: int = 0, label_noise: float = 0.0, spread: float = 0.8, lexicon: Sequence[str] = tuple(_WORDS)
) -> tuple[NDArray[np.str_], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Texts, videos ``(samples, 12, 5)``, labels with noise and without.

    The label is half what the words say and half what the face says; both differ by ``spread`` from one hidden mood.
    """
    rng = np.random.default_rng(seed)
    mood = rng.uniform(-3, 3, samples)
    said, shown = (np.clip(mood + rng.normal(0, spread, samples), -3, 3) for _ in range(2))
    clean = (said + shown) / 2
    texts = []
    for number in said:
        strong = (np.clip(number + rng.normal(0, 0.5, 3), -3, 3) + 3) / 6 * (len(lexicon) - 1)
        words = [lexicon[k] for k in np.round(strong).astype(int)] + list(rng.choice(_FILLERS, 3))
        texts.append(" ".join(rng.permutation(words)))
    shape = np.linspace(0, np.pi, 12)[None, :, None]
    video = shown[:, None, None] * np.sin(shape + np.arange(5)) + rng.normal(0, 0.7, (samples, 12, 5))
    noisy = np.clip(clean + rng.normal(0, label_noise, samples) if label_noise else clean, -3, 3)
    return np.array(texts), video.astype(np.float32), noisy.astype(np.float32), clean.astype(np.float32)


def write_opinions(
    folder: Path, samples: int = 300, *, seed: int = 0, label_noise: float = 0.0, train: int = 0, **said: Any
) -> Path:
    """A folder of arrays: ``text``, ``video`` and the number ``sentiment`` with its scale.

    Args:
        label_noise: deviation of what is added to labels of training and validation samples.
        train: so many training samples, a quarter of it to validate, the rest to test with clean labels; 0 leaves
            the split to the recipe.
        said: more for ``make_opinions``.
    """
    texts, video, noisy, clean = make_opinions(samples, seed, label_noise, **said)
    folder.mkdir(parents=True)
    np.save(folder / "text.npy", texts)
    np.save(folder / "video.npy", video)
    target = noisy
    if train:
        split = np.full(samples, 2)
        split[:train], split[train : train + train // 4] = 0, 1
        target = np.where(split == 2, clean, noisy)
        np.save(folder / "split.npy", split)
    np.save(folder / "target.npy", target)
    (folder / "dataset.yaml").write_text(
        f"name: opinions\ntask: regression\ntarget_names: [sentiment]\nordinal: {CENTRES}\n", encoding="utf-8"
    )
    return folder
