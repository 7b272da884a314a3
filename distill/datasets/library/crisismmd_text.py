"""``crisismmd_text``: what a tweet about a disaster says, from its words alone.

One sample per tweet, in the official splits of the agreed labels. Of tweets that say the same words (retweets,
and copies that differ in addresses and names), those in an earlier split are left out where a later one has
them too: what is tested was never trained on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from apps.runtime.tokenizer import pieces
from distill.datasets.arrays import DatasetFile, ModalityFile, save_arrays
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.raw import crisismmd
from distill.datasets.spec import Kind
from distill.datasets.splits import OFFICIAL, SplitRule, split_codes

_FETCH = "mst-edge data fetch crisismmd_text"
_TASK = "humanitarian"
_RETWEET = re.compile(r"^RT @\w+:? ")


@dataclass(frozen=True)
class CrisisMmdTextOptions:
    """What a recipe may set under ``dataset.options``.

    Attributes:
        classes: the usual 5: injured and missing people count as affected ones, vehicles as infrastructure; or
            all 8, of which one has two training samples.
    """

    classes: Literal[5, 8] = 5


@DATASETS.register("crisismmd_text")
class CrisisMmdText(DatasetBuilder):
    """``text`` of tweets; 5 or 8 classes of very different sizes."""

    summary = "text of tweets about disasters (CrisisMMD v2.0)"
    licence = "CC BY-NC-SA 4.0 (research); tweets under Twitter's terms"
    Options: ClassVar[type] = CrisisMmdTextOptions
    groupings = (OFFICIAL, "words", "event")
    sources = crisismmd.sources(_TASK)

    def build(self, options: CrisisMmdTextOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        posts = crisismmd.one_per_tweet(crisismmd.read_posts(require_root(data_root, "crisismmd_text"), _TASK, _FETCH))
        words = [said(post.text) for post in posts]
        if rule.by == OFFICIAL:
            last = {key: post.split for key, post in zip(words, posts, strict=True)}  # posts come in split order
            kept = [number for number, post in enumerate(posts) if last[words[number]] == post.split]
            posts, words = [posts[number] for number in kept], [words[number] for number in kept]
        merged = options.classes == 5
        names = crisismmd.class_names(_TASK, merged=merged)
        target = np.array([names.index(crisismmd.class_of(post, merged=merged)) for post in posts])
        groups: dict[str, NDArray[Any]] = {
            "words": np.unique(words, return_inverse=True)[1],
            "event": np.array([post.event for post in posts]),
        }
        official = np.array([post.split for post in posts])
        about = DatasetFile(
            name="crisismmd_text",
            classes=list(names),
            modalities={"text": ModalityFile(kind=Kind.TEXT)},
            groups={name: f"{name}.npy" for name in groups},
            split="split.npy",
            licence=self.licence,
            source="CrisisMMD v2.0, agreed labels",
        )
        split = official if rule.by == OFFICIAL else split_codes(target, groups, rule)
        texts = np.array([post.text for post in posts])
        save_arrays(out, {"text": texts, "target": target, "split": split, **groups}, about)


def said(text: str) -> str:
    """What two tweets have in common that say the same: no case, no addresses, no names, no marks, no retweet sign."""
    parts = pieces(_RETWEET.sub("", text), lower_case=True)
    return " ".join(re.findall(r"\w+", "".join(part for part in parts if isinstance(part, str))))
