"""``vggsound``: 141 sound events, seen and heard, from features of every second of a 10 s clip.

Features are stored as extracted; what they are scaled by is the front end's business, which learns it from training
clips alone. (The published benchmark divides by the extremes of all clips, test clips included.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from distill.datasets.arrays import DatasetFile, ModalityFile, arrays_folder
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.raw import vggsound
from distill.datasets.spec import Kind
from distill.datasets.splits import OFFICIAL, RANDOM, REFERENCE, SplitRule, split_codes
from mst_edge.core.errors import UserError

_FETCH = "mst-edge data fetch vggsound"


@dataclass(frozen=True)
class VggSoundOptions:
    """What a recipe may set under ``dataset.options``.

    Attributes:
        segments: what the 10 seconds of the audio are to networks: ``channels``, as in the published
            benchmark, or ``time``.
        precision: of the stored visual maps; in float32 a clip takes 1 MB.
    """

    segments: Literal["channels", "time"] = "channels"
    precision: Literal["float32", "float16"] = "float32"


@DATASETS.register("vggsound")
class VggSound(DatasetBuilder):
    """``visual`` (10, 7, 7, 512) feature maps and ``audio`` 10 x 128 features; 141 classes."""

    summary = "visual and audio features of 141 sound events (VGGSound-AVEL50k)"
    licence = "annotations CC BY 4.0 (VGGSound); clips under YouTube's terms"
    Options: ClassVar[type] = VggSoundOptions
    groupings = ("video", OFFICIAL, RANDOM, REFERENCE)
    sources = (vggsound.ANNOTATIONS, *vggsound.FEATURES.values())

    def check_together(self, root: Path) -> None:
        vggsound.read_listing(root, _FETCH)

    def build(self, options: VggSoundOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        root = require_root(data_root, "vggsound")
        listing = vggsound.read_listing(root, _FETCH)
        clips = listing.clips
        target = np.array([clip.label for clip in clips])
        video = np.array([clip.video for clip in clips])
        official = np.array([clip.split for clip in clips])
        if rule.by == OFFICIAL and (official < 0).any():
            raise UserError("has no column split", where=vggsound.ANNOTATIONS.locate(root, _FETCH))
        about = DatasetFile(
            name="vggsound",
            classes=list(listing.classes),
            modalities={"visual": ModalityFile(kind=Kind.VIDEO), "audio": ModalityFile(kind=Kind.SEQUENCE)},
            groups={"video": "video.npy"},
            split="split.npy",
            licence=self.licence,
            source="VGGSound-AVEL50k",
        )
        with arrays_folder(out, about) as writer:
            for name, source in vggsound.FEATURES.items():
                path, stems = source.locate(root, _FETCH), [clip.stems[name] for clip in clips]
                rows = vggsound.read_features(path, name, stems)
                shape = vggsound.SHAPES[name]
                if name == "audio" and options.segments == "channels":
                    # A sequence is stored as (time, channels): the 128 values are the "time" then.
                    rows, shape = (row.T for row in rows), shape[::-1]
                dtype = options.precision if name == "visual" else "float32"
                writer.stream(name, (len(clips), *shape), dtype, rows)
            writer.save("target", target)
            writer.save("video", video)
            writer.save("split", official if rule.by == OFFICIAL else split_codes(target, {"video": video}, rule))
