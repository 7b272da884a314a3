"""NYU-Depth V2 on small files of the published layout, made on the spot."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import yaml

from distill.datasets.builder import DATASETS
from distill.datasets.library.nyu_depth import NyuDepthOptions
from distill.datasets.raw import nyu_depth
from distill.datasets.splits import SplitRule
from mst_edge.core.errors import UserError
from tests.conftest import mst_edge

h5py = pytest.importorskip("h5py")
SAMPLES = 9
SMALL = NyuDepthOptions(reduce=8)
MAT = "nyu_depth/nyu_depth_v2_labeled.mat"


def write_raw(root):
    """Nine frames of three rooms, as MATLAB writes them: axes in reverse, names as references to characters."""
    (root / "nyu_depth").mkdir(parents=True)
    columns, rows = np.meshgrid(np.arange(640), np.arange(480), indexing="ij")
    with h5py.File(root / MAT, "w") as file:
        images = np.zeros((SAMPLES, 3, 640, 480), np.uint8)
        images[:, 0] = columns // 4
        images[:, 1] = rows // 4
        images[:, 2] = np.arange(SAMPLES)[:, None, None]
        file["images"] = images
        file["depths"] = (rows / 100 + np.arange(SAMPLES)[:, None, None]).astype(np.float32)
        file["labels40"] = ((columns // 64 + 10 * (rows // 120) + np.arange(SAMPLES)[:, None, None]) % 41).astype("u2")
        names = [file.create_dataset(f"#refs#/{k}", data=np.array([[ord(c)] for c in f"room_{k // 3}"], "u2"))
                 for k in range(SAMPLES)]  # fmt: skip
        file.create_dataset("scenes", data=[[name.ref for name in names]], dtype=h5py.ref_dtype)
    return root


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("nyu") / "raw")


@pytest.fixture
def raw(template, tmp_path):
    return shutil.copytree(template, tmp_path / "raw")


def build(root, out, options=SMALL, **rule):
    DATASETS.get("nyu_depth")().build(options, SplitRule(**{"by": "scene", **rule}), root, out)
    about = yaml.safe_load((out / "dataset.yaml").read_text())
    return about, {file.stem: np.load(file) for file in out.glob("*.npy")}


def test_pictures_depths_and_labels_stand_upright_and_together(template, tmp_path):
    about, arrays = build(template, tmp_path / "d", NyuDepthOptions())
    assert (about["task"], about["ignore_label"], len(about["classes"])) == ("segmentation", 0, 41)
    assert arrays["image"].shape == (SAMPLES, 480, 640, 3)
    assert arrays["image"][4, 100, 400].tolist() == [100, 25, 4]
    assert arrays["depth"].shape == arrays["target"].shape == (SAMPLES, 480, 640)
    assert arrays["depth"][4, 100, 400] == pytest.approx(1.0 + 4)
    assert arrays["target"][4, 100, 400] == (400 // 64 + 0 + 4) % 41
    assert arrays["target"].dtype == np.uint8


def test_reduced_frames_average_colours_and_keep_labels_whole(template, tmp_path):
    _, arrays = build(template, tmp_path / "d", SMALL)
    assert arrays["image"].shape == (SAMPLES, 60, 80, 3)
    # Columns 80..87 hold 20 and 21 in equal parts; labels and depths are those of the middle.
    assert arrays["image"][2, 5, 10].tolist() == [round(20.5), round(10.5), 2]
    assert arrays["depth"][2, 5, 10] == pytest.approx(0.44 + 2)
    assert arrays["target"][2, 59, 79] == (9 + 30 + 2) % 41


def test_scenes_are_never_parted_and_the_reference_parts_them(template, tmp_path):
    _, arrays = build(template, tmp_path / "scene")
    assert set(arrays["scene"].tolist()) == {"room_0", "room_1", "room_2"}
    assert all(len(set(arrays["split"][arrays["scene"] == room].tolist())) == 1 for room in set(arrays["scene"]))
    _, arrays = build(template, tmp_path / "reference", by="reference", seed=1)
    assert np.bincount(arrays["split"]).tolist() == [5, 2, 2]
    assert any(len(set(arrays["split"][arrays["scene"] == room].tolist())) > 1 for room in set(arrays["scene"]))


def _edit(root, name, change):
    with h5py.File(root / MAT, "a") as file:
        value = change(file[name][()]) if change else None
        del file[name]
        if value is not None:
            file[name] = value


def _set(value):
    def change(array):
        array = array.astype(np.float32) if isinstance(value, float) else array
        array[3].reshape(-1)[7] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("depths", None, r"labeled\.mat: holds no array depths, only #refs#, images, labels40, scenes"),
        ("depths", lambda a: a[:8], "depths holds 8 samples, images 9"),
        ("labels40", lambda a: a[:, :, :100], r"labels40 has shape \(9, 640, 100\), expected \(samples, 640, 480\)"),
        ("labels40", _set(41), "sample 3 of labels40 holds label 41, expected 0..40"),
        ("depths", _set(float("nan")), "sample 3 of depths holds NaN"),
        ("images", lambda a: a.astype("f4"), "sample 0 of images is float32, expected uint8"),
        ("scenes", None, "holds no array scenes; add it, or set dataset.split.by to random or reference"),
        ("scenes", lambda a: np.arange(5), "scenes holds 5 names, images 9"),
    ],
)
def test_what_is_missing_or_malformed_is_named(raw, tmp_path, name, change, says):
    _edit(raw, name, change)
    with pytest.raises(UserError, match=says):
        build(raw, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_without_scenes_random_splits_are_possible(raw, tmp_path):
    _edit(raw, "scenes", None)
    _, arrays = build(raw, tmp_path / "d", by="random")
    assert sorted(set(arrays["split"].tolist())) == [0, 1, 2]


def test_labels_may_be_a_file_of_their_own_and_must_be_somewhere(raw, tmp_path):
    with h5py.File(raw / MAT, "a") as file, h5py.File(raw / "nyu_depth" / "labels40.mat", "w") as other:
        other["labels40"] = file["labels40"][()]
        del file["labels40"]
    _, arrays = build(raw, tmp_path / "d")
    assert arrays["target"].max() <= 40
    assert mst_edge("data", "verify", "nyu_depth", "--data-root", raw).code == 0
    (raw / "nyu_depth" / "labels40.mat").unlink()
    done = mst_edge("data", "verify", "nyu_depth", "--data-root", raw)
    assert done.code == 2
    assert "BAD  NYU-Depth V2 labels of 40 classes" in done.out
    assert "holds no array labels40" in done.out


@pytest.mark.parametrize("keep", [0, 300, 100_000])
def test_a_cut_file_is_told(raw, keep):
    content = (raw / MAT).read_bytes()
    (raw / MAT).write_bytes(content[:keep])
    with pytest.raises(UserError, match=r"labeled\.mat: not a whole HDF5 file"):
        nyu_depth.FRAMES.check(raw / MAT)
