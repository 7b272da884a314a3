"""VGGSound-AVEL50k (Zhou and others, IEEE TPAMI 2022): 10 s clips of 141 sound events, as features per second.

The clips themselves are on YouTube; what is read here are features that people extract from them: per clip one
``.npy`` of visual maps and one of audio vectors, named after the clip.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.readers import RawFiles
from distill.datasets.sources import Source
from distill.datasets.spec import SPLITS
from mst_edge.core.errors import UserError

SHAPES: Mapping[str, tuple[int, ...]] = {"visual": (10, 7, 7, 512), "audio": (10, 128)}
_VIDEO_CHARACTERS = 11  # of a YouTube address


@dataclass(frozen=True)
class Clip:
    """One row of the annotations whose features are there; ``split`` as annotated, -1 where it is not."""

    name: str
    label: int
    split: int
    stems: Mapping[str, str]

    @property
    def video(self) -> str:
        """The video that the clip was cut from."""
        return self.name[:_VIDEO_CHARACTERS]


@dataclass(frozen=True)
class Listing:
    """Clips in the order of the annotations, and all classes in the order of their first appearance there."""

    clips: list[Clip]
    classes: tuple[str, ...]


def read_listing(root: Path, fetch: str) -> Listing:
    """The annotated clips that have features; a clip without any was not to be had and is left out.

    Raises:
        UserError: a file is missing or malformed, a clip has features of one modality only, or none has any.
    """
    path = ANNOTATIONS.locate(root, fetch)
    rows = read_annotations(path)
    stems = {name: _stems(source.locate(root, fetch), set(rows)) for name, source in FEATURES.items()}
    classes = tuple(dict.fromkeys(category for category, _ in rows.values()))
    number = {category: label for label, category in enumerate(classes)}
    clips = []
    for name, (category, split) in rows.items():
        held = {modality: by_name[name] for modality, by_name in stems.items() if name in by_name}
        if 0 < len(held) < len(stems):
            (absent,) = set(stems) - set(held)
            raise UserError(
                f"clip {name} has no {absent} features",
                where=FEATURES[absent].locate(root, fetch),
                fix="add them, or remove the clip's others",
            )
        if held:
            clips.append(Clip(name, number[category], split, held))
    if not clips:
        raise UserError("no annotated clip has features", where=path.parent)
    return Listing(clips, classes)


def read_annotations(path: Path) -> dict[str, tuple[str, int]]:
    """Clip to its category and its split (0, 1, 2, or -1 without a column ``split``), in the file's order."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=path) from None
    rows = csv.DictReader(io.StringIO(text))
    columns = list(rows.fieldnames or [])
    absent = [name for name in ("video_id", "category") if name not in columns]
    if absent:
        raise UserError(f"has no column {absent[0]}; its columns: {', '.join(columns)}", where=path)
    found: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(rows, start=2):
        name, category, split = ((row.get(key) or "").strip() for key in ("video_id", "category", "split"))
        if not name or not category:
            raise UserError("lacks video_id or category", where=f"{path}:{number}")
        if name in found:
            raise UserError(f"holds {name} a second time", where=f"{path}:{number}")
        if "split" in columns and split not in SPLITS:
            raise UserError(f"split {split!r} is none of {', '.join(SPLITS)}", where=f"{path}:{number}")
        found[name] = category, SPLITS.index(split) if split else -1
    return found


def read_features(path: Path, modality: str, stems: list[str]) -> Iterator[NDArray[Any]]:
    """Features ``SHAPES[modality]`` of clips, one in memory at a time.

    Raises:
        UserError: one is damaged, of another shape, or holds NaN; names the file.
    """
    with RawFiles(path, (".npy",)) as files:
        for stem in stems:
            where = files.where(stem)
            try:
                array = np.load(io.BytesIO(files.content(stem)), allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise UserError(f"not a readable .npy array ({error})", where=where) from None
            if array.shape != SHAPES[modality] or array.dtype.kind != "f":
                raise UserError(
                    f"expected floats of shape {SHAPES[modality]}, received {array.shape} {array.dtype}", where=where
                )
            if not np.isfinite(array).all():
                raise UserError("holds NaN or infinity", where=where)
            yield array


def _stems(path: Path, names: set[str]) -> dict[str, str]:
    """Clip to the stem of its file: its name, or one letter before the first 11 characters of it, as published."""
    with RawFiles(path, (".npy",)) as files:
        stems = files.stems()
    found: dict[str, str] = {}
    for stem in stems:
        name = stem if stem in names else stem[1 : 1 + _VIDEO_CHARACTERS]
        if name in names and found.setdefault(name, stem) != stem:
            raise UserError(f"holds clip {name} as {found[name]} and as {stem}", where=path)
    return found


def _check_features(modality: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        with RawFiles(path, (".npy",)) as files:
            stems = files.stems()
        if not stems:
            raise UserError("holds no .npy file", where=path)
        for _ in read_features(path, modality, stems):
            pass

    return check


def _check_annotations(path: Path) -> None:
    if not read_annotations(path):
        raise UserError("holds no rows", where=path)


ANNOTATIONS = Source("VGGSound annotations", ("vggsound/vggsound-avel50k.csv",), (), _check_annotations)
FEATURES = {
    name: Source(f"VGGSound {name} features", (f"vggsound/{name}", f"vggsound/{name}.zip"), (), _check_features(name))
    for name in SHAPES
}
