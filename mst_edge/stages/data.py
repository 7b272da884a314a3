"""From the recipe to data that is ready: dataset, split ids, front ends, and a summary for people."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.augment import Augmentation, augmentation_options
from distill.datasets.builder import DATASETS, build_dataset
from distill.datasets.files import FilesOptions, open_any
from distill.datasets.spec import Dataset, Kind
from distill.datasets.splits import SplitRule, split_dataset
from distill.datasets.target import CLASSIFICATION, SEGMENTATION
from distill.frontends import Frontend, Standardiser, TokenizerOptions, frontend_options, make_frontend
from distill.huggingface.processor import own_constants
from distill.huggingface.source import source_of
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.files import atomic_path
from mst_edge.core.rows import npy_rows
from mst_edge.core.scoring import SCORINGS
from mst_edge.recipe import Recipe, StudentSection, TeacherSection, parse_options
from mst_edge.run_folder import RunFolder

_AUGMENT = "augment"  # under modalities.<name>, beside the options of the front end
_IMBALANCE = 3.0  # ratio of the largest to the smallest class from which class weights are used


@dataclass(frozen=True)
class Data:
    """A dataset with its split and front ends, and what is changed at random in training."""

    dataset: Dataset
    splits: dict[str, NDArray[np.int64]]
    frontends: dict[str, Frontend]
    frontend_options: dict[str, Any]
    augmentations: dict[str, Augmentation]

    def imbalance(self) -> float | None:
        """Largest class over smallest class, in training samples or pixels; None where there are no classes."""
        if not self.dataset.classes:
            return None
        counts = self.dataset.class_counts(self.splits["train"])
        present = counts[counts > 0]  # the ignored class has none
        return float(present.max() / present.min())

    def summary(self) -> dict[str, Any]:
        """What the result and the report say of the data."""
        dataset = self.dataset
        return {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "licence": dataset.licence,
            "source": dataset.source,
            "task": dataset.task,
            "classes": list(dataset.classes),
            "numbers": self._numbers(),
            "modalities": {
                name: {
                    "kind": spec.kind.value,
                    "shape": list(spec.shape),
                    "dtype": spec.dtype,
                    "sample_rate_hz": spec.sample_rate_hz,
                    "layout": spec.layout,
                    "features": list(self.frontends[name].feature_shape),
                }
                for name, spec in dataset.modalities.items()
            },
            "samples": {name: len(ids) for name, ids in self.splits.items()},
            "class_counts": {
                name: dataset.class_counts(ids).tolist() for name, ids in self.splits.items() if dataset.classes
            },
            "imbalance": self.imbalance(),
            "notes": list(dataset.notes),
        }

    def origin(self) -> dict[str, str]:
        """What identifies the data that networks were trained on."""
        return {
            "dataset": self.dataset.name,
            "data_sha256": self.dataset.fingerprint,
            "train_sha256": hashlib.sha256(self.splits["train"].tobytes()).hexdigest(),
        }

    def _numbers(self) -> list[dict[str, Any]]:
        """What is to be regressed, with its statistics over training samples."""
        if self.dataset.classes:
            return []
        truth = self.dataset.truth
        statistics = self.dataset.target_statistics(self.splits["train"])
        rows = zip(truth.names, truth.units, *(values.tolist() for values in statistics), strict=True)
        return [{"name": n, "unit": unit, "mean": mean, "std": std} for n, unit, mean, std in rows]

    def balances_classes(self, choice: str) -> bool:
        """Whether the training loss weighs classes, given ``distill.class_balance``.

        ``auto`` leaves pixels alone: in pictures a large background is the rule.

        Raises:
            UserError: weights for a task without classes.
        """
        imbalance = self.imbalance()
        if choice == "weights" and imbalance is None:
            raise UserError("regression has no classes to weigh", where="distill.class_balance", fix="use auto or none")
        if choice == "auto":
            return imbalance is not None and self.dataset.task == CLASSIFICATION and imbalance >= _IMBALANCE
        return choice == "weights"


def prepare(recipe: Recipe, data_root: Path | None) -> Data:
    """Opens or builds the recipe's dataset, splits it and makes its front ends.

    Raises:
        UserError: whatever is wrong with the data or with the recipe's words about it.
    """
    said = recipe.dataset
    rule = SplitRule(**said.split.model_dump())
    if said.path is not None:
        dataset = open_any(said.path, parse_options(FilesOptions, said.options, where="dataset.options"))
        splits = split_dataset(dataset, rule)
    else:
        options = parse_options(
            DATASETS.get(said.name, where="dataset.name").Options, said.options, where="dataset.options"
        )
        dataset = build_dataset(said.name, options, rule, data_root)
        # The built folder carries the split that the rule made.
        splits = split_dataset(dataset, SplitRule())
    _require_modalities(recipe, dataset)
    _require_fitting_goals(recipe, dataset)
    _require_fitting_hop(recipe, dataset)
    options_by_name = {
        name: parse_options(frontend_options(spec.kind, said), said, where=f"modalities.{name}")
        for name, spec in dataset.modalities.items()
        for said in [_said(recipe, name)]
    }
    frontends = {name: make_frontend(spec, options_by_name[name]) for name, spec in dataset.modalities.items()}
    for name, front in frontends.items():
        _take_own_tokenizer(front, options_by_name[name], f"modalities.{name}.tokenizer")
    _take_own_processor(frontends[recipe.student.modality], recipe.student)
    augmentations = {name: _augmentation(recipe, dataset, frontends, name) for name in dataset.modalities}
    return Data(dataset, splits, frontends, options_by_name, augmentations)


def _take_own_tokenizer(frontend: Frontend, options: Any, where: str) -> None:
    """Gives a front end of texts the tokenizer of the language model that its options name."""
    if isinstance(options, TokenizerOptions) and options.tokenizer:
        tokenizer = source_of(options.tokenizer, where).tokenizer(options.max_tokens)
        frontend.pin({"tokenizer": tokenizer.to_json()})


def _take_own_processor(frontend: Frontend, student: StudentSection) -> None:
    """Gives the front end of a student that starts from a model's weights the numbers of that model's processor."""
    if isinstance(frontend, Standardiser):
        constants = own_constants(frontend, student.network, student.options, "student.network")
        if constants is not None:
            frontend.pin(constants)


def _said(recipe: Recipe, modality: str) -> dict[str, Any]:
    """What the recipe says of a front end."""
    return {key: value for key, value in recipe.modalities.get(modality, {}).items() if key != _AUGMENT}


def _augmentation(recipe: Recipe, dataset: Dataset, frontends: Mapping[str, Frontend], name: str) -> Augmentation:
    where = f"modalities.{name}.{_AUGMENT}"
    said = recipe.modalities.get(name, {}).get(_AUGMENT) or {}
    if not isinstance(said, dict):
        raise UserError(f"expected keys and values, received {said!r}", where=where)
    frontend = frontends[name]
    kind = frontend.augmented_as or dataset.modalities[name].kind
    chosen: Augmentation = parse_options(augmentation_options(kind), said, where=where)
    chosen.check(frontend.feature_shape, where, dense=dataset.task == SEGMENTATION, tiled=not frontend.moves)
    return chosen


def _require_modalities(recipe: Recipe, dataset: Dataset) -> None:
    known = dataset.modalities
    if recipe.student.modality not in known:
        raise unknown_name("modality", recipe.student.modality, known, where="student.modality")
    for name in recipe.modalities:
        if name not in known:
            raise unknown_name("modality", name, known, where="modalities")
    others = [name for name in known if name != recipe.student.modality]
    for name in recipe.teachers.cross_modal:
        if name not in others:
            raise unknown_name("modality of a cross-modal teacher", name, others, where="teachers.cross_modal")
    _require_teachers(recipe, list(known))


def _require_teachers(recipe: Recipe, known: list[str]) -> None:
    teachers = recipe.teachers
    if len(known) > 1 and teachers.unimodal is not None:
        raise UserError(
            f"the dataset has {len(known)} modalities ({', '.join(known)})",
            where="teachers.unimodal",
            fix="use teachers.multimodal, or teachers.cross_modal",
        )
    if len(known) == 1 and teachers.multimodal != TeacherSection():
        raise UserError(
            f"the dataset has one modality ({known[0]})", where="teachers.multimodal", fix="use teachers.unimodal"
        )
    alone = {"lone"} >= {recipe.distill.method, *recipe.distill.compare}
    if len(known) == 1 and teachers.unimodal is None and not alone:
        raise UserError(
            f"the dataset has one modality ({known[0]}): there is nothing to distil across",
            where="dataset",
            fix="name a larger network as teachers.unimodal, or set distill.method to lone and distill.compare to []",
        )


def _require_fitting_hop(recipe: Recipe, dataset: Dataset) -> None:
    spec, hop = dataset.modalities[recipe.student.modality], recipe.student.hop
    if hop is None:
        return
    if spec.kind not in (Kind.AUDIO, Kind.SEQUENCE):
        raise UserError(f"no windows are cut from {spec.kind} {spec.name}", where="student.hop", fix="leave it out")
    if hop > spec.shape[0]:
        raise UserError(f"{hop} is more than a window, {spec.shape[0]}: a stream would have gaps", where="student.hop")


def _require_fitting_goals(recipe: Recipe, dataset: Dataset) -> None:
    scoring = SCORINGS[dataset.task]
    wrong, right = ("max", "min") if scoring.higher_is_better else ("min", "max")
    said = {"goals": recipe.goals.accuracy}
    said |= {f"goals.targets.{name}": own.accuracy for name, own in recipe.goals.targets.items()}
    for where, accuracy in said.items():
        if getattr(accuracy, wrong) is not None:
            better = "higher" if scoring.higher_is_better else "lower"
            raise UserError(
                f"{scoring.label}, by which {dataset.task} is judged, is better when {better}",
                where=f"{where}.accuracy.{wrong}",
                fix=f"give {where}.accuracy.{right}",
            )


def save_evaluation(run: RunFolder, data: Data, modality: str, frontend: Frontend) -> None:
    """Keeps the test inputs, as the exported graph takes them, and targets for every build to see."""
    ids = data.splits["test"]
    dtype = np.dtype(frontend.graph_dtype)
    with atomic_path(run.evaluation) as temporary:
        temporary.mkdir()
        shape = (len(ids), *frontend.graph_shape)
        with npy_rows(temporary / "inputs.npy", shape, dtype) as append:
            rows = data.dataset.modalities[modality].block_rows
            for start in range(0, len(ids), rows):
                append(frontend.host(data.dataset.read(modality, ids[start : start + rows])))
        np.save(temporary / "target.npy", np.asarray(data.dataset.target[ids]), allow_pickle=False)
