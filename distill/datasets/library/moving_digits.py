"""``moving_digits``: clips of a digit that moves, and what a sensor on it feels. Made on the spot, offline.

The digits are the 1 797 scans that come with scikit-learn (Alpaydin and Kaynak, UCI ML repository, CC BY 4.0); how they
move is drawn at random. A second digit moves across at half its contrast, and pixels are noisy: what is asked for is
the motion, which no single frame shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DatasetFile, ModalityFile, arrays_folder
from distill.datasets.builder import DATASETS, DatasetBuilder
from distill.datasets.spec import SPLITS, Kind
from distill.datasets.splits import SplitRule, assign
from mst_edge.core.errors import UserError

FRAMES, SIDE, SCAN = 12, 24, 8
SENSED = 24  # rows of the sensor per clip
MOTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise")
_HEADINGS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # of rows and columns, which grow down
_TURNS = {"clockwise": 1.0, "anticlockwise": -1.0}
_ROOM = SIDE - SCAN  # pixels that a digit can go
_DISTRACTION = 0.5  # contrast of the second digit


@dataclass(frozen=True)
class MovingDigitsOptions:
    """What a recipe may set under ``dataset.options``.

    Attributes:
        clips: how many, over all splits.
        noise: standard deviation of the noise on pixels, as a share of full scale.
        sensor_noise: standard deviation of the noise on velocities, in pixels per frame; digits go about one.
    """

    clips: int = 1000
    noise: float = 0.25
    sensor_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.clips < 100:
            raise UserError(f"clips must be at least 100, received {self.clips}", where="dataset.options.clips")
        if min(self.noise, self.sensor_noise) < 0:
            raise UserError("noise and sensor_noise must not be negative", where="dataset.options")


@DATASETS.register("moving_digits")
class MovingDigits(DatasetBuilder):
    """Clips (12, 24, 24, 1) uint8 of one second, velocities (24, 2) of a sensor; 6 motions."""

    summary = "clip of a moving digit + velocity sensor; made on the spot from scans that ship with scikit-learn"
    licence = "images CC BY 4.0 (UCI optical digits)"
    Options: ClassVar[type] = MovingDigitsOptions
    groupings = ("recording",)

    def build(self, options: MovingDigitsOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        scans, digits = _scans()
        scan_split = assign(digits, None, rule)
        rng = np.random.default_rng([rule.seed, 5])
        split = np.sort(rng.choice(len(SPLITS), options.clips, p=np.bincount(scan_split, minlength=3) / len(scans)))
        target = np.concatenate([rng.permutation(np.arange(count) % len(MOTIONS)) for count in np.bincount(split)])
        by_split = [np.flatnonzero(scan_split == code) for code in range(len(SPLITS))]
        recording = np.array([rng.choice(by_split[code]) for code in split])
        distractor = np.array([rng.choice(by_split[code]) for code in split])
        paths = [path_of(MOTIONS[motion], rng) for motion in target]
        about = DatasetFile(
            name="moving_digits",
            classes=list(MOTIONS),
            modalities={
                "clip": ModalityFile(kind=Kind.VIDEO, sample_rate_hz=FRAMES),
                "sensor": ModalityFile(kind=Kind.SEQUENCE, sample_rate_hz=SENSED),
            },
            groups={"recording": "recording.npy"},
            split="split.npy",
            licence=self.licence,
            source="scikit-learn load_digits",
        )

        def clips() -> Iterator[NDArray[np.uint8]]:
            for first, second, path in zip(recording, distractor, paths, strict=True):
                other = path_of(MOTIONS[rng.integers(len(MOTIONS))], rng)
                clip = drawn(scans[first], path) + _DISTRACTION * drawn(scans[second], other)
                noisy = clip + rng.normal(0, 255 * options.noise, clip.shape)
                yield np.clip(np.round(noisy), 0, 255).astype(np.uint8)[..., None]

        with arrays_folder(out, about) as writer:
            writer.stream("clip", (options.clips, FRAMES, SIDE, SIDE, 1), np.uint8, clips())
            writer.save("sensor", np.stack([felt(path, options.sensor_noise, rng) for path in paths]))
            writer.save("target", target)
            writer.save("split", split)
            writer.save("recording", recording)


def path_of(motion: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """``(FRAMES, 2)`` row and column of a digit's upper left corner: a straight line, or half of a circle and more."""
    time = np.arange(FRAMES)
    if motion in _HEADINGS:
        heading, speed = np.array(_HEADINGS[motion]), rng.uniform(0.6, 1.3)
        travelled = heading * speed * time[:, None]
        low, high = -travelled.min(axis=0), _ROOM - travelled.max(axis=0)
        return rng.uniform(low, high) + travelled
    radius, angle = rng.uniform(3.0, 6.0), rng.uniform(0, 2 * np.pi)
    angles = angle + _TURNS[motion] * time * rng.uniform(0.3, 0.5)
    circle = radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return rng.uniform(radius, _ROOM - radius, 2) + circle


def drawn(scan: NDArray[np.float64], path: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(FRAMES, SIDE, SIDE)`` of a scan along a path, between pixels by linear interpolation."""
    frames = np.zeros((len(path), SIDE + 1, SIDE + 1))
    for frame, place in zip(frames, path, strict=True):
        (row, column), (down, right) = np.floor(place).astype(int), place % 1
        for dy, dx, share in (
            (0, 0, (1 - down) * (1 - right)),
            (0, 1, (1 - down) * right),
            (1, 0, down * (1 - right)),
            (1, 1, down * right),
        ):
            frame[row + dy : row + dy + SCAN, column + dx : column + dx + SCAN] += share * scan
    return frames[:, :SIDE, :SIDE]


def felt(path: NDArray[np.float64], noise: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """``(SENSED, 2)`` velocity down and to the right in pixels per frame, with noise."""
    velocity = np.gradient(path, axis=0)
    times = np.linspace(0, len(path) - 1, SENSED)
    smooth = np.stack([np.interp(times, np.arange(len(path)), values) for values in velocity.T], axis=1)
    return (smooth + rng.normal(0, noise, smooth.shape)).astype(np.float32)


def _scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """``(1797, 8, 8)`` grey values 0 to 255 and ``(1797,)`` digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images * (255 / 16), digits.target.astype(np.int64)
