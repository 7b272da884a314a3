"""``crisismmd``: what a tweet about a disaster says, from features of its image and of its text.

Both features are one vector per post, made once by frozen extractors as in the published benchmark (ResNet-50
pooled, 2048; BERTweet pooled, 768); or the image is the picture itself, for a student on a device. CrisisMMD's
images come from its authors, so the file of features is yours to make; docs/data.md says what it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DatasetFile, ModalityFile, arrays_folder
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.raw import crisismmd
from distill.datasets.sources import Source
from distill.datasets.spec import Kind
from distill.datasets.splits import OFFICIAL, RANDOM, REFERENCE, SplitRule, split_codes
from mst_edge.core.errors import UserError

_FETCH = "mst-edge data fetch crisismmd"
_TASK = "humanitarian"


@dataclass(frozen=True)
class CrisisMmdOptions:
    """What a recipe may set under ``dataset.options``.

    Attributes:
        classes: 8, or the usual 5: injured and missing people count as affected ones, vehicles as
            infrastructure.
        image: ``features``, or ``pixels`` of the images themselves.
        image_size: height and width that images are resized to.
    """

    classes: Literal[5, 8] = 8
    image: Literal["features", "pixels"] = "features"
    image_size: int = 224

    def __post_init__(self) -> None:
        if self.image_size < 8:
            raise UserError(
                f"image_size must be at least 8, received {self.image_size}", where="dataset.options.image_size"
            )


@DATASETS.register("crisismmd")
class CrisisMmd(DatasetBuilder):
    """``image`` (2048,) float32 or pixels (224, 224, 3) uint8, ``text`` (768,) float32; 8 or 5 classes."""

    summary = "image and text features of tweets about disasters (CrisisMMD v2.0)"
    licence = "CC BY-NC-SA 4.0 (research); tweets under Twitter's terms"
    Options: ClassVar[type] = CrisisMmdOptions
    groupings = (OFFICIAL, "tweet", "event", RANDOM, REFERENCE)
    sources = (*crisismmd.sources(_TASK), crisismmd.feature_source(list(crisismmd.FEATURES)))

    def needs(self, options: CrisisMmdOptions) -> Sequence[Source]:
        pictures = [crisismmd.IMAGE_SOURCE] if options.image == "pixels" else []
        return (*crisismmd.sources(_TASK), crisismmd.feature_source(_vectors(options)), *pictures)

    def check_together(self, root: Path) -> None:
        features = crisismmd.open_features(self.sources[-1].locate(root, _FETCH), ())
        if features.image_ids:
            _posts(features, crisismmd.read_posts(root, _TASK, _FETCH))

    def build(self, options: CrisisMmdOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        root = require_root(data_root, "crisismmd")
        vectors = _vectors(options)
        features = crisismmd.open_features(self.sources[-1].locate(root, _FETCH), vectors)
        merged = options.classes == 5
        names = crisismmd.class_names(_TASK, merged=merged)
        every = crisismmd.class_names(_TASK)
        number = [names.index(crisismmd.MERGED.get(name, name) if merged else name) for name in every]
        target = np.array([number[label] for label in features.labels])
        posts = _posts(features, crisismmd.read_posts(root, _TASK, _FETCH)) if features.image_ids else []
        known = _of_tables(posts) if posts else {}
        if not known and rule.by not in (RANDOM, REFERENCE):
            raise UserError(
                f"has no array image_id, so nobody knows the {rule.by} of a row",
                where=features.path,
                fix=f"add image_id as in the tables, or set dataset.split.by to {RANDOM} or {REFERENCE}",
            )
        if not posts and options.image == "pixels":
            raise UserError("has no array image_id, so nobody knows the image of a row", where=features.path)
        split = known[OFFICIAL] if rule.by == OFFICIAL else split_codes(target, known, rule)
        groups = {name: array for name, array in known.items() if name != OFFICIAL}
        about = DatasetFile(
            name="crisismmd",
            classes=list(names),
            modalities={
                name: ModalityFile(kind=Kind.VECTOR if name in vectors else Kind.IMAGE) for name in crisismmd.FEATURES
            },
            groups={name: f"{name}.npy" for name in groups},
            split="split.npy",
            licence=self.licence,
            source="CrisisMMD v2.0, agreed labels",
        )
        with arrays_folder(out, about) as writer:
            for name in vectors:
                writer.stream(name, (len(target), crisismmd.FEATURES[name]), np.float32, features.rows(name))
            if options.image == "pixels":
                images = crisismmd.read_images(crisismmd.IMAGE_SOURCE.locate(root, _FETCH), posts, options.image_size)
                writer.stream("image", (len(target), options.image_size, options.image_size, 3), np.uint8, images)
            for name, array in {"target": target, "split": split, **groups}.items():
                writer.save(name, array)


def _vectors(options: CrisisMmdOptions) -> list[str]:
    return list(crisismmd.FEATURES) if options.image == "features" else ["text"]


def _of_tables(posts: Sequence[crisismmd.Post]) -> dict[str, NDArray[Any]]:
    """Tweet, event and official split of each post."""
    return {
        "tweet": np.array([post.tweet_id for post in posts]),
        "event": np.array([post.event for post in posts]),
        OFFICIAL: np.array([post.split for post in posts]),
    }


def _posts(features: crisismmd.FeatureFile, posts: Sequence[crisismmd.Post]) -> list[crisismmd.Post]:
    """The table's row of each row of features; both must hold the same posts with the same labels."""
    by_id = {post.image_id: post for post in posts}
    absent = sorted(set(by_id) - set(features.image_ids))
    if absent:
        raise UserError(f"lacks {len(absent)} posts of the tables, the first is {absent[0]}", where=features.path)
    names = crisismmd.class_names(_TASK)
    for row, (name, label) in enumerate(zip(features.image_ids, features.labels, strict=True)):
        if name not in by_id:
            raise UserError(f"row {row} is {name}, which no table knows", where=features.path)
        if by_id[name].label != names[label]:
            raise UserError(
                f"row {row} ({name}) says {names[label]}, its table {by_id[name].label}", where=features.path
            )
    return [by_id[name] for name in features.image_ids]
