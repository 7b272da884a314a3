"""A folder of samples for a model that came without its data: what it holds, what calibrates, and what judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DESCRIPTION, DatasetFile, load_npy
from distill.datasets.target import CLASSIFICATION, REGRESSION, SEGMENTATION, Target, infer_task, read_target
from mst_edge.core.border import parse, read_yaml
from mst_edge.core.errors import UserError
from mst_edge.core.scoring import OutputSpec
from quantize.calibration import ABOUT, INPUTS, deal, load_calibration
from quantize.variant import InputSpec

TARGET = "target.npy"
MOST_CALIBRATING = 256
_RANDOM_SAMPLES = 64  # to calibrate, and as many to judge
_AT_ONCE = 64


@dataclass(frozen=True)
class Samples:
    """Samples as a graph takes them.

    Attributes:
        where: their folder, for people.
        read: ``(n, *shape)`` the samples of some numbers.
        real: whether they were recorded. Random ones say nothing of accuracy.
        labels: ``target.npy``, where there is one.
        about: what ``dataset.yaml`` says.
    """

    where: Path
    count: int
    read: Callable[[NDArray[np.int64]], NDArray[Any]]
    real: bool = True
    labels: NDArray[Any] | None = None
    about: DatasetFile = field(default_factory=DatasetFile)

    def first(self, count: int) -> NDArray[Any]:
        """The first ones."""
        return self.read(np.arange(min(count, self.count)))


def read_samples(folder: Path, spec: InputSpec) -> Samples:
    """Opens a folder of samples and looks at every value once.

    It holds ``inputs.npy``, or an array called after the model's input, ``(samples, *shape)``; or one ``.npy`` file
    per sample, in the order of their names; and maybe ``target.npy`` and ``dataset.yaml`` as a dataset has them.

    Raises:
        UserError: no samples or too few, a wrong shape or type, NaN or infinity; names the file.
    """
    if not folder.is_dir():
        raise UserError("no such folder", where=folder, fix="give a folder of .npy files as --calibration")
    read, count = _open(folder, spec)
    if count < 2:
        raise UserError(f"holds {count} sample(s), expected 2 at least: some calibrate, the others judge", where=folder)
    described = folder / DESCRIPTION
    about = parse(DatasetFile, read_yaml(described) or {}, where=described) if described.exists() else DatasetFile()
    labels = load_npy(folder / TARGET) if (folder / TARGET).exists() else None
    if labels is not None and labels.shape[:1] != (count,):
        raise UserError(
            f"holds targets of shape {labels.shape}, expected ({count}, ...), one per sample", where=folder / TARGET
        )
    return Samples(folder, count, read, _were_recorded(folder), labels, about)


def _were_recorded(folder: Path) -> bool:
    """Not where they were kept from random ones."""
    return load_calibration(folder).real if (folder / ABOUT).is_file() else True


def random_samples(spec: InputSpec, seed: int) -> Samples:
    """Samples that nobody recorded: numbers from a normal distribution, bytes of all values, ids of 0 and 1.

    Raises:
        UserError: the model leaves axes free.
    """
    if None in spec.shape:
        raise UserError(
            f"input {spec.name!r} takes {_say(spec.shape)}, and random samples need a size for every axis",
            where="--shape",
            fix=f"give --shape {spec.name}=1,...",
        )
    rng = np.random.default_rng([seed, 5])
    shape, dtype = (2 * _RANDOM_SAMPLES, *spec.sizes), np.dtype(spec.dtype)
    if dtype.kind == "f":
        array = rng.standard_normal(shape, np.float32).astype(dtype)
    else:
        array = rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
    return Samples(Path("random"), len(array), array.__getitem__, real=False)


def meaning(samples: Samples, shape: tuple[int, ...], model: Path) -> tuple[OutputSpec, Target | None]:
    """What a model's one output of ``shape`` (without the batch) means, and the samples' targets where they have any.

    ``dataset.yaml`` and ``target.npy`` say it; without them, a vector holds logits of classes, a single value is a
    number, and ``(classes, height, width)`` are logits per pixel. Numbers still lack their ``scale``.

    Raises:
        UserError: the output cannot mean that, or targets do not fit it.
    """
    about, path = samples.about, samples.where / TARGET
    task = about.task or (infer_task(samples.labels) if samples.labels is not None else _task(shape, model))
    if len(shape) != (3 if task == SEGMENTATION else 1):
        wanted = "(classes, height, width)" if task == SEGMENTATION else "(outputs,)"
        raise UserError(f"its output is {shape} per sample, {task} wants {wanted}", where=model)
    outputs = shape[0]
    if task == REGRESSION:
        names = tuple(about.target_names or (["value"] if outputs == 1 else [f"value_{k}" for k in range(outputs)]))
    else:
        names = tuple(about.classes or (str(label) for label in range(outputs)))
        about = about.model_copy(update={"classes": list(names)})
    if len(names) != outputs:
        raise UserError(f"names {len(names)} outputs, the model has {outputs}", where=samples.where / DESCRIPTION)
    units = tuple(about.target_units or [""] * outputs) if task == REGRESSION else ()
    output = OutputSpec(task, names, units, about.ignore_label)
    if samples.labels is None:
        return output, None
    truth = read_target(path, samples.labels, about.model_copy(update={"task": task}), samples.where / DESCRIPTION)
    wanted_shape = {CLASSIFICATION: (), REGRESSION: (outputs,), SEGMENTATION: shape[1:]}[task]
    if truth.values.shape[1:] != wanted_shape:
        raise UserError(
            f"holds targets of shape {truth.values.shape[1:]}, the model's output wants {wanted_shape}", where=path
        )
    return output, truth


def split_samples(count: int, truth: Target | None, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the samples that calibrate, and of those that judge: never the same.

    Half of them calibrate, 256 at most, dealt by ``seed`` over the classes in turn; all others judge.
    """
    strata = truth.values if truth is not None and truth.task == CLASSIFICATION else np.zeros(count, np.int64)
    calibrating = deal(strata, min(MOST_CALIBRATING, count // 2), seed)
    return calibrating, np.setdiff1d(np.arange(count), calibrating)


def _task(shape: tuple[int, ...], model: Path) -> str:
    if len(shape) == 1:
        return REGRESSION if shape == (1,) else CLASSIFICATION
    if len(shape) == 3:
        return SEGMENTATION
    raise UserError(
        f"its output is {shape} per sample, expected (outputs,) or (classes, height, width)",
        where=model,
        fix="export the model with a head that gives one of these",
    )


def _open(folder: Path, spec: InputSpec) -> tuple[Callable[[NDArray[np.int64]], NDArray[Any]], int]:
    files = sorted(path for path in folder.glob("*.npy") if path.name != TARGET)
    whole = next((path for path in (folder / INPUTS, folder / f"{spec.name}.npy") if path in files), None)
    if whole is None and len(files) == 1 and load_npy(files[0]).ndim == 1 + len(spec.shape):
        whole = files[0]
    if whole is not None:
        array = load_npy(whole)
        _require_fitting(whole, array.shape[1:] if array.ndim else (), array.dtype, spec)
        for start in range(0, len(array), _AT_ONCE):
            _require_finite(whole, array[start : start + _AT_ONCE], start)
        return array.__getitem__, len(array)
    if not files:
        raise UserError(
            "holds no samples", where=folder, fix=f"put {INPUTS} (samples, ...) there, or a file per sample"
        )
    sizes = None
    for file in files:
        sample = load_npy(file)
        _require_fitting(file, sample.shape, sample.dtype, spec)
        _require_finite(file, sample[None], 0)
        sizes = sizes or sample.shape
        if sample.shape != sizes:
            raise UserError(
                f"is of shape {sample.shape}, {files[0].name} of {sizes}",
                where=file,
                fix="cut or pad samples to one size; the model goes on taking others",
            )
    return lambda ids: np.stack([load_npy(files[number]) for number in ids]), len(files)


def _require_fitting(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any], spec: InputSpec) -> None:
    fits = len(shape) == len(spec.shape) and all(n in (None, m) for n, m in zip(spec.shape, shape, strict=True))
    if fits and dtype == spec.dtype:
        return
    cast = f"convert them: array.astype('{spec.dtype}')" if fits else "prepare samples as the model takes them"
    raise UserError(
        f"holds samples of {_say(shape)} {dtype}, expected {_say(spec.shape)} {spec.dtype} for input {spec.name!r}",
        where=file,
        fix=cast,
    )


def _require_finite(file: Path, rows: NDArray[Any], start: int) -> None:
    if rows.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
    if len(bad):
        raise UserError(f"sample {start + bad[0]} holds NaN or infinity", where=file, fix="clean or drop that sample")


def _say(shape: tuple[int | None, ...]) -> str:
    """A shape as Python writes it, with ? for a free axis."""
    return str(shape).replace("None", "?")
