"""Classes that a run's student was not trained on: a vector each, and a run of its own for what it then is.

from mst_edge.open_classes import add_classes, vectors_of_samples

names, rows = vectors_of_samples("runs/digits", "new_samples")
add_classes("runs/digits", rows, names, out="runs/more_digits")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.class_vectors import class_means, read_vectors, with_classes
from distill.datasets.arrays import open_arrays
from distill.datasets.spec import Dataset
from distill.datasets.target import CLASSIFICATION
from distill.frontends import Frontend, frontend_options, make_frontend
from distill.lab import freeze, teacher_key
from distill.methods.embedding_kd import EmbeddingKd
from distill.networks.registry import NetworkChoice, build_model
from distill.student import load_student
from distill.taps import Tap
from distill.teachers import TeacherFile, open_teacher
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.files import read_json, require_unused
from mst_edge.derived import begin_with
from mst_edge.recipe import Recipe, load_recipe
from mst_edge.run_folder import TRAINING, RunFolder
from mst_edge.search.stage import settled_by

_AT_ONCE = 64


def add_classes(run: str | Path, rows: Tensor | str | Path, names: Sequence[str], *, out: str | Path) -> RunFolder:
    """A run whose student knows further classes; nothing is trained.

    ``mst-edge run OUT/recipe.yaml --out OUT --resume`` quantizes it with the run's own samples, judges it on the run's
    own test split (with the new classes among the answers, so that what they cost the old ones shows) and packs it.

    Args:
        run: folder of a run by ``embedding_kd``.
        rows: ``(n, d)`` vectors in the space of the student's class vectors, or a file of them. names: of the classes.

    Raises:
        UserError: another kind of run, rows that do not fit, a name that is there already, or a folder in use.
    """
    earlier, recipe, record = _trained(Path(run))
    require_unused(Path(out), "run")
    if not isinstance(rows, Tensor):
        rows = read_vectors(Path(rows), where="rows", rows=len(names))
    student = with_classes(load_student(earlier.distill), rows, names)
    text = (
        f"classes added to the student of {Path(run).name} by a vector each: {', '.join(names)}. Nothing was trained; "
        "accuracies of training are of the classes before"
    )
    record = {**record, "diagnoses": [*record["diagnoses"], {"level": "note", "text": text}]}
    return begin_with(student, recipe, record, read_json(earlier.histories_file), Path(out))


def vectors_of_samples(run: str | Path, samples: str | Path) -> tuple[tuple[str, ...], Tensor]:
    """Names and vectors ``(n, d)`` of classes, each the mean of the run's teacher's embedding over samples of it.

    Args:
        run: folder of a run by ``embedding_kd``.
        samples: folder of arrays with the modalities that the teacher reads, and ``target.npy``.

    Raises:
        UserError: another kind of run, a modality that is missing or of another shape, or a class without samples.
    """
    folder, recipe, record = _trained(Path(run))
    said = record["insights"][EmbeddingKd.name]["class_vectors"]
    file = _teacher(folder, recipe, said["teacher"])
    dataset = open_arrays(Path(samples))
    if dataset.task != CLASSIFICATION:
        raise UserError(f"the samples are for {dataset.task}, not for classification", where=samples)
    features = _embedded(file, said["teacher"], said["layer"], dataset)
    target = torch.from_numpy(np.array(dataset.target))
    return dataset.classes, class_means(features, target, dataset.classes, where=str(samples))


def _trained(path: Path) -> tuple[RunFolder, Recipe, dict[str, Any]]:
    run = RunFolder(path)
    record = run.stage_result(TRAINING)
    if record is None or record["method"] != EmbeddingKd.name:
        raise UserError(
            f"holds no student of {EmbeddingKd.name}, the only kind that takes further classes",
            where=path,
            fix=f"set distill.method to {EmbeddingKd.name} and run the recipe",
        )
    recipe = settled_by(run, load_recipe(run.recipe_file))
    return run, recipe.model_copy(update={"search": None}), record


def _teacher(run: RunFolder, recipe: Recipe, name: str) -> TeacherFile:
    """The run's own, or the one that its recipe names."""
    said = recipe.teachers
    section = {"multimodal": said.multimodal, "unimodal": said.unimodal, **said.cross_modal}.get(name)
    named = None if section is None else section.weights
    return open_teacher(named or run.distill / "teachers" / f"{name}.safetensors", f"{teacher_key(name)}.weights")


@torch.inference_mode()
def _embedded(file: TeacherFile, name: str, layer: str, dataset: Dataset) -> Tensor:
    """``(samples, d)`` what the teacher makes of a dataset."""
    frontends = {modality: _frontend(file, modality, dataset) for modality in file.about.reads}
    shapes = {modality: frontend.feature_shape for modality, frontend in frontends.items()}
    choice = file.choice(NetworkChoice())
    model = build_model(name, choice, shapes, len(file.about.classes), where=teacher_key(name))
    tap = Tap(freeze(file.load_into(model, teacher_key(name))), [layer], shapes, where=teacher_key(name))
    blocks = []
    for start in range(0, len(dataset), _AT_ONCE):
        ids = np.arange(start, min(start + _AT_ONCE, len(dataset)))
        inputs = {
            modality: frontend(torch.from_numpy(np.array(frontend.host(dataset.read(modality, ids)))))
            for modality, frontend in frontends.items()
        }
        blocks.append(tap.features(inputs)[0])
    return torch.cat(blocks)


def _frontend(file: TeacherFile, modality: str, dataset: Dataset) -> Frontend:
    """As the teacher was trained with."""
    if modality not in dataset.modalities:
        raise unknown_name("modality of the teacher", modality, dataset.modalities, where=dataset.root)
    spec, said = dataset.modalities[modality], file.about.reads[modality]
    options = frontend_options(spec.kind)(**said.options)
    frontend = make_frontend(spec, options)
    file.pin({modality: frontend}, {modality: options}, str(dataset.root))
    if not frontend.pinned:
        raise UserError(f"{file.weights.name} does not say how {modality} was standardised", where=file.weights)
    return frontend
