"""NYU-Depth V2 (Silberman and others, ECCV 2012): 1 449 labelled frames of indoor scenes, colour and depth.

The published file is MATLAB's v7.3 format, which is HDF5 with all axes in reverse. Its 894 labels are usually
mapped to 40 classes (Gupta and others, CVPR 2013); that mapping is a file of its own, which people make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.sources import Home, Source
from mst_edge.core.errors import UserError
from mst_edge.core.extras import require_modules

UNLABELLED = 0
CLASSES = (
    "unlabelled",
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat"),
    *("clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box"),
    *("whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure"),
    *("other furniture", "other prop"),
)
WIDTH, HEIGHT = 640, 480
# One sample as it lies in the file: axes in reverse.
_SHAPES = {"images": (3, WIDTH, HEIGHT), "depths": (WIDTH, HEIGHT), "labels40": (WIDTH, HEIGHT)}
_BLOCK = 8


class Frames:
    """One HDF5 file of frames; arrays are read in blocks of a few samples.

    Raises:
        UserError: not HDF5, or h5py is missing.
    """

    def __init__(self, path: Path) -> None:
        require_modules("h5py")
        import h5py

        self.path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise UserError(f"not a whole HDF5 file (MATLAB v7.3) ({error})", where=path) from None

    def count(self, name: str) -> int:
        """How many samples array ``name`` holds.

        Raises:
            UserError: there is no such array, or it has another shape.
        """
        if name not in self._file:
            raise UserError(f"holds no array {name}, only {', '.join(self._file)}", where=self.path)
        shape = tuple(self._file[name].shape)
        if shape[1:] != _SHAPES[name]:
            expected = ", ".join(map(str, _SHAPES[name]))
            raise UserError(f"{name} has shape {shape}, expected (samples, {expected})", where=self.path)
        return int(shape[0])

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """``(480, 640, 3)`` RGB of each sample."""
        for number, sample in self._samples("images"):
            if sample.dtype != np.uint8:
                raise UserError(f"sample {number} of images is {sample.dtype}, expected uint8", where=self.path)
            yield sample.transpose(2, 1, 0)

    def depths(self) -> Iterator[NDArray[np.float32]]:
        """``(480, 640)`` metres of each sample."""
        for number, sample in self._samples("depths"):
            if not np.isfinite(sample).all():
                raise UserError(f"sample {number} of depths holds NaN or infinity", where=self.path)
            yield sample.T.astype(np.float32)

    def labels(self) -> Iterator[NDArray[np.uint8]]:
        """``(480, 640)`` class numbers 0..40 of each sample."""
        for number, sample in self._samples("labels40"):
            known = (sample >= 0) & (sample < len(CLASSES)) & (sample % 1 == 0)  # NaN is not known either
            if not known.all():
                raise UserError(
                    f"sample {number} of labels40 holds label {sample[~known][0]}, expected 0..{len(CLASSES) - 1}",
                    where=self.path,
                )
            yield sample.T.astype(np.uint8)

    def scenes(self) -> NDArray[np.str_] | None:
        """Name of each sample's scene; None where the file has none.

        Names are strings, or as MATLAB writes them: references to arrays of characters.
        """
        if "scenes" not in self._file:
            return None
        held = self._file["scenes"][()].reshape(-1)
        if held.dtype.kind in "iuf":
            return held.astype(str)
        return np.array([self._text(value) for value in held])

    def _text(self, value: Any) -> str:
        if isinstance(value, bytes):
            return value.decode("utf-8", errors="replace")
        return "".join(map(chr, self._file[value][()].reshape(-1)))

    def _samples(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        count = self.count(name)
        for start in range(0, count, _BLOCK):
            try:
                block = self._file[name][start : start + _BLOCK]
            except OSError as error:
                raise UserError(f"{name} is damaged at sample {start} ({error})", where=self.path) from None
            yield from enumerate(block, start=start)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextmanager
def open_frames(path: Path) -> Iterator[Frames]:
    """The frames of a file that is closed afterwards."""
    frames = Frames(path)
    try:
        yield frames
    finally:
        frames.close()


def _check(*readers: Callable[[Frames], Iterator[Any]]) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        with open_frames(path) as frames:
            for reader in readers:
                for _ in reader(frames):
                    pass

    return check


FRAMES = Source(
    name="NYU-Depth V2 frames",
    files=("nyu_depth/nyu_depth_v2_labeled.mat",),
    homes=(
        Home(
            "http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat",
            "nyu_depth/nyu_depth_v2_labeled.mat",
        ),
    ),
    check=_check(Frames.images, Frames.depths),
)
LABELS = Source(
    name="NYU-Depth V2 labels of 40 classes",
    files=("nyu_depth/labels40.mat", "nyu_depth/nyu_depth_v2_labeled.mat"),
    homes=(),
    check=_check(Frames.labels),
)
