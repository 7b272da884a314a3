"""``shapes``: which of four shapes each pixel of a made-up scene shows, from colour and from depth.

Nothing here is real: scenes are drawn from a seed. They are what a segmentation recipe can run on at once, offline.
A shape's colour says nothing of its class and may be that of the ground, light is uneven and sensors are noisy:
contours are plain in depth, and seen in colour where colours happen to differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DatasetFile, ModalityFile, save_arrays
from distill.datasets.builder import DATASETS, DatasetBuilder
from distill.datasets.spec import Kind
from distill.datasets.splits import RANDOM, SplitRule, split_codes
from mst_edge.core.errors import UserError

CLASSES = ("ground", "disc", "square", "triangle", "ring")
_SHAPES = (2, 4)  # fewest and most in a scene
_RADIUS = (0.16, 0.3)  # of a shape, as a share of the side
_NEAR_M, _FAR_M = 0.6, 1.8  # where shapes float; the ground lies behind
_HIDDEN = 0.35  # a ring's hole, and nothing else's

Map = NDArray[np.float64]


@dataclass(frozen=True)
class ShapesOptions:
    """What a recipe may set under ``dataset.options``.

    Attributes:
        samples: how many scenes, over all splits.
        side: height and width in pixels.
        contrast: standard deviation of a shape's colour about the ground's, as a share of full scale.
        image_noise: standard deviation of the noise on the picture, as a share of full scale.
        depth_noise_m: standard deviation of the noise on the depth.
        seed: decides all scenes; independent of the split.
    """

    samples: int = 500
    side: int = 32
    contrast: float = 0.4
    image_noise: float = 0.05
    depth_noise_m: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 20:
            raise UserError(f"must be at least 20, received {self.samples}", where="dataset.options.samples")
        if not 16 <= self.side <= 512:
            raise UserError(f"must be from 16 to 512, received {self.side}", where="dataset.options.side")
        for name in ("contrast", "image_noise", "depth_noise_m"):
            if getattr(self, name) < 0:
                raise UserError("must not be negative", where=f"dataset.options.{name}")


@DATASETS.register("shapes")
class Shapes(DatasetBuilder):
    """``image`` (side, side, 3) uint8, ``depth`` (side, side, 1) float32 metres; label maps (side, side)."""

    summary = "made-up scenes of overlapping shapes, colour and depth, a class per pixel; drawn on the spot"
    licence = "CC0"
    Options: ClassVar[type] = ShapesOptions
    groupings = (RANDOM,)

    def build(self, options: ShapesOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        scenes = [_scene(options, np.random.default_rng([options.seed, number])) for number in range(options.samples)]
        image, depth, target = (np.stack(arrays) for arrays in zip(*scenes, strict=True))
        about = DatasetFile(
            name="shapes",
            task="segmentation",
            classes=list(CLASSES),
            modalities={"image": ModalityFile(kind=Kind.IMAGE), "depth": ModalityFile(kind=Kind.IMAGE)},
            split="split.npy",
            licence=self.licence,
            source="drawn by mst-edge",
        )
        split = split_codes(np.zeros(options.samples, np.int64), {}, rule)
        save_arrays(out, {"image": image, "depth": depth, "target": target, "split": split}, about)


def _scene(
    options: ShapesOptions, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Picture, depth and label map of one scene: shapes from the farthest to the nearest, then light and noise."""
    side = options.side
    x, y = (grid / (side - 1) for grid in np.mgrid[:side, :side][::-1].astype(np.float64))
    ground = rng.uniform(0.3, 0.7, 3)
    colour = np.broadcast_to(ground, (side, side, 3)).copy()
    tilt = rng.uniform(-0.3, 0.3, 2)
    depth = _FAR_M + 0.5 + tilt[0] * (x - 0.5) + tilt[1] * (y - 0.5)
    labels = np.zeros((side, side), np.uint8)
    count = rng.integers(_SHAPES[0], _SHAPES[1] + 1)
    for distance in np.sort(rng.uniform(_NEAR_M, _FAR_M, count))[::-1]:
        label = rng.integers(1, len(CLASSES))
        inside = _inside(CLASSES[label], x, y, rng)
        labels[inside], depth[inside] = label, distance
        colour[inside] = ground + rng.normal(0, options.contrast, 3)
    lit = colour * _light(x, y, rng)[:, :, None] + rng.normal(0, options.image_noise, colour.shape)
    seen = depth + rng.normal(0, options.depth_noise_m, depth.shape)
    return (
        np.round(np.clip(lit, 0, 1) * 255).astype(np.uint8),
        np.maximum(seen, 0)[:, :, None].astype(np.float32),
        labels,
    )


def _inside(shape: str, x: Map, y: Map, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Pixels of a shape of random place, size and direction; all shapes of one radius cover about as much."""
    radius, turn = rng.uniform(*_RADIUS), rng.uniform(0, 2 * np.pi)
    u, v = (x - rng.uniform(0.1, 0.9)) / radius, (y - rng.uniform(0.1, 0.9)) / radius
    u, v = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    if shape == "disc":
        return u**2 + v**2 < 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < 0.89
    if shape == "triangle":
        # Distances to three sides, a third of a turn apart.
        return np.max([u * np.cos(a) + v * np.sin(a) for a in 2 * np.pi / 3 * np.arange(3)], axis=0) < 0.78
    return (u**2 + v**2 < 1) & (u**2 + v**2 > _HIDDEN)


def _light(x: Map, y: Map, rng: np.random.Generator) -> Map:
    """What the ground's and the shapes' colours are multiplied by: brighter towards one side, with a spot of light."""
    turn, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.6)
    across = np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5)
    spot = np.exp(-((x - rng.uniform(0, 1)) ** 2 + (y - rng.uniform(0, 1)) ** 2) / 0.05)
    return 1 + slope * across + 0.3 * spot
