"""HDF5 files of features, read in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distill.datasets.readers import finite
from mst_edge.core.errors import UserError
from mst_edge.core.extras import require_modules

_BLOCK = 256
_PICKLE = b"\x80"


class Hdf5File:
    """The arrays in an HDF5 file, by path (``train/audio``); none is ever wholly in memory unless asked for.

    Raises:
        UserError: not a whole HDF5 file, a pickle, or h5py is missing.
    """

    def __init__(self, path: Path) -> None:
        require_modules("h5py")
        import h5py

        self.path = path
        _refuse_pickle(path)
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise UserError(f"not a whole HDF5 file ({error})", where=path) from None
        self._array = h5py.Dataset

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def names(self, group: str = "/") -> list[str]:
        """Names of what a group holds; none where there is no such group."""
        held = self._file.get(group)
        return list(held) if hasattr(held, "keys") else []

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array.

        Raises:
            UserError: there is no such array.
        """
        return tuple(self._at(name).shape)

    def rows(self, name: str) -> Iterator[NDArray[Any]]:
        """The array's rows, a block of them in memory at a time.

        Raises:
            UserError: the file is damaged there.
        """
        array = self._at(name)
        for start in range(0, len(array), _BLOCK):
            try:
                block = array[start : start + _BLOCK]
            except OSError as error:
                raise UserError(f"{name} is damaged at row {start} ({error})", where=self.path) from None
            yield from block

    def whole(self, name: str) -> NDArray[Any]:
        """An array that fits into memory.

        Raises:
            UserError: there is no such array, or the file is damaged there.
        """
        try:
            return np.asarray(self._at(name)[()])
        except OSError as error:
            raise UserError(f"{name} is damaged ({error})", where=self.path) from None

    def texts(self, name: str) -> list[str]:
        """A short array ``(rows,)`` of strings.

        Raises:
            UserError: it holds something else; names the first row.
        """
        found = []
        row: Any
        for number, row in enumerate(self.rows(name)):
            if not isinstance(row, bytes | str):
                raise UserError(f"row {number} of {name} is no string", where=self.path)
            found.append(row.decode("utf-8", errors="replace") if isinstance(row, bytes) else row)
        return found

    def _at(self, name: str) -> Any:
        if not isinstance(self._file.get(name), self._array):
            raise UserError(f"holds no array {name}, only {', '.join(self._file)}", where=self.path)
        return self._file[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_features(path: Path, names: Iterable[str]) -> Iterator[NDArray[np.float32]]:
    """Rows of the arrays ``names``, one array after another.

    Raises:
        UserError: there is no such array, or one holds NaN or infinity.
    """
    with Hdf5File(path) as file:
        for name in names:
            for row in finite(file.rows(name), name, path):
                yield row.astype(np.float32)


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(1)
    if start == _PICKLE or path.suffix in (".pkl", ".pickle"):
        raise UserError(
            "is a pickle, which runs whatever code its author put in when it is read",
            where=path,
            fix="convert it to HDF5 in an environment of its own; docs/data.md has the lines for it",
        )
