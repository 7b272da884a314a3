"""One vector per class: read from a file, made of a teacher's features, added to a trained student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from distill.datasets.arrays import load_npy
from distill.networks.class_matrix import ClassMatrix, unit
from distill.student import Student
from mst_edge.core.errors import UserError


def read_vectors(file: Path, *, where: str, rows: int | None = None, width: int | None = None) -> Tensor:
    """``(rows, width)`` float32 from an ``.npy`` file, or from a ``.safetensors`` file that holds one tensor.

    Args:
        where: the option or argument that names the file.
        rows, width: what it must have.

    Raises:
        UserError: no such file, another format, type or shape, or a row without a direction.
    """
    array = _read(file, where)
    if array.dtype != np.float32:
        raise UserError(f"{file} is {array.dtype}, expected float32", where=where, fix="convert it: .astype('float32')")
    expected = f"({'classes' if rows is None else rows}, {'width' if width is None else width})"
    if array.ndim != 2 or 0 in array.shape or rows not in (None, len(array)) or width not in (None, array.shape[1]):
        raise UserError(
            f"{file} has shape {array.shape}, expected {expected}: a row per class, as wide as the teacher's embedding",
            where=where,
        )
    lengths = np.linalg.norm(array.astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        raise UserError(f"row {bad[0]} of {file} has no direction: zeros, NaN or infinity", where=where)
    return torch.from_numpy(np.array(array))


def _read(file: Path, where: str) -> NDArray[np.generic]:
    if not file.is_file():
        raise UserError(f"no such file: {file}", where=where)
    if file.suffix == ".npy":
        return np.asarray(load_npy(file))
    if file.suffix != ".safetensors":
        raise UserError(f"{file} is neither .npy nor .safetensors", where=where)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is no readable safetensors file ({error})", where=where) from None
    if len(tensors) != 1:
        raise UserError(f"{file} holds {len(tensors)} tensors, expected one: a row per class", where=where)
    return next(iter(tensors.values()))


def class_means(features: Tensor, target: Tensor, names: Sequence[str], *, where: str) -> Tensor:
    """``(classes, d)`` of length 1: the mean direction of each class's features (a prototype).

    Args:
        features: ``(samples, d)``. target: ``(samples,)`` classes. names: of the classes. where: for errors.

    Raises:
        UserError: a class without samples.
    """
    counts = torch.bincount(target, minlength=len(names))
    if not bool((counts > 0).all()):
        name = names[int((counts == 0).nonzero()[0])]
        raise UserError(f"class {name} has no sample to make its vector of", where=where)
    directions = unit(features.double())
    sums = directions.new_zeros(len(names), features.shape[1]).index_add_(0, target, directions)
    return unit(sums / counts[:, None]).float()


def with_classes(student: Student, rows: Tensor, names: Sequence[str]) -> Student:
    """A student that knows further classes, by a vector each; nothing is trained, and nothing else changes.

    The old classes keep their numbers and logits, the new ones follow. That a sample of a new class is found rests on
    the student's embedding having learned the space that the vectors are from.

    Args:
        student: of the network ``class_matrix``, as ``embedding_kd`` leaves it.
        rows: ``(n, dim)`` float32, from where its class vectors are from. names: of the n classes.

    Raises:
        UserError: another network, a name that is there already or twice, or rows that do not fit.
    """
    network, spec = student.network, student.spec
    if not isinstance(network, ClassMatrix):
        raise UserError(
            f"{spec.network.network} has a fixed set of classes", where="student", fix="train with method embedding_kd"
        )
    if rows.ndim != 2 or rows.shape != (len(names), network.embedding_dim):
        raise UserError(
            f"{len(names)} names take rows of shape ({len(names)}, {network.embedding_dim}), received "
            f"{tuple(rows.shape)}",
            where="rows",
        )
    together = (*spec.output.names, *names)
    for name in names:
        if not name or together.count(name) > 1:
            raise UserError(f"class {name!r} is there already, or twice, or empty", where="names")
    extended = Student(replace(spec, output=replace(spec.output, names=together)))
    state = student.state_dict()
    state["network.vectors"] = torch.cat([state["network.vectors"], unit(rows.float())])
    extended.load_state_dict(state)
    return extended.eval()
