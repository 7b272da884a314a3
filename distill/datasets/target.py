"""``target.npy``: classes, label maps or numbers; told from its shape and type, or as ``dataset.yaml`` says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError

CLASSIFICATION: Final = "classification"
SEGMENTATION: Final = "segmentation"
REGRESSION: Final = "regression"
TASKS = (CLASSIFICATION, SEGMENTATION, REGRESSION)
_BLOCK_BYTES = 32 << 20


class Description(Protocol):
    """What ``dataset.yaml`` may say of the target."""

    @property
    def task(self) -> str | None: ...
    @property
    def classes(self) -> Sequence[str] | None: ...
    @property
    def ignore_label(self) -> int | None: ...
    @property
    def target_names(self) -> Sequence[str] | None: ...
    @property
    def target_units(self) -> Sequence[str] | None: ...
    @property
    def ordinal(self) -> Sequence[float] | None: ...


@dataclass(frozen=True)
class Target:
    """What is to be predicted.

    Attributes:
        values: classification ``(samples,)`` int64; segmentation ``(samples, H, W)`` whole numbers, memory-mapped;
            regression ``(samples, names)`` float32.
        names: of the classes, or of the numbers.
        units: of the numbers, one per name.
        ignore_label: of pixels without a label.
        class_pixels: segmentation: ``(samples, classes)`` labelled pixels.
        ordinal: regression: centres of the classes that the one number falls into, rising; empty where it has none.
    """

    task: str
    values: NDArray[Any]
    names: tuple[str, ...]
    units: tuple[str, ...] = ()
    ignore_label: int | None = None
    class_pixels: NDArray[np.int64] | None = None
    ordinal: tuple[float, ...] = ()


def read_target(path: Path, raw: NDArray[Any], about: Description, described: Path) -> Target:
    """Checks a target array against what is said of it; every value is looked at once, in blocks.

    Args:
        described: ``dataset.yaml``, for errors.

    Raises:
        UserError: a shape, type or value that the task cannot have; names the first bad sample.
    """
    if not raw.ndim or not len(raw):
        raise UserError(f"expected shape (samples,), received {raw.shape}", where=path)
    task = about.task or infer_task(raw)
    _require_fitting_keys(task, about, described)
    if task == SEGMENTATION:
        return _label_maps(path, raw, about)
    if task == REGRESSION:
        return _numbers(path, raw, about, described)
    return _classes(path, raw, about)


def blocks(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """A long array in pieces of about 32 MB, each with the number of its first row."""
    rows = max(1, _BLOCK_BYTES // max(1, array[0].nbytes))
    for start in range(0, len(array), rows):
        yield start, np.asarray(array[start : start + rows])


def infer_task(raw: NDArray[Any]) -> str:
    """Whole numbers per pixel are label maps; numbers with a fraction are to be regressed; the rest are classes."""
    if raw.ndim == 3 and raw.dtype.kind in "iu":
        return SEGMENTATION
    if raw.ndim <= 2 and raw.dtype.kind == "f" and not all(_whole(block) for _, block in blocks(raw)):
        return REGRESSION
    return CLASSIFICATION


def _whole(block: NDArray[Any]) -> bool:
    return bool((block == np.round(block)).all())


def _require_fitting_keys(task: str, about: Description, described: Path) -> None:
    fits = {
        "classes": task != REGRESSION,
        "ignore_label": task == SEGMENTATION,
        "target_names": task == REGRESSION,
        "target_units": task == REGRESSION,
        "ordinal": task == REGRESSION,
    }
    for key, allowed in fits.items():
        if getattr(about, key) is not None and not allowed:
            raise UserError(f"{key} says nothing in a {task} task", where=described, fix="remove the key")


def _classes(path: Path, raw: NDArray[Any], about: Description) -> Target:
    if raw.ndim != 1:
        raise UserError(
            f"expected shape (samples,), received {raw.shape}",
            where=path,
            fix="for other tasks than classification, write task: segmentation or task: regression in dataset.yaml",
        )
    if raw.dtype.kind == "U":
        return _named_classes(path, np.asarray(raw), about)
    if raw.dtype.kind not in "iu":
        raise UserError(
            f"expected whole class numbers or class names, received dtype {raw.dtype}",
            where=path,
            fix="convert it: target.astype('int64'); or, where these are quantities, write task: regression in "
            "dataset.yaml",
        )
    target = np.asarray(raw, dtype=np.int64)
    count = len(about.classes) if about.classes is not None else int(target.max()) + 1
    bad = np.flatnonzero((target < 0) | (target >= count))
    if len(bad):
        raise UserError(f"label {target[bad[0]]} of sample {bad[0]} is out of range 0..{count - 1}", where=path)
    return Target(CLASSIFICATION, target, _class_names(about, count))


def _named_classes(path: Path, names: NDArray[Any], about: Description) -> Target:
    classes = tuple(about.classes or sorted({str(name) for name in names}))
    number = {name: label for label, name in enumerate(classes)}
    for sample, name in enumerate(names):
        if str(name) not in number:
            raise UserError(
                f"label {str(name)!r} of sample {sample} is not among the classes of dataset.yaml", where=path
            )
    return Target(CLASSIFICATION, np.array([number[str(name)] for name in names], dtype=np.int64), classes)


def _class_names(about: Description, count: int) -> tuple[str, ...]:
    return tuple(about.classes or (str(label) for label in range(count)))


def _label_maps(path: Path, raw: NDArray[Any], about: Description) -> Target:
    if raw.ndim != 3 or 0 in raw.shape or raw.dtype.kind not in "iu":
        raise UserError(
            f"segmentation wants whole class numbers (samples, height, width), received {raw.shape} {raw.dtype}",
            where=path,
        )
    ignored = about.ignore_label
    largest = max(int(block[block != ignored].astype(np.int64).max(initial=-1)) for _, block in blocks(raw))
    if largest < 0:
        raise UserError("no pixel has a label", where=path)
    # An ignored class between the others has an output, like them; one beyond them (255) has none.
    count = len(about.classes) if about.classes is not None else largest + 1
    pixels = np.empty((len(raw), count), dtype=np.int64)
    for start, block in blocks(raw):
        labelled = block != ignored
        bad = labelled & ((block < 0) | (block >= count))
        if bad.any():
            sample = int(np.argmax(bad.reshape(len(block), -1).any(axis=1)))
            label = block[sample][bad[sample]][0]
            raise UserError(
                f"label {label} of sample {start + sample} is out of range 0..{count - 1}",
                where=path,
                fix="where it marks pixels without a label, write ignore_label in dataset.yaml",
            )
        for row, (labels, known) in enumerate(zip(block, labelled, strict=True), start=start):
            pixels[row] = np.bincount(labels[known].astype(np.int64), minlength=count)
    return Target(SEGMENTATION, raw, _class_names(about, count), (), ignored, pixels)


def _numbers(path: Path, raw: NDArray[Any], about: Description, described: Path) -> Target:
    if raw.ndim > 2 or raw.dtype.kind not in "fiu" or 0 in raw.shape:
        raise UserError(
            f"regression wants numbers (samples,) or (samples, outputs), received {raw.shape} {raw.dtype}", where=path
        )
    values = np.asarray(raw, dtype=np.float32).reshape(len(raw), -1)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise UserError(f"sample {bad[0]} holds NaN or infinity", where=path, fix="clean or drop that sample")
    count = values.shape[1]
    for key, said in (("target_names", about.target_names), ("target_units", about.target_units)):
        if said is not None and len(said) != count:
            raise UserError(f"{key} has {len(said)} entries, target.npy {count} per sample", where=described)
    names = about.target_names or (["value"] if count == 1 else [f"value_{k}" for k in range(count)])
    if len(set(names)) < count:
        raise UserError("target_names has one name twice", where=described)
    ordinal = tuple(about.ordinal or ())
    if about.ordinal is not None:
        _require_ordinal(path, values, ordinal, described)
    return Target(REGRESSION, values, tuple(names), tuple(about.target_units or [""] * count), ordinal=ordinal)


def _require_ordinal(path: Path, values: NDArray[np.float32], centres: tuple[float, ...], described: Path) -> None:
    if values.shape[1] != 1:
        raise UserError(f"ordinal is for one number, target.npy has {values.shape[1]} per sample", where=described)
    if len(centres) < 2 or not np.isfinite(centres).all() or min(np.diff(centres)) <= 0:
        raise UserError(f"ordinal must be two or more rising numbers, received {list(centres)}", where=described)
    low, high = np.float32(centres[0]), np.float32(centres[-1])
    bad = np.flatnonzero((values[:, 0] < low) | (values[:, 0] > high))
    if len(bad):
        raise UserError(
            f"label {values[bad[0], 0]:g} of sample {bad[0]} is out of the ordinal range {low:g}..{high:g}",
            where=path,
            fix="drop that sample, or widen ordinal in dataset.yaml",
        )
