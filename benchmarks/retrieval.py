"""Retrieval between spoken and handwritten digits: two branches with a teacher's help and without.

    python -m benchmarks.retrieval --data-root DIR --out FOLDER [--seeds 0,1,2]

AV-MNIST with few pairs. Every seed is a new split and a new initialisation; within one, all rows share the data, the
teacher and the initial weights of both branches. mAP and R@1 are on the test split, where every query ranks all samples
of the other modality by cosine and what has its class is relevant; `±` is the deviation over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from distill.datasets.builder import find_data_root
from distill.lab import Lab
from distill.methods.base import METHODS
from distill.methods.dcd import DcdOptions
from distill.methods.two_branches import TwoBranches
from distill.mixing import Mixer
from distill.training.phase import Silent
from mst_edge.core.border import parse
from mst_edge.recipe import Recipe
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import make_lab, pick_device

HALF = {"width": 0.5}
RECIPE: dict[str, Any] = {
    "name": "digit_retrieval",
    "dataset": {"name": "avmnist", "options": {"pairs": 2400, "snr_db": [0, 10]}},
    "student": {"modality": "audio", "network": "small_cnn", "options": HALF},
    "teachers": {
        "multimodal": {"network": "fusion", "options": HALF},
        "cross_modal": {"image": {"network": "small_cnn", "options": HALF}},
    },
    "distill": {"epochs": {"collaborate": 8, "masks": 1, "distill": 12}},
}
PROBABILITIES = {"embedding": "probabilities"}


@dataclass(frozen=True)
class Row:
    """A method with its options."""

    title: str
    method: str
    options: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return "-".join([self.method, *(f"{key}_{value}" for key, value in sorted(self.options.items()))])


ROWS = [
    Row("no teacher, logits", "adviser_retrieval", {"advice_weight": 0.0}),
    Row("`adviser_retrieval`, logits", "adviser_retrieval", {}),
    Row("no teacher, probabilities", "adviser_retrieval", {"advice_weight": 0.0, **PROBABILITIES}),
    Row("`adviser_retrieval`, probabilities", "adviser_retrieval", PROBABILITIES),
    Row("`dcd` without the teacher's scores", "dcd", {"match_weight": 0.0}),
    Row("`dcd`", "dcd", {}),
    Row("`dcd`, sharp scores", "dcd", {"teacher_temperature": 0.2}),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pairs", type=int, default=RECIPE["dataset"]["options"]["pairs"])
    parser.add_argument("--epochs", type=int, default=20, help="of every network")
    parser.add_argument("--out", type=Path, required=True, help="keeps the training; what is there is not done again")
    given = parser.parse_args(arguments)
    found: dict[str, list[dict[str, float]]] = {}
    matched: list[float] = []
    for seed in map(int, given.seeds.split(",")):
        lab = open_lab(seed, given.pairs, given.epochs, find_data_root(given.data_root), given.out / str(seed))
        matched.append(own_pair(lab))
        for row in ROWS:
            found.setdefault(row.title, []).append(retrieve(lab, row))
    print("\n".join(table(found)))
    print(f"\nThe teacher's probability of a query's own pair among its hardest candidates: {said(matched)}")


def open_lab(seed: int, pairs: int, epochs: int, data_root: Path | None, folder: Path) -> Lab:
    """The lab of one seed, its teacher trained."""
    dataset = {
        "name": "avmnist",
        "options": {**RECIPE["dataset"]["options"], "pairs": pairs},
        "split": {"seed": seed, "by": "recording"},
    }
    stages = {"collaborate": epochs // 2, "masks": 1, "distill": epochs - epochs // 2}
    said = {**RECIPE, "seed": seed, "dataset": dataset, "distill": {"epochs": stages}}
    recipe = parse(Recipe, said, where="recipe")
    lab = make_lab(recipe, prepare(recipe, data_root), folder / "alone", pick_device("cpu"), Silent())
    lab.trained_teacher(lab.main_teacher)
    return lab


def own_pair(lab: Lab) -> float:
    """Of training samples, the probability that the teacher's match scores give a query's own pair, among it and the
    hardest candidates of its batch; mean over both directions."""
    options, shares = DcdOptions(), []
    mixer = Mixer(lab, lab.trained_teacher(lab.main_teacher))
    batches = lab.store.shuffled("train", lab.session.batch_size, [0], mixer.reads, lab.session.device)
    for batch in batches:
        for modality in ("audio", "image"):
            match = mixer.match_scores(batch, modality)
            others = match.masked_fill(batch.target[:, None] == batch.target, -torch.inf)
            hardest = others.topk(options.negatives, dim=1).values
            shares.append(torch.cat([match.diagonal()[:, None], hardest], dim=1).softmax(dim=1)[:, 0])
    return float(torch.cat(shares).mean())


def retrieve(lab: Lab, row: Row) -> dict[str, float]:
    """Shares in [0, 1] by column, after training."""
    own = lab.borrower(lab.session.folder.parent / row.folder)
    cls = METHODS.get(row.method)
    method = cls(own, cls.Options(**row.options))
    assert isinstance(method, TwoBranches)
    student = method.train()
    precision, recall = method.insights["retrieval_map"], method.insights["retrieval_recall"]
    there, back = recall
    return {
        "mAP, sound → picture": precision[there],
        "picture → sound": precision[back],
        "R@1, sound → picture": recall[there]["1"],
        "picture → sound ": recall[back]["1"],
        "student's accuracy": own.evaluate(student, "test")["accuracy"],
    }


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Lines of Markdown, in percent."""
    columns = list(next(iter(found.values()))[0])
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for title, seeds in found.items():
        cells = [said([seed[column] for seed in seeds]) for column in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def said(values: Sequence[float]) -> str:
    """Mean and deviation over seeds, in percent."""
    return f"{mean(values):.1%}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
