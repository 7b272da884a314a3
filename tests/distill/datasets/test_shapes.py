"""The made-up scenes: what they hold, that a seed decides them, and what depth knows that colour does not."""

from __future__ import annotations

import numpy as np
import pytest

from distill.datasets.arrays import open_arrays
from distill.datasets.builder import DATASETS, build_dataset
from distill.datasets.library.shapes import CLASSES, ShapesOptions
from distill.datasets.splits import SplitRule, split_dataset
from mst_edge.core.errors import UserError


@pytest.fixture(scope="module")
def shapes():
    return build_dataset("shapes", ShapesOptions(samples=60), SplitRule(seed=1), None)


def test_scenes_are_colour_depth_and_a_class_per_pixel_and_need_no_file(shapes):
    assert {name: (spec.shape, spec.dtype) for name, spec in shapes.modalities.items()} == {
        "image": ((32, 32, 3), "uint8"), "depth": ((32, 32, 1), "float32"),
    }  # fmt: skip
    assert shapes.task == "segmentation"
    assert shapes.classes == CLASSES
    assert shapes.target.shape == (60, 32, 32)
    assert {name: len(ids) for name, ids in split_dataset(shapes, SplitRule()).items()} == {
        "train": 36, "val": 12, "test": 12,
    }  # fmt: skip
    counts = shapes.class_counts(slice(None))
    assert 0.4 < counts[0] / counts.sum() < 0.8
    assert counts[1:].min() > 0.03 * counts.sum()


def test_a_seed_decides_the_scenes_and_another_the_split(shapes, tmp_path):
    DATASETS.get("shapes")().build(ShapesOptions(samples=60), SplitRule(seed=1, by="random"), None, tmp_path / "same")
    assert open_arrays(tmp_path / "same").fingerprint == shapes.fingerprint
    dealt = build_dataset("shapes", ShapesOptions(samples=60), SplitRule(seed=2), None)
    assert np.array_equal(dealt.arrays["image"], shapes.arrays["image"])
    assert not np.array_equal(dealt.explicit_split, shapes.explicit_split)
    other = build_dataset("shapes", ShapesOptions(samples=60, seed=1), SplitRule(seed=1), None)
    assert not np.array_equal(other.target, shapes.target)
    # More scenes go on after those of fewer.
    more = build_dataset("shapes", ShapesOptions(samples=80), SplitRule(seed=1), None)
    assert np.array_equal(more.target[:60], shapes.target)


def test_depth_tells_shapes_from_ground_and_colour_does_not(shapes):
    ground = np.asarray(shapes.target) == 0
    depth = np.asarray(shapes.arrays["depth"])[..., 0]
    assert ((depth > 1.95) == ground).mean() > 0.97
    grey = np.asarray(shapes.arrays["image"]).mean(axis=3)
    best = max(((grey < level) == ground).mean() for level in range(0, 257, 4))
    assert best < 0.8  # all ground: 0.67


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 5}, r"dataset\.options\.samples: must be at least 20, received 5"),
        ({"side": 8}, r"dataset\.options\.side: must be from 16 to 512, received 8"),
        ({"image_noise": -1.0}, r"dataset\.options\.image_noise: must not be negative"),
    ],
)
def test_options_out_of_range_are_told(options, says):
    with pytest.raises(UserError, match=says):
        ShapesOptions(**options)
