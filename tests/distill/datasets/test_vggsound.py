"""VGGSound by features: small files of the same layout, made on the spot."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest
import torch

from distill.datasets.builder import build_dataset
from distill.datasets.library.vggsound import VggSoundOptions
from distill.datasets.raw import vggsound
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from mst_edge.core.errors import UserError
from tests.conftest import mst_edge

CATEGORIES = ("playing trumpet", "cattle mooing", "tapping guitar")


def clip_name(number):
    return f"-id{number:08}"  # 11 characters, as on YouTube


def write_raw(root, clips=12, split=""):
    """Clips whose features hold their number; one more is annotated that nobody could fetch."""
    folder = root / "vggsound"
    rows = [f"video_id,category{',split' if split else ''}"]
    for name in vggsound.SHAPES:
        (folder / name).mkdir(parents=True)
    for number in range(clips):
        rows.append(f"{clip_name(number)},{CATEGORIES[number % 3]}{split and ',' + split.split()[number // 6]}")
        np.save(folder / "visual" / f"v{clip_name(number)}.npy", np.full((10, 7, 7, 512), number, np.float16))
        audio = np.full((10, 128), number, np.float32) + np.arange(10, dtype=np.float32)[:, None] / 16
        np.save(folder / "audio" / f"{clip_name(number)}.npy", audio)
    rows.append(f"{clip_name(99)},{CATEGORIES[0]}{split and ',train'}")
    (folder / "vggsound-avel50k.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("vggsound") / "raw")


@pytest.fixture
def raw(template, tmp_path):
    return shutil.copytree(template, tmp_path / "raw")


def test_features_meet_their_annotation_and_classes_are_numbered_by_first_appearance(raw):
    dataset = build_dataset("vggsound", VggSoundOptions(), SplitRule(), raw)
    assert dataset.classes == CATEGORIES
    assert dataset.target.tolist() == [0, 1, 2] * 4
    assert dataset.modalities["visual"].shape == (10, 7, 7, 512)
    assert dataset.arrays["visual"].dtype == np.float32
    assert np.array_equal(dataset.arrays["visual"][:, 3, 2, 1, 0], np.arange(12))
    # Segments are the channels, so that networks read (10, 128) as the benchmark's do.
    assert dataset.modalities["audio"].shape == (128, 10)
    assert np.array_equal(dataset.arrays["audio"][5], np.tile(5 + np.arange(10) / 16, (128, 1)))
    ids = split_dataset(dataset, SplitRule())
    owners = [set(dataset.groups["video"][part].tolist()) for part in ids.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 12


def test_networks_read_the_benchmarks_shapes(raw):
    dataset = build_dataset("vggsound", VggSoundOptions(precision="float16"), SplitRule(), raw)
    assert dataset.arrays["visual"].dtype == np.float16
    fronts = {name: make_frontend(spec, frontend_options(spec.kind)()) for name, spec in dataset.modalities.items()}
    assert {name: front.feature_shape for name, front in fronts.items()} == {
        "visual": (512, 10, 7, 7),
        "audio": (10, 128),
    }
    train = torch.from_numpy(dataset.read("visual", np.arange(8)))
    fronts["visual"].fit([train[:3], train[3:]])
    features = fronts["visual"](train)
    assert features.mean(dim=(0, 2, 3, 4)) == pytest.approx(0, abs=1e-5)
    assert features.std(dim=(0, 2, 3, 4), correction=0) == pytest.approx(1, abs=1e-5)


def test_segments_may_be_time(raw):
    dataset = build_dataset("vggsound", VggSoundOptions(segments="time"), SplitRule(), raw)
    assert dataset.modalities["audio"].shape == (10, 128)


def test_archives_serve_as_folders_do(raw):
    before = build_dataset("vggsound", VggSoundOptions(), SplitRule(), raw)
    for name in vggsound.SHAPES:
        with zipfile.ZipFile(raw / "vggsound" / f"{name}.zip", "w") as archive:
            for file in sorted((raw / "vggsound" / name).iterdir()):
                archive.write(file, f"{name}/{file.name}")
        shutil.rmtree(raw / "vggsound" / name)
    after = build_dataset("vggsound", VggSoundOptions(), SplitRule(), raw)
    assert after.root != before.root
    assert after.fingerprint == before.fingerprint


def test_an_annotated_split_is_kept(tmp_path):
    root = write_raw(tmp_path, clips=18, split="train val test")
    dataset = build_dataset("vggsound", VggSoundOptions(), SplitRule(by="official"), root)
    ids = split_dataset(dataset, SplitRule())
    assert {name: part.tolist() for name, part in ids.items()} == {
        "train": list(range(6)),
        "val": list(range(6, 12)),
        "test": list(range(12, 18)),
    }


def _visual(raw, number=4):
    return raw / "vggsound" / "visual" / f"v{clip_name(number)}.npy"


def _cut(raw):
    _visual(raw).write_bytes(_visual(raw).read_bytes()[:5000])


def _nan(raw):
    np.save(_visual(raw), np.full((10, 7, 7, 512), np.nan, np.float16))


def _annotate(raw, text):
    (raw / "vggsound" / "vggsound-avel50k.csv").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda raw: _visual(raw).unlink(), r"visual: clip -id00000004 has no visual features"),
        (_cut, r"v-id00000004\.npy: not a readable \.npy array"),
        (_nan, r"v-id00000004\.npy: holds NaN"),
        (
            lambda raw: np.save(_visual(raw), np.zeros((10, 512), np.float32)),
            r"expected floats .* received \(10, 512\)",
        ),
        (lambda raw: shutil.copy(_visual(raw), _visual(raw).with_name("-id00000004.npy")), "holds clip -id0+4 as"),
        (lambda raw: _annotate(raw, "video,category\n"), "has no column video_id; its columns: video, category"),
        (lambda raw: _annotate(raw, "video_id,category\na,b\na,c\n"), r"csv:3: holds a a second time"),
        (lambda raw: _annotate(raw, "video_id,category\na,\n"), r"csv:2: lacks video_id or category"),
        (lambda raw: _annotate(raw, "video_id,category\na,b\n"), "no annotated clip has features"),
        (lambda raw: _annotate(raw, "video_id,category,split\na,b,dev\n"), "split 'dev' is none of train, val, test"),
        (lambda raw: shutil.rmtree(raw / "vggsound" / "audio"), "VGGSound audio features is missing; put it there"),
    ],
)
def test_what_is_missing_or_malformed_is_named(raw, harm, says):
    harm(raw)
    with pytest.raises(UserError, match=says):
        build_dataset("vggsound", VggSoundOptions(), SplitRule(), raw)


def test_verify_looks_at_every_file_and_at_their_pairing(raw):
    assert mst_edge("data", "verify", "vggsound", "--data-root", raw).code == 0
    _visual(raw).unlink()
    done = mst_edge("data", "verify", "vggsound", "--data-root", raw)
    assert (done.code, done.out.count("ok  ")) == (2, 3)
    assert "clip -id00000004 has no visual features" in done.err


def test_official_needs_a_column(raw):
    with pytest.raises(UserError, match="has no column split"):
        build_dataset("vggsound", VggSoundOptions(), SplitRule(by="official"), raw)
