"""``vegas``: ten kinds of sound events, seen and heard, as one vector each per clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DatasetFile, ModalityFile, arrays_folder
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.raw import vegas
from distill.datasets.spec import Kind
from distill.datasets.splits import OFFICIAL, RANDOM, SplitRule, assign, split_codes

_VALIDATION = 0.2  # of the file's training part


@DATASETS.register("vegas")
class Vegas(DatasetBuilder):
    """``visual`` (1024,) and ``audio`` (128,) of clips; 10 classes."""

    summary = "visual and audio features of 10 sound events (VEGAS)"
    licence = "not stated; the features' authors ask for a citation"
    groupings = (OFFICIAL, RANDOM)
    sources = (vegas.FEATURES,)

    def build(self, options: Any, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        path = vegas.FEATURES.locate(require_root(data_root, "vegas"), "mst-edge data fetch vegas")
        clips = vegas.read_clips(path)
        about = DatasetFile(
            name="vegas",
            task="classification",
            classes=[str(label) for label in range(vegas.CLASSES)],
            modalities={name: ModalityFile(kind=Kind.VECTOR) for name in vegas.WIDTHS},
            split="split.npy",
            licence=self.licence,
            source="VEGAS, features by Zeng and others",
        )
        official = rule.by == OFFICIAL
        with arrays_folder(out, about) as writer:
            for name, width in vegas.WIDTHS.items():
                writer.stream(name, (len(clips.labels), width), np.float32, vegas.read_features(path, name))
            writer.save("target", clips.labels)
            writer.save("split", _official(clips, rule.seed) if official else split_codes(clips.labels, {}, rule))


def _official(clips: vegas.Clips, seed: int) -> NDArray[np.int64]:
    """The file's test part as it is; a fifth of its training part, by ``seed`` and class by class, validates."""
    train = np.flatnonzero(clips.part == 0)
    codes = np.full(len(clips.labels), 2)
    # The third share is none: the file has its own test part.
    codes[train] = assign(
        clips.labels[train], None, SplitRule(seed, (1 - _VALIDATION, _VALIDATION / 2, _VALIDATION / 2))
    )
    codes[train[codes[train] == 2]] = 1
    return codes
