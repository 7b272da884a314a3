"""A folder of arrays as a dataset: ``<modality>.npy``, ``target.npy``, optional groups, split and description.

The format is documented in docs/data.md. Every built-in dataset is built into this same format.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from distill.datasets.spec import Dataset, Kind, ModalitySpec
from distill.datasets.target import Target, blocks, read_target
from mst_edge.core.border import parse, read_yaml
from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path

DESCRIPTION = "dataset.yaml"
_RESERVED = {"target", "split"}
_AUDIO_WORDS = ("audio", "speech", "sound", "wave", "wav", "mic", "voice")
_TEXT_WORDS = ("text", "tweet", "sentence", "caption", "transcript", "comment", "message", "review", "title")
_RANKS = {
    Kind.IMAGE: (2, 3),
    Kind.AUDIO: (1,),
    Kind.SEQUENCE: (2,),
    Kind.VECTOR: (1,),
    Kind.VIDEO: (4,),
    Kind.TEXT: (0,),
}


class ModalityFile(BaseModel):
    """What ``dataset.yaml`` may say of one modality."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Kind | None = None
    sample_rate_hz: int | None = None


class DatasetFile(BaseModel):
    """The keys of ``dataset.yaml``; every one is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = ""
    task: Literal["classification", "segmentation", "regression"] | None = None
    classes: list[str] | None = None
    ignore_label: int | None = None
    target_names: list[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]] | None = None
    target_units: list[str] | None = None
    ordinal: list[float] | None = None
    modalities: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], ModalityFile] = {}
    groups: dict[str, str] = {}
    split: str | None = None
    licence: str = "not stated"
    source: str = ""
    notes: list[str] = []


def open_arrays(folder: Path) -> Dataset:
    """Opens and checks a folder of arrays.

    Every value is read once, in blocks: for NaN and for the fingerprint.

    Raises:
        UserError: a file is missing, malformed, of the wrong shape, length or type, holds NaN or
            infinity, or a label is out of range; one line, names the file and the first bad sample.
    """
    if not folder.is_dir():
        raise UserError("no such folder", where=folder)
    about = _describe(folder)
    arrays = _modality_arrays(folder, about)
    path = folder / "target.npy"
    truth = read_target(path, load_npy(path), about, folder / DESCRIPTION)
    samples = len(truth.values)
    _require_lengths(folder, arrays, samples)
    modalities = {name: _spec(folder, name, array, about) for name, array in arrays.items()}
    groups = {name: _labels_file(folder, file, samples) for name, file in _group_files(folder, about)}
    split = _explicit_split(folder, about, samples)
    return Dataset(
        name=about.name or folder.resolve().name,
        root=folder,
        modalities=modalities,
        arrays=arrays,
        truth=truth,
        fingerprint=_check_values(folder, arrays, truth),
        groups=groups,
        explicit_split=split,
        licence=about.licence,
        source=about.source,
        notes=tuple(about.notes),
    )


def save_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]], about: DatasetFile) -> None:
    """Writes arrays and ``dataset.yaml`` as a dataset folder, whole or not at all."""
    with arrays_folder(folder, about) as writer:
        for name, array in arrays.items():
            writer.save(name, array)


@contextlib.contextmanager
def arrays_folder(folder: Path, about: DatasetFile) -> Iterator[ArraysWriter]:
    """A dataset folder to be filled array by array, also piece by piece; whole or not at all in the end.

    Raises:
        UserError: the disk is full.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        try:
            yield ArraysWriter(temporary)
            write_description(temporary, about)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError("the disk is full", where=folder, fix="free some space, or set MST_EDGE_CACHE") from None


class ArraysWriter:
    """Writes the arrays of one dataset folder; see ``arrays_folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, name: str, array: NDArray[Any]) -> None:
        """Writes an array that is in memory anyway."""
        np.save(self._folder / f"{name}.npy", array, allow_pickle=False)

    def stream(self, name: str, shape: tuple[int, ...], dtype: Any, rows: Iterable[NDArray[Any]]) -> None:
        """Writes an array of ``shape`` row by row: only one row is in memory at a time.

        Appending, not a memory map, so that a full disk is an error and not a bus error.

        Raises:
            ValueError: a row of another shape, or not ``shape[0]`` rows.
        """
        kind, count = np.dtype(dtype), 0
        with (self._folder / f"{name}.npy").open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for row in rows:
                if row.shape != shape[1:]:
                    raise ValueError(f"row {count} of {name} has shape {row.shape}, not {shape[1:]}")
                file.write(np.ascontiguousarray(row, dtype=kind).tobytes())
                count += 1
        if count != shape[0]:
            raise ValueError(f"{name} got {count} rows, not {shape[0]}")


def write_description(folder: Path, about: DatasetFile) -> None:
    """Writes ``dataset.yaml``."""
    text = yaml.safe_dump(about.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def load_npy(path: Path) -> NDArray[Any]:
    """Memory-maps a ``.npy`` file.

    Raises:
        UserError: missing, not an array file, truncated, or an array of Python objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError("no such file", where=path) from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"not a readable .npy array ({error})",
            where=path,
            fix="save it with numpy.save, not of dtype object: samples of one shape",
        ) from None


def infer_kind(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Kind | None:
    """The most likely kind of a modality from its name, shape of one sample and type; None if unclear."""
    if dtype.kind == "U":
        return Kind.TEXT if shape == () and sounds_like_text(name) else None
    if len(shape) == 1:
        audible = any(word in name.lower() for word in _AUDIO_WORDS)
        return Kind.AUDIO if shape[0] >= 1000 and (audible or dtype == np.int16) else Kind.VECTOR
    if len(shape) == 2:
        return Kind.IMAGE if dtype == np.uint8 else Kind.SEQUENCE
    return {3: Kind.IMAGE, 4: Kind.VIDEO}.get(len(shape))


def sounds_like_text(name: str) -> bool:
    """Whether a modality of strings is free text by its name. Others may be names of groups or categories."""
    return any(word in name.lower() for word in _TEXT_WORDS)


def _describe(folder: Path) -> DatasetFile:
    path = folder / DESCRIPTION
    return parse(DatasetFile, read_yaml(path) or {}, where=path) if path.exists() else DatasetFile()


def _modality_arrays(folder: Path, about: DatasetFile) -> dict[str, NDArray[Any]]:
    reserved = _RESERVED | {Path(file).stem for _, file in _group_files(folder, about)}
    if about.split:
        reserved.add(Path(about.split).stem)
    names = list(about.modalities) or sorted(path.stem for path in folder.glob("*.npy") if path.stem not in reserved)
    if not names:
        raise UserError("holds no modality", where=folder, fix="put one <modality>.npy per input there")
    return {name: load_npy(folder / f"{name}.npy") for name in names}


def _require_lengths(folder: Path, arrays: Mapping[str, NDArray[Any]], samples: int) -> None:
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        is_text = array.dtype.kind == "U" and array.ndim == 1
        if array.dtype.kind not in "fiu" and not is_text:
            raise UserError(f"expected numbers or texts (samples,), received {array.shape} {array.dtype}", where=path)
        if array.ndim == 5 and array.shape[0] and not array.shape[1]:
            raise UserError(f"a video of zero frames: samples have shape {array.shape[1:]}", where=path)
        if (array.ndim < 2 and not is_text) or 0 in array.shape:
            raise UserError(f"expected shape (samples, ...), received {array.shape}", where=path)
        if len(array) != samples:
            raise UserError(f"holds {len(array)} samples, but target.npy holds {samples}", where=path)


def _spec(folder: Path, name: str, array: NDArray[Any], about: DatasetFile) -> ModalitySpec:
    said = about.modalities.get(name, ModalityFile())
    shape = tuple(array.shape[1:])
    kind = said.kind or infer_kind(name, shape, array.dtype)
    path = folder / f"{name}.npy"
    if array.dtype.kind == "U" and kind is not Kind.TEXT:
        raise UserError(
            "holds strings: free text that a student may read, or names of groups?",
            where=path,
            fix=f"say in {DESCRIPTION}: `modalities: {{{name}: {{kind: text}}}}`, or `groups: {{{name}: {name}.npy}}`",
        )
    if kind is None or len(shape) not in _RANKS[kind]:
        ranks = {kind.value: sizes for kind, sizes in _RANKS.items()}
        raise UserError(
            f"a sample of shape {shape} cannot be {kind or 'any known kind'}",
            where=path,
            fix=f"dimensions per kind: {ranks}; name the kind in {DESCRIPTION}",
        )
    if kind is Kind.IMAGE and len(shape) == 3 and shape[2] not in (1, 3, 4):
        raise UserError(
            f"an image sample must be (height, width) or (height, width, 1|3|4), received {shape}",
            where=path,
            fix="move the channels last: array.transpose(0, 2, 3, 1)",
        )
    if said.sample_rate_hz is not None and said.sample_rate_hz <= 0:
        raise UserError(f"sample_rate_hz must be positive, received {said.sample_rate_hz}", where=folder / DESCRIPTION)
    return ModalitySpec(name, kind, shape, str(array.dtype), said.sample_rate_hz)


def _group_files(folder: Path, about: DatasetFile) -> list[tuple[str, str]]:
    if about.groups:
        return list(about.groups.items())
    return [("groups", "groups.npy")] if (folder / "groups.npy").exists() else []


def _labels_file(folder: Path, file: str, samples: int) -> NDArray[Any]:
    """One comparable value per sample, from a file inside ``folder``."""
    if Path(file).name != file:
        raise UserError(f"{file!r} must be a plain file name", where=folder / DESCRIPTION)
    array = load_npy(folder / file)
    if array.shape != (samples,) or array.dtype.kind not in "iuU":
        raise UserError(
            f"expected ({samples},) whole numbers or names, received {array.shape} {array.dtype}",
            where=folder / file,
        )
    return array


def _explicit_split(folder: Path, about: DatasetFile, samples: int) -> NDArray[np.int64] | None:
    file = about.split or ("split.npy" if (folder / "split.npy").exists() else None)
    if file is None:
        return None
    codes = _labels_file(folder, file, samples)
    if codes.dtype.kind not in "iu" or not np.isin(codes, (0, 1, 2)).all():
        raise UserError("expected 0 (train), 1 (val) or 2 (test) per sample", where=folder / file)
    return np.asarray(codes, dtype=np.int64)


def _check_values(folder: Path, arrays: Mapping[str, NDArray[Any]], truth: Target) -> str:
    """Refuses NaN and infinity; returns the sha256 over names, shapes and bytes."""
    digest = hashlib.sha256(repr((truth.task, truth.names, truth.ignore_label, *truth.ordinal)).encode())
    for _, block in blocks(truth.values):
        digest.update(block.tobytes())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.shape}{array.dtype.str}".encode())
        for start, block in blocks(array):
            digest.update(block.tobytes())
            if block.dtype.kind == "f":
                bad = ~np.isfinite(block).reshape(len(block), -1).all(axis=1)
                if bad.any():
                    raise UserError(
                        f"sample {start + int(np.argmax(bad))} holds NaN or infinity",
                        where=folder / f"{name}.npy",
                        fix="clean or drop that sample",
                    )
    return digest.hexdigest()
