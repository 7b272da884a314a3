"""CrisisMMD by features: small files of the same layout, made on the spot."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from distill.datasets.builder import build_dataset
from distill.datasets.library.crisismmd import CrisisMmdOptions
from distill.datasets.raw import crisismmd
from distill.datasets.spec import Kind
from distill.datasets.splits import SplitRule, split_dataset
from mst_edge.core.errors import UserError
from tests.conftest import mst_edge
from tests.distill.datasets.test_crisismmd_tables import line, write_tables

NAMES = crisismmd.class_names("humanitarian")
EVENTS = ("srilanka_floods", "mexico_earthquake", "hurricane_irma")


def write_raw(root, *, ids=True, **changes):
    """48 posts, two per tweet, eight classes; features hold their post's number."""
    parts = {"train": [], "dev": [], "test": []}
    posts = []
    for tweet in range(24):
        part = ("train", "dev", "test")[tweet // 8]
        for image in range(2):
            parts[part].append(line(tweet, NAMES[tweet % 8], image, event=EVENTS[tweet % 3]))
            posts.append((f"{tweet}_{image}", tweet % 8))
    write_tables(root, **parts)
    posts = posts[::-1]  # the order of the features is not that of the tables
    arrays = {
        "image": np.repeat(np.arange(48.0)[:, None], 2048, axis=1),
        "text": np.repeat(-np.arange(48.0)[:, None], 768, axis=1).astype(np.float32),
        "label": np.array([label for _, label in posts]),
        **({"image_id": np.array([name for name, _ in posts])} if ids else {}),
    }
    np.savez(root / "crisismmd" / "crisismmd_features.npz", **{**arrays, **changes})
    return root


def test_features_meet_their_tables_row(tmp_path):
    dataset = build_dataset("crisismmd", CrisisMmdOptions(), SplitRule(), write_raw(tmp_path))
    assert {name: spec.shape for name, spec in dataset.modalities.items()} == {"image": (2048,), "text": (768,)}
    assert dataset.arrays["image"].dtype == np.float32
    assert dataset.arrays["image"][5, 0] == 5 == -dataset.arrays["text"][5, 0]
    assert dataset.groups["tweet"][0] == "23"
    assert dataset.classes == NAMES
    ids = split_dataset(dataset, SplitRule())
    assert {name: len(part) for name, part in ids.items()} == {"train": 16, "val": 16, "test": 16}
    assert set(dataset.groups["tweet"][ids["train"]].tolist()) == {str(tweet) for tweet in range(8)}


def test_five_classes_are_the_usual_merge(tmp_path):
    dataset = build_dataset("crisismmd", CrisisMmdOptions(classes=5), SplitRule(), write_raw(tmp_path))
    counts = dict(zip(dataset.classes, np.bincount(dataset.target).tolist(), strict=True))
    assert counts == {
        "not_humanitarian": 6,
        "affected_individuals": 18,
        "infrastructure_and_utility_damage": 12,
        "rescue_volunteering_or_donation_effort": 6,
        "other_relevant_information": 6,
    }


@pytest.mark.parametrize(("by", "seed"), [("tweet", 1), ("event", 0)])
def test_groups_never_part(tmp_path, by, seed):
    dataset = build_dataset("crisismmd", CrisisMmdOptions(classes=5), SplitRule(seed, by=by), write_raw(tmp_path))
    owners = [set(dataset.groups[by][ids].tolist()) for ids in split_dataset(dataset, SplitRule()).values()]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]


def test_without_names_only_random_splits_are_possible(tmp_path):
    root = write_raw(tmp_path, ids=False)
    with pytest.raises(UserError, match=r"has no array image_id, so nobody knows the official of a row; add image_id"):
        build_dataset("crisismmd", CrisisMmdOptions(), SplitRule(), root)
    dataset = build_dataset("crisismmd", CrisisMmdOptions(), SplitRule(by="reference"), root)
    assert len(split_dataset(dataset, SplitRule())["test"]) == 10


def test_the_official_split_takes_no_fractions(tmp_path):
    with pytest.raises(UserError, match="fractions and by: official exclude each other"):
        build_dataset("crisismmd", CrisisMmdOptions(), SplitRule(fractions=(0.5, 0.25, 0.25)), write_raw(tmp_path))


def _nan(shape, row):
    values = np.zeros(shape, np.float32)
    values[row, 3] = np.nan
    return values


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text": np.zeros((48, 767))}, r"text has shape \(48, 767\), expected \(48, 768\)"),
        ({"image": np.zeros((47, 2048))}, r"image has shape \(47, 2048\), expected \(48, 2048\)"),
        ({"image": _nan((48, 2048), 7)}, "image of sample 7 holds NaN"),
        ({"label": np.full(48, 8)}, "label 8 of row 0 is none of 0..7"),
        ({"label": np.zeros(48, int)}, r"row 0 \(23_1\) says not_humanitarian, its table other_relevant_information"),
        ({"image_id": np.array(["x"] * 48)}, "holds image_id x more than once"),
        ({"image_id": np.array([f"{row}" for row in range(48)])}, "lacks 48 posts of the tables, the first is 0_0"),
        ({"text": np.array([{}] * 48, dtype=object)}, "text must be an array of numbers|text has"),
    ],
)
def test_malformed_features_are_told(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        build_dataset("crisismmd", CrisisMmdOptions(), SplitRule(), write_raw(tmp_path, **changes))


def test_a_missing_modality_is_named(tmp_path):
    path = write_raw(tmp_path) / "crisismmd" / "crisismmd_features.npz"
    with np.load(path) as held:
        np.savez(path, **{name: held[name] for name in held.files if name != "text"})
    with pytest.raises(UserError, match=r"holds no array text, only image, image_id, label"):
        crisismmd.open_features(path, ["image", "text"])


@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_a_cut_file_of_features_is_told(tmp_path, keep):
    path = write_raw(tmp_path) / "crisismmd" / "crisismmd_features.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match="not a whole npz file"):
        crisismmd.open_features(path, ["image", "text"])


def test_a_flipped_bit_is_told_with_its_row(tmp_path):
    path = write_raw(tmp_path) / "crisismmd" / "crisismmd_features.npz"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("text.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 60000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"row \d+ of text is damaged .*CRC"):
        list(crisismmd.open_features(path, ["image", "text"]).rows("text"))


def write_images(root):
    """A grey picture per post, as bright as its tweet's number times ten; one is a PNG with transparency."""
    for post in crisismmd.read_posts(root, "humanitarian", ""):
        path = root / "crisismmd" / post.image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (10 * int(post.tweet_id),) * 3).save(path, quality=95)
    path.unlink()
    Image.new("RGBA", (30, 20), (230, 230, 230, 255)).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


PIXELS = CrisisMmdOptions(image="pixels", image_size=16)


def test_pixels_meet_their_posts(tmp_path):
    root = write_raw(tmp_path, image=np.zeros(3))  # features of images play no part
    write_images(root)
    dataset = build_dataset("crisismmd", PIXELS, SplitRule(), root)
    assert dataset.modalities["image"].shape == (16, 16, 3)
    assert dataset.modalities["image"].kind is Kind.IMAGE
    verified = crisismmd.feature_source(["text"])
    verified.check(verified.locate(root, ""))
    brightness = np.asarray(dataset.arrays["image"]).reshape(48, -1).mean(axis=1)
    assert brightness == pytest.approx(10 * dataset.groups["tweet"].astype(int), abs=2)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.unlink(), r"data_image: lacks 1 images, the first is data_image/.*/23_1\.jpg"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), r"23_1\.png: not a whole picture"),
        (lambda path: path.write_bytes(b"GIF"), r"23_1\.png: not a whole picture"),
    ],
)
def test_missing_and_damaged_pictures_are_named(tmp_path, harm, says):
    root = write_raw(tmp_path)
    harm(write_images(root))
    with pytest.raises(UserError, match=says):
        build_dataset("crisismmd", PIXELS, SplitRule(), root)


def test_pixels_need_to_know_whose_they_are(tmp_path):
    root = write_raw(tmp_path, ids=False)
    (root / "crisismmd" / "data_image").mkdir()
    with pytest.raises(UserError, match="nobody knows the image of a row"):
        build_dataset("crisismmd", PIXELS, SplitRule(by="random"), root)


def test_verify_tells_what_to_make_and_what_to_fetch(tmp_path):
    (tmp_path / "crisismmd").mkdir()
    done = mst_edge("data", "verify", "crisismmd", "--data-root", tmp_path)
    assert done.code == 2
    assert (
        "crisismmd_features.npz: CrisisMMD features of image and text is missing; put it there; docs/data.md"
        in done.out
    )
    assert done.out.count("is missing; run `mst-edge data fetch crisismmd`") == 3
