"""Small made-up texts of three classes that a bag of tokens can learn."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np

_SAYS = {
    "calm": ["a nice day in", "lovely coffee at", "watching birds near"],
    "fire": ["the wildfire burns near", "smoke and flames over", "evacuate now, it burns in"],
    "flood": ["water rises in", "the river flooded", "streets under water at"],
}
_WHERE = ["Solano", "Köln", "東京", "Houston"]


def make_texts(samples: int = 240, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts and their classes."""
    draw = random.Random(seed)
    classes = [list(_SAYS)[number % 3] for number in range(samples)]
    ends = ["", "!", "https://t.co/{}", "@user{}", "🔥🔥"]
    return [
        f"{draw.choice(_SAYS[name])} {draw.choice(_WHERE)} {draw.choice(ends).format(number)}".strip()
        for number, name in enumerate(classes)
    ], classes


def write_text_arrays(folder: Path, samples: int = 240) -> Path:
    """A folder of arrays with one modality, ``text``."""
    texts, classes = make_texts(samples)
    folder.mkdir(parents=True)
    np.save(folder / "text.npy", np.array(texts))
    np.save(folder / "target.npy", np.array(classes))
    return folder


def write_text_table(path: Path, samples: int = 240) -> Path:
    """A CSV with the columns ``text`` and ``target``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "target"])
        writer.writerows(zip(*make_texts(samples), strict=True))
    return path
