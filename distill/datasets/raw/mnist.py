"""MNIST handwritten digits (LeCun, Cortes, Burges): the four original gz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.datasets.readers import read_idx
from distill.datasets.sources import Home, Source
from mst_edge.core.errors import UserError

_HOMES = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_SHAPES = {
    "train-images-idx3-ubyte.gz": (60000, 28, 28),
    "train-labels-idx1-ubyte.gz": (60000,),
    "t10k-images-idx3-ubyte.gz": (10000, 28, 28),
    "t10k-labels-idx1-ubyte.gz": (10000,),
}


def _check_as(name: str) -> object:
    def check(path: Path) -> None:
        shape = read_idx(path).shape
        if shape != _SHAPES[name]:
            raise UserError(f"holds an array of shape {shape}, expected {_SHAPES[name]}", where=path)

    return check


SOURCES = tuple(
    Source(
        name=f"MNIST {name}",
        files=(f"mnist/{name}",),
        homes=tuple(Home(base + name, f"mnist/{name}") for base in _HOMES),
        check=_check_as(name),  # type: ignore[arg-type]
        sha256={f"mnist/{name}": _SHA256[name]},
    )
    for name in _SHAPES
)


def read_mnist(root: Path, fetch: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All 70 000 images ``(70000, 28, 28)`` and labels: the official train set, then the test set."""
    train_images, train_labels, test_images, test_labels = (read_idx(source.locate(root, fetch)) for source in SOURCES)
    images = np.concatenate([train_images, test_images])
    return images, np.concatenate([train_labels, test_labels]).astype(np.int64)
