"""``moving_digits``: what is shown and felt is the motion that the label names, and no scan is in two splits."""

from __future__ import annotations

import numpy as np
import pytest

from distill.datasets.builder import build_dataset
from distill.datasets.library.moving_digits import MOTIONS, MovingDigits, MovingDigitsOptions, drawn, path_of
from distill.datasets.spec import Kind
from distill.datasets.splits import SplitRule
from mst_edge.core.errors import UserError

OPTIONS = MovingDigitsOptions(clips=120, sensor_noise=0.0)


def turning(velocity: np.ndarray) -> float:
    """Mean of the cross product of one velocity and the next, rows growing down: positive is clockwise."""
    down, right = velocity.T
    return float((right[:-1] * down[1:] - down[:-1] * right[1:]).mean())


@pytest.fixture(scope="module")
def dataset():
    return build_dataset("moving_digits", OPTIONS, SplitRule(), None)


def test_what_the_sensor_feels_is_what_the_label_says(dataset):
    for velocity, motion in zip(dataset.arrays["sensor"], dataset.target, strict=True):
        down, right = velocity.mean(axis=0)
        turn = turning(velocity)
        said = {
            "left": right < -0.5 and abs(down) < 1e-5,
            "right": right > 0.5 and abs(down) < 1e-5,
            "up": down < -0.5 and abs(right) < 1e-5,
            "down": down > 0.5 and abs(right) < 1e-5,
            "clockwise": turn > 0.1,
            "anticlockwise": turn < -0.1,
        }
        assert [name for name, holds in said.items() if holds] == [MOTIONS[motion]]


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_drawn_digit_follows_its_path_inside_the_frame(motion):
    rng = np.random.default_rng(0)
    path = path_of(motion, rng)
    frames = drawn(np.ones((8, 8)), path)
    assert frames.sum(axis=(1, 2)) == pytest.approx(64)
    places = np.arange(24)
    centres = np.stack([frames.sum(axis=2) @ places, frames.sum(axis=1) @ places], axis=1) / 64
    assert np.abs(centres - 3.5 - path).max() < 1e-9


def test_the_clips_are_mapped_bytes_and_classes_are_balanced(dataset):
    clip = dataset.modalities["clip"]
    assert (clip.kind, clip.shape, clip.dtype, clip.sample_rate_hz) == (Kind.VIDEO, (12, 24, 24, 1), "uint8", 12)
    assert isinstance(dataset.arrays["clip"], np.memmap)
    counts = dataset.class_counts(slice(None))
    assert counts.max() - counts.min() <= 3


def test_no_scan_is_in_two_splits(dataset):
    codes = {recording: set() for recording in dataset.groups["recording"].tolist()}
    for recording, code in zip(dataset.groups["recording"].tolist(), dataset.explicit_split.tolist(), strict=True):
        codes[recording].add(code)
    assert all(len(found) == 1 for found in codes.values())
    assert set(dataset.explicit_split.tolist()) == {0, 1, 2}


def test_the_same_options_give_the_same_bytes(dataset, tmp_path):
    MovingDigits().build(OPTIONS, SplitRule(by="recording"), None, tmp_path / "again")
    for name in ("clip", "sensor", "target"):
        assert (tmp_path / "again" / f"{name}.npy").read_bytes() == (dataset.root / f"{name}.npy").read_bytes()


def test_options_are_checked():
    with pytest.raises(UserError, match="clips must be at least 100, received 9"):
        MovingDigitsOptions(clips=9)
    with pytest.raises(UserError, match="must not be negative"):
        MovingDigitsOptions(noise=-1)
