"""Classes that a student never saw: `embedding_kd` with and without its terms.

    python -m benchmarks.new_classes --out FOLDER [--seeds 0,1,2]

Digits of `av_digits`: the student learns 0 to 6; 7, 8 and 9 are given to it afterwards, as the means of the teacher's
embedding over their training images. Every seed is a new split and a new initialisation. `±` is the deviation over
seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.retrieval import said, table
from distill.class_vectors import class_means
from distill.datasets.arrays import DatasetFile, ModalityFile, open_arrays, save_arrays
from distill.datasets.builder import build_dataset
from distill.datasets.library.av_digits import SAMPLE_RATE_HZ, AvDigitsOptions
from distill.datasets.spec import Dataset, Kind
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from distill.lab import UNIMODAL, Epochs, Lab, OptimizerChoice
from distill.methods.embedding_kd import EmbeddingKd, EmbeddingKdOptions
from distill.networks.class_matrix import ClassMatrix, unit
from distill.networks.registry import Model, NetworkChoice
from distill.tasks import Classification
from distill.teachers import open_teacher, save_teacher
from distill.training.features import FeatureStore
from distill.training.phase import Session

SEEN, CLASSES = 7, 10
TEACHER, STUDENT = NetworkChoice("small_cnn"), NetworkChoice("small_cnn", {"width": 0.5})
TERMS: Mapping[str, Mapping[str, Any]] = {
    "all four": {},
    "without `task`": {"task_weight": 0.0},
    "without `mse`": {"mse_weight": 0.0},
    "without `contrast`": {"contrast_weight": 0.0},
    "without `align`": {"align_weight": 0.0},
    "`task` alone": {"mse_weight": 0.0, "contrast_weight": 0.0, "align_weight": 0.0},
}


@dataclass(frozen=True)
class Plan:
    """How much is trained, and where it is kept."""

    out: Path
    pairs: int
    epochs: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=15, help="of every network")
    parser.add_argument("--out", type=Path, required=True, help="keeps the training; what is there is not done again")
    given = parser.parse_args(arguments)
    plan = Plan(given.out, given.pairs, given.epochs)
    found: dict[str, list[Mapping[str, float]]] = {}
    for seed in map(int, given.seeds.split(",")):
        for title, scores in rows(plan, seed):
            found.setdefault(title, []).append(scores)
            print(f"seed {seed}: {title}: {', '.join(said([value]) for value in scores.values())}", flush=True)
    print("\n".join(table(found)))


def rows(plan: Plan, seed: int) -> list[tuple[str, Mapping[str, float]]]:
    """What each row of the table reaches on one seed."""
    place = plan.out / str(seed)
    whole = open_digits(plan, seed, ("image",), CLASSES)
    lab = make_lab(whole, plan, seed, place / "whole", "image")
    knows = lab.trained_teacher(UNIMODAL)
    weights = keep_head(lab, knows, place / "teacher.safetensors")
    found: list[tuple[str, Mapping[str, float]]] = []
    for who, known in (("knows all ten", weights), ("knows the seven", None)):
        seen = make_lab(open_digits(plan, seed, ("image",), SEEN), plan, seed, place / who, "image", known)
        teacher = seen.trained_teacher(UNIMODAL)
        vectors = seen_and_new(seen, whole, teacher)
        own = torch.from_numpy(embedded(seen, whole, teacher, "test"))
        found.append((f"teacher {who}: the teacher itself", scored(unit(own) @ vectors.T, whole)))
        for title, options in TERMS.items():
            found.append((f"teacher {who}: {title}", taught(seen, whole, vectors, title, options)))
    both = open_digits(plan, seed, ("image", "audio"), CLASSES)
    heard = make_lab(open_digits(plan, seed, ("image", "audio"), SEEN), plan, seed, place / "heard", "audio", weights)
    vectors = seen_and_new(heard, both, heard.trained_teacher("image"))
    found.append(("image teacher knows all ten, student listens", taught(heard, both, vectors, "all four", {})))
    return found


def open_digits(plan: Plan, seed: int, modalities: tuple[str, ...], classes: int) -> Dataset:
    """The first ``classes`` digits of one seed's split."""
    folder = plan.out / str(seed) / "data" / f"{'-'.join(modalities)}-{classes}"
    if not folder.is_dir():
        options = AvDigitsOptions(pairs=plan.pairs, snr_db=(0.0, 12.0), image_noise=0.2)
        full = build_dataset("av_digits", options, SplitRule(seed=seed, by="recording"), None)
        assert full.explicit_split is not None
        kept = full.target < classes
        arrays = {name: np.asarray(full.arrays[name])[kept] for name in modalities}
        about = DatasetFile(
            name="digits",
            classes=[str(digit) for digit in range(classes)],
            modalities={
                name: ModalityFile(kind=Kind(name), sample_rate_hz=SAMPLE_RATE_HZ if name == "audio" else None)
                for name in modalities
            },
            split="split.npy",
        )
        parts = {"target": full.target[kept], "split": full.explicit_split[kept]}
        save_arrays(folder, {**arrays, **parts}, about)
    return open_arrays(folder)


def make_lab(dataset: Dataset, plan: Plan, seed: int, folder: Path, student: str, weights: Path | None = None) -> Lab:
    """A lab whose teacher reads the image: trained there, or taken from a file."""
    options = {name: frontend_options(spec.kind)() for name, spec in dataset.modalities.items()}
    frontends = {name: make_frontend(spec, options[name]) for name, spec in dataset.modalities.items()}
    teachers = {UNIMODAL if student == "image" else "image": (("image",), TEACHER)}
    pretrained = {}
    if weights is not None:
        (name,) = teachers
        pretrained[name] = open_teacher(weights, "weights")
        pretrained[name].pin(frontends, options, "weights")
    return Lab(
        store=FeatureStore(dataset, split_dataset(dataset, SplitRule()), frontends),
        task=Classification(len(dataset.classes)),
        session=Session(folder, torch.device("cpu"), seed, batch_size=64),
        student_modality=student,
        student=STUDENT,
        teachers=teachers,
        pretrained=pretrained,
        optimizer=OptimizerChoice(),
        epochs=Epochs(plan.epochs // 2, 1, plan.epochs - plan.epochs // 2),
    )


def keep_head(lab: Lab, teacher: Model, file: Path) -> Path:
    """Writes a teacher of ten classes as one that is asked about the first seven; its embedding is the same."""
    fewer = replace(lab, task=Classification(SEEN)).new_teacher(teacher.name)
    state = teacher.module.state_dict()
    fewer.module.load_state_dict(
        {name: value[:SEEN] if name.startswith("head.") else value for name, value in state.items()}
    )
    save_teacher(
        file,
        fewer.module,
        {"image": lab.store.frontends["image"]},
        {"image": frontend_options(Kind.IMAGE)()},
        classes=[str(digit) for digit in range(SEEN)],
        network=asdict(NetworkChoice(fewer.network, dict(fewer.options))),
    )
    return file


def taught(seen: Lab, whole: Dataset, vectors: Tensor, title: str, options: Mapping[str, Any]) -> Mapping[str, float]:
    """Trains a student of seven classes and asks it about ten."""
    own = seen.borrower(seen.session.folder.parent / f"{seen.session.folder.name}-{title.replace('`', '')}")
    student = EmbeddingKd(own, EmbeddingKdOptions(**options)).train()
    assert isinstance(student.module, ClassMatrix)
    assert torch.allclose(student.module.vectors, vectors[:SEEN], atol=1e-4)
    return scored(unit(torch.from_numpy(embedded(seen, whole, student, "test"))) @ vectors.T, whole)


def seen_and_new(seen: Lab, whole: Dataset, teacher: Model) -> Tensor:
    """``(10, d)`` vectors of all digits: means of the teacher's embedding over training images."""
    train = split_dataset(whole, SplitRule())["train"]
    features = torch.from_numpy(embedded(seen, whole, teacher, "train"))
    return class_means(features, torch.from_numpy(np.array(whole.target[train])), whole.classes, where="digits")


@torch.inference_mode()
def embedded(seen: Lab, whole: Dataset, model: Model, split: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``(samples, d)`` of a split of all ten digits, with the front ends of the seven."""
    (modality,) = model.reads
    frontend, module = seen.store.frontends[modality], model.module.eval()
    embed: Any = module.embed
    raw = whole.read(modality, split_dataset(whole, SplitRule())[split])
    blocks = [raw[start : start + 64] for start in range(0, len(raw), 64)]
    return np.concatenate([embed(frontend(torch.from_numpy(np.array(block)))).numpy() for block in blocks])


def scored(cosines: Tensor, whole: Dataset) -> dict[str, float]:
    """Accuracies of the test split, from cosines with ten vectors ``(samples, 10)``."""
    target = torch.from_numpy(np.array(whole.target[split_dataset(whole, SplitRule())["test"]]))
    known = target < SEEN

    def right(among: slice, of: Tensor) -> float:
        return float((cosines[of][:, among].argmax(dim=1) + (among.start or 0) == target[of]).double().mean())

    return {
        "known, among 7": right(slice(0, SEEN), known),
        "known, among 10": right(slice(0, CLASSES), known),
        "new, among 10": right(slice(0, CLASSES), ~known),
        "new, among 3": right(slice(SEEN, CLASSES), ~known),
    }


if __name__ == "__main__":
    main()
