"""``nyu_depth``: which of 40 things each pixel of a room shows, from colour and from depth.

Whole scenes are parted, since neighbouring frames show one room. Label 0 means that nobody labelled the pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DatasetFile, ModalityFile, arrays_folder
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.raw import nyu_depth
from distill.datasets.raw.nyu_depth import FRAMES, HEIGHT, LABELS, WIDTH, open_frames
from distill.datasets.spec import Kind
from distill.datasets.splits import RANDOM, REFERENCE, SplitRule, split_codes
from mst_edge.core.errors import UserError

_FETCH = "mst-edge data fetch nyu_depth"


@dataclass(frozen=True)
class NyuDepthOptions:
    """What a recipe may set under ``dataset.options``.

    Attributes:
        reduce: 1 for all 480 x 640 pixels; else one of every 2, 4 or 8 in both directions: colours are
            averaged, of depths and labels the middle one is taken.
    """

    reduce: Literal[1, 2, 4, 8] = 1


@DATASETS.register("nyu_depth")
class NyuDepth(DatasetBuilder):
    """``image`` (480, 640, 3) uint8, ``depth`` (480, 640) float32 metres; label maps (480, 640), 0 unlabelled."""

    summary = "colour and depth of indoor scenes, 40 classes of pixels (NYU-Depth V2)"
    licence = "not stated; for research, as its authors ask"
    Options: ClassVar[type] = NyuDepthOptions
    groupings = ("scene", RANDOM, REFERENCE)
    sources = (FRAMES, LABELS)

    def check_together(self, root: Path) -> None:
        _count(root)

    def build(self, options: NyuDepthOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        root = require_root(data_root, "nyu_depth")
        samples = _count(root)
        factor = options.reduce
        sides = HEIGHT // factor, WIDTH // factor
        middle = slice(factor // 2, None, factor)
        with open_frames(FRAMES.locate(root, _FETCH)) as frames, open_frames(LABELS.locate(root, _FETCH)) as labels:
            groups = _groups(frames, rule, samples)
            about = DatasetFile(
                name="nyu_depth",
                task="segmentation",
                classes=list(nyu_depth.CLASSES),
                ignore_label=nyu_depth.UNLABELLED,
                modalities={"image": ModalityFile(kind=Kind.IMAGE), "depth": ModalityFile(kind=Kind.IMAGE)},
                groups={name: f"{name}.npy" for name in groups},
                split="split.npy",
                licence=self.licence,
                source="NYU-Depth V2",
            )
            with arrays_folder(out, about) as writer:
                writer.stream("image", (samples, *sides, 3), np.uint8, _averaged(frames.images(), factor))
                depths = (depth[middle, middle] for depth in frames.depths())
                writer.stream("depth", (samples, *sides), np.float32, depths)
                maps = (label[middle, middle] for label in labels.labels())
                writer.stream("target", (samples, *sides), np.uint8, maps)
                for name, array in groups.items():
                    writer.save(name, array)
                # Pixels have classes, frames have none: the split keeps nothing in proportion.
                writer.save("split", split_codes(np.zeros(samples, np.int64), groups, rule))


def _count(root: Path) -> int:
    """How many samples there are; all arrays must agree."""
    with open_frames(FRAMES.locate(root, _FETCH)) as frames, open_frames(LABELS.locate(root, _FETCH)) as labels:
        count = frames.count("images")
        for file, name in ((frames, "depths"), (labels, "labels40")):
            if file.count(name) != count:
                raise UserError(f"{name} holds {file.count(name)} samples, images {count}", where=file.path)
    return count


def _groups(frames: nyu_depth.Frames, rule: SplitRule, samples: int) -> dict[str, NDArray[Any]]:
    scenes = frames.scenes()
    if scenes is None:
        if rule.by not in (RANDOM, REFERENCE):
            raise UserError(
                "holds no array scenes",
                where=frames.path,
                fix=f"add it, or set dataset.split.by to {RANDOM} or {REFERENCE} (one room is then in all splits)",
            )
        return {}
    if len(scenes) != samples:
        raise UserError(f"scenes holds {len(scenes)} names, images {samples}", where=frames.path)
    return {"scene": scenes}


def _averaged(images: Iterator[NDArray[np.uint8]], factor: int) -> Iterator[NDArray[np.uint8]]:
    for image in images:
        blocks = image.reshape(HEIGHT // factor, factor, WIDTH // factor, factor, 3)
        yield np.round(blocks.mean(axis=(1, 3))).astype(np.uint8) if factor > 1 else image
