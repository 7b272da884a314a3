"""CrisisMMD v2.0 (Alam, Ofli and Imran, ICWSM 2018): tweets and their images from seven disasters, two tasks.

The tables are those of the agreed labels (Ofli, Alam and Imran, ISCRAM 2020): text and image were given the
same label. One row is one image; a tweet with several images has several rows, all in one split.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.readers import NpzFile, RawFiles, decode_picture, finite
from distill.datasets.sources import Home, Source
from mst_edge.core.errors import UserError

CLASSES: Mapping[str, tuple[str, ...]] = {
    "humanitarian": (
        "not_humanitarian",
        "affected_individuals",
        "infrastructure_and_utility_damage",
        "injured_or_dead_people",
        "missing_or_found_people",
        "rescue_volunteering_or_donation_effort",
        "vehicle_damage",
        "other_relevant_information",
    ),
    "informative": ("not_informative", "informative"),
}
# As in the publication of the agreed labels: too few people injured or missing, too few vehicles.
MERGED = {
    "injured_or_dead_people": "affected_individuals",
    "missing_or_found_people": "affected_individuals",
    "vehicle_damage": "infrastructure_and_utility_damage",
}
_IMAGES = (".jpg", ".jpeg", ".png")
FEATURES = {"image": 2048, "text": 768}
_PARTS = ("train", "dev", "test")  # in the order of the codes 0 train, 1 val, 2 test
_COLUMNS = ("event_name", "tweet_id", "image_id", "tweet_text", "image", "label")
_MAX_TABLE_BYTES = 64 << 20
_COMMIT = "8862149a36f485f980cfd6ac719cba65e296647c"
_HOME = f"https://raw.githubusercontent.com/firojalam/multimodal_social_media/{_COMMIT}/data/task_data"
_SHA256 = {
    ("humanitarian", "train"): "d4a1f6acc4a70355a23932c1b5a3ea16d26875a2f22bb12da9888045efd06b61",
    ("humanitarian", "dev"): "419808df9078bf62d0ca0ef8118e7b983c4366c6afe8ce7bd16556a79f7e29a8",
    ("humanitarian", "test"): "9261417c712da9de927ea33e4a361c5647b33ef091dc87284ec905b62fadbfc5",
    ("informative", "train"): "e87dae90a02ec96143e52d035346fc0bf0b960dc3560885983fd01b4a961891d",
    ("informative", "dev"): "34f70342ec8d71c9ac39385c05e891cc7fa46f245105bb20263720450987cf77",
    ("informative", "test"): "5937b90fc5459fbbb63ea3da7877768d14248d00f5d7b2f9d648cbebe5b21faf",
}


@dataclass(frozen=True)
class Post:
    """One row: a tweet with one of its images.

    Attributes:
        image: path of the image below the image archive's root.
        split: the official one, 0 train, 1 val (``dev``), 2 test.
    """

    event: str
    tweet_id: str
    image_id: str
    text: str
    image: str
    label: str
    split: int


def class_names(task: str, *, merged: bool = False) -> tuple[str, ...]:
    """The classes of a task in the benchmark's order; ``merged`` leaves the usual five humanitarian ones."""
    return tuple(name for name in CLASSES[task] if not (merged and name in MERGED))


def class_of(post: Post, *, merged: bool = False) -> str:
    """The post's class; ``merged`` as in ``class_names``."""
    return MERGED.get(post.label, post.label) if merged else post.label


def one_per_tweet(posts: Sequence[Post]) -> list[Post]:
    """The first row of each tweet: for who reads the text alone, or follows the published benchmark."""
    first: dict[str, Post] = {}
    for post in posts:
        first.setdefault(post.tweet_id, post)
    return list(first.values())


def read_posts(root: Path, task: str, fetch: str) -> list[Post]:
    """All rows of a task in the order train, dev, test.

    Raises:
        UserError: a table is missing or malformed, or one tweet lies in two of them; names table and line.
    """
    posts: list[Post] = []
    for split, source in enumerate(sources(task)):
        posts += read_table(source.locate(root, fetch), task, split)
    part_of: dict[str, int] = {}
    for post in posts:
        if part_of.setdefault(post.tweet_id, post.split) != post.split:
            raise UserError(
                f"tweet {post.tweet_id} is in {_PARTS[part_of[post.tweet_id]]} and in {_PARTS[post.split]}",
                where=root / "crisismmd",
                fix=f"run `{fetch}`",
            )
    return posts


def read_table(path: Path, task: str, split: int) -> list[Post]:
    """The rows of one table, plain or gzip-compressed; quotation marks are text, not syntax."""
    try:
        text = _unpacked(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 ({error})", where=path, fix="fetch it again") from None
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    header = next(lines, [])
    absent = [name for name in _COLUMNS if name not in header]
    if absent:
        raise UserError(f"has no column {absent[0]}; its columns: {', '.join(header)}", where=path)
    posts = []
    for number, line in enumerate(lines, start=2):
        where = f"{path}:{number}"
        if len(line) != len(header):
            raise UserError(f"has {len(line)} columns, the header {len(header)}", where=where)
        row = dict(zip(header, line, strict=True))
        empty = [name for name in _COLUMNS if not row[name].strip()]
        if empty:
            raise UserError(f"column {empty[0]} is empty", where=where)
        if row["label"] not in CLASSES[task]:
            raise UserError(f"label {row['label']!r} is none of the {task} task's", where=where)
        posts.append(
            Post(
                row["event_name"],
                row["tweet_id"],
                row["image_id"],
                row["tweet_text"],
                row["image"],
                row["label"],
                split,
            )
        )
    return posts


@dataclass(frozen=True)
class FeatureFile:
    """The benchmark's features of posts: one npz of ``image``, ``text``, ``label`` and, where known, ``image_id``.

    Attributes:
        labels: ``(posts,)`` class numbers 0..7 in the order of ``CLASSES``.
        image_ids: ``(posts,)`` names that tie a row to a row of the tables; empty where the file has none.
    """

    path: Path
    labels: NDArray[np.int64]
    image_ids: tuple[str, ...]

    def rows(self, name: str) -> Iterator[NDArray[Any]]:
        """Features ``image`` (2048,) or ``text`` (768,) of each post, one in memory at a time."""
        with NpzFile(self.path) as file:
            yield from finite(file.rows(name), name, self.path)


def open_features(path: Path, names: Sequence[str]) -> FeatureFile:
    """Reads everything but the features themselves, of which those called ``names`` must be there.

    Raises:
        UserError: an array is missing or of the wrong shape, a label is out of range, or a name is doubled.
    """
    with NpzFile(path) as file:
        labels = file.whole("label")
        expected = {"label": (len(labels),)} | {name: (len(labels), FEATURES[name]) for name in names}
        if "image_id" in file:
            expected["image_id"] = (len(labels),)
        for name, shape in expected.items():
            if file.shape(name) != shape:
                raise UserError(f"{name} has shape {file.shape(name)}, expected {shape}", where=path)
        image_ids = tuple(str(name) for name in file.whole("image_id")) if "image_id" in file else ()
    known = range(len(CLASSES["humanitarian"]))
    for row, label in enumerate(labels.tolist()):
        if label not in known:
            raise UserError(f"label {label} of row {row} is none of 0..{known[-1]}", where=path)
    twice = [name for name, count in Counter(image_ids).items() if count > 1]
    if twice:
        raise UserError(f"holds image_id {twice[0]} more than once", where=path)
    return FeatureFile(path, labels.astype(np.int64), image_ids)


def feature_source(names: Sequence[str]) -> Source:
    """The file of features, of which those called ``names`` are read."""

    def check(path: Path) -> None:
        held = open_features(path, names)
        for name in names:
            for _ in held.rows(name):
                pass

    return Source(
        name=f"CrisisMMD features of {' and '.join(names)}",
        files=("crisismmd/crisismmd_features.npz",),
        homes=(),
        check=check,
    )


def read_images(path: Path, posts: Sequence[Post], size: int) -> Iterator[NDArray[np.uint8]]:
    """``(size, size, 3)`` RGB of each post, resized without a crop as the benchmark does; one in memory at a time.

    Raises:
        UserError: an image is missing, damaged or unreasonably large; names it.
    """
    with RawFiles(path, _IMAGES) as files:
        missing = [post.image for post in posts if post.image_id not in files]
        if missing:
            raise UserError(f"lacks {len(missing)} images, the first is {missing[0]}", where=path)
        for post in posts:
            yield decode_picture(files.content(post.image_id), size, files.where(post.image_id))


def _check_images(path: Path) -> None:
    with RawFiles(path, _IMAGES) as files:
        for image_id in files.stems():
            decode_picture(files.content(image_id), 8, files.where(image_id))


IMAGE_SOURCE = Source(
    name="CrisisMMD images",
    files=("crisismmd/data_image",),
    homes=(),
    check=_check_images,
)


def sources(task: str) -> tuple[Source, ...]:
    """The tables of a task: train, dev, test."""
    return _SOURCES[task]


def _unpacked(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # gzip's mark; a file that is being fetched has another name
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            content = file.read(_MAX_TABLE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"not a whole file ({error})", where=path, fix="fetch it again") from None
    if len(content) > _MAX_TABLE_BYTES:
        raise UserError(f"unpacks to more than {_MAX_TABLE_BYTES} bytes", where=path)
    return content


def _check_as(task: str, part: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        read_table(path, task, _PARTS.index(part))  # tells the line at fault, where there is one
        if hashlib.sha256(_unpacked(path)).hexdigest() != _SHA256[task, part]:
            raise UserError("differs from the published table", where=path, fix="fetch it again")

    return check


def _source(task: str, part: str) -> Source:
    name = f"task_{task}_text_img_agreed_lab_{part}.tsv"
    return Source(
        name=f"CrisisMMD {task} {part}",
        files=(f"crisismmd/{name}.gz", f"crisismmd/{name}"),
        homes=(Home(f"{_HOME}/{name}", f"crisismmd/{name}"),),
        check=_check_as(task, part),
    )


_SOURCES = {task: tuple(_source(task, part) for part in _PARTS) for task in CLASSES}
