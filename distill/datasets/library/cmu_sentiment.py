"""``cmu_mosi`` and ``cmu_mosei``: how positive an opinion is, from its words, a face and a voice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from distill.datasets.arrays import DatasetFile, ModalityFile, arrays_folder
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.raw import cmu_csd
from distill.datasets.raw import cmu_sentiment as raw
from distill.datasets.sources import Source
from distill.datasets.spec import Kind
from distill.datasets.splits import OFFICIAL, RANDOM, SplitRule, split_codes


@dataclass(frozen=True)
class Options:
    """What is read.

    Attributes:
        layout: ``features``, one file in the layout of MMSA; ``csd``, a folder of the SDK's computational sequences.
        frames: of ``csd``: what each sequence of an utterance is brought to.
    """

    layout: Literal["features", "csd"] = "features"
    frames: int = 50

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError("frames must be 1 or more")


class _CmuSentiment(DatasetBuilder):
    """``text``, ``vision`` and ``audio`` of utterances; a number in [-3, 3] with seven classes."""

    name: ClassVar[str]
    Options = Options
    groupings = (OFFICIAL, "video", RANDOM)

    def needs(self, options: Any) -> Sequence[Source]:
        return (cmu_csd.folder_source(self.name),) if options.layout == "csd" else self.sources

    def build(self, options: Any, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        root = require_root(data_root, self.name)
        (source,) = self.needs(options)
        path, note = source.locate(root, f"mst-edge data fetch {self.name}"), ""
        if options.layout == "csd":
            segments = cmu_csd.read_segments(path, options.frames, official=rule.by == OFFICIAL)
            held, note = segments.utterances, f"; {segments.left_out} utterances without words, rows or part left out"
        else:
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
            source=f"{self.summary}, features as extracted by others{note}",
        )
        # Numbers have no classes to keep in proportion.
        none = np.zeros(len(held.labels), np.int64)
        with arrays_folder(out, about) as writer:
            writer.save("text", np.array(held.texts))
            for name in raw.SEQUENCES:
                rows = (
                    cmu_csd.read_cut(path, name, segments)
                    if options.layout == "csd"
                    else raw.read_sequences(path, name)
                )
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
