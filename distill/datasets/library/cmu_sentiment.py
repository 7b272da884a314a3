"""``cmu_mosi`` and ``cmu_mosei``: how positive an opinion is, from its words, a face and a voice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from distill.datasets.arrays import DatasetFile, ModalityFile, arrays_folder
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.raw import cmu_sentiment as raw
from distill.datasets.spec import Kind
from distill.datasets.splits import OFFICIAL, RANDOM, SplitRule, split_codes


class _CmuSentiment(DatasetBuilder):
    """``text``, ``vision`` and ``audio`` of utterances; a number in [-3, 3] with seven classes."""

    name: ClassVar[str]
    groupings = (OFFICIAL, "video", RANDOM)

    def build(self, options: Any, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        root = require_root(data_root, self.name)
        path = self.sources[0].locate(root, f"mst-edge data fetch {self.name}")
        held = raw.read_utterances(path)
        groups = {"video": np.array(held.videos)}
        about = DatasetFile(
            name=self.name,
            task="regression",
            target_names=["sentiment"],
            ordinal=[float(centre) for centre in range(-raw.RANGE, raw.RANGE + 1)],
            modalities={
                "text": ModalityFile(kind=Kind.TEXT),
                **{name: ModalityFile(kind=Kind.SEQUENCE) for name in raw.SEQUENCES},
            },
            groups={"video": "video.npy"},
            split="split.npy",
            licence=self.licence,
            source=f"{self.summary}, features as extracted by others",
        )
        # Numbers have no classes to keep in proportion.
        none = np.zeros(len(held.labels), np.int64)
        with arrays_folder(out, about) as writer:
            writer.save("text", np.array(held.texts))
            for name in raw.SEQUENCES:
                rows = raw.read_sequences(path, name)
                writer.stream(name, (len(held.labels), *held.shapes[name]), np.float32, rows)
            writer.save("target", held.labels)
            writer.save("video", groups["video"])
            writer.save("split", held.splits if rule.by == OFFICIAL else split_codes(none, groups, rule))


@DATASETS.register("cmu_mosi")
class CmuMosi(_CmuSentiment):
    """2 199 utterances of 93 videos."""

    name = "cmu_mosi"
    summary = "sentiment of opinions on video (CMU-MOSI)"
    licence = "not stated; for research, as its authors ask"
    sources = (raw.feature_source("cmu_mosi"),)


@DATASETS.register("cmu_mosei")
class CmuMosei(_CmuSentiment):
    """About 23 000 utterances of 3 228 videos."""

    name = "cmu_mosei"
    summary = "sentiment of opinions on video (CMU-MOSEI)"
    licence = "not stated; for research, as its authors ask"
    sources = (raw.feature_source("cmu_mosei"),)
