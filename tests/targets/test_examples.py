"""Example files of a bundle: a person can open them, and the bundle reads them back as they were."""

from __future__ import annotations

import numpy as np
import pytest

from apps.runtime.inputs import read_sample
from apps.runtime.manifest import InputSpec as DeviceSpec
from quantize.variant import InputSpec
from targets.examples import example_files

RNG = np.random.default_rng(0)
LABELS = ["no", "yes, please", "../up"]


def _inputs(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype == "float32":
        return RNG.uniform(-1, 1, shape).astype(np.float32)
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "suffix", "within"),
    [
        ("audio", "float32", (800,), ".wav", 1 / 32768),
        ("image", "uint8", (28, 28), ".png", 0),
        ("image", "uint8", (12, 9, 3), ".png", 0),
        ("image", "float32", (12, 9, 3), ".npy", 0),
        ("sequence", "float32", (40, 3), ".npy", 0),
    ],
)
def test_an_example_is_read_back_as_the_sample_it_was(tmp_path, kind, dtype, shape, suffix, within):
    rate = 8000 if kind == "audio" else None
    inputs = _inputs(dtype, (4, *shape))
    files = example_files(InputSpec("x", kind, shape, dtype, rate), inputs.__getitem__, np.array([2, 0, 0, 1]), LABELS)
    assert list(files) == [f"no{suffix}", f"yes_please{suffix}", f"up{suffix}"]
    for row, (name, content) in zip((1, 3, 0), files.items(), strict=True):
        (tmp_path / name).write_bytes(content)
        sample = read_sample(tmp_path / name, DeviceSpec("x", kind, shape, dtype, rate))
        assert sample.array.dtype == dtype
        np.testing.assert_allclose(sample.array, inputs[row], rtol=0, atol=within)


def test_classes_that_are_not_in_the_split_and_names_that_collide_are_no_trouble():
    spec = InputSpec("x", "vector", (3,), "float32", None)
    files = example_files(spec, np.zeros((2, 3), np.float32).__getitem__, np.array([0, 2]), ["a b", "gone", "a-b", "?"])
    assert list(files) == ["a_b.npy", "a-b.npy"]
    files = example_files(spec, np.zeros((2, 3), np.float32).__getitem__, np.array([0, 2]), ["a b", "gone", "a?b"])
    assert list(files) == ["a_b.npy", "a_b_2.npy"]
    assert list(example_files(spec, np.zeros((1, 3), np.float32).__getitem__, np.array([0]), ["?"])) == ["class_0.npy"]
