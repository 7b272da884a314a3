"""Retrieval: mAP and triplets against independent renderings, two branches that find each other, their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import NoOptions, make_frontend
from distill.lab import Epochs, Lab, OptimizerChoice
from distill.networks.registry import NetworkChoice
from distill.retrieval import hardest_triplets, mean_average_precision
from distill.tasks import Classification
from distill.training.features import FeatureStore
from distill.training.phase import Session
from mst_edge.core.errors import UserError
from tests.conftest import write_vectors
from tests.distill.methods.helpers import make_method, require_it_teaches


def make_lab(folder, modalities=2) -> Lab:
    dataset = open_arrays(write_vectors(folder / "d", modalities=modalities, noise=0.8))
    names = tuple(dataset.modalities)
    frontends = {name: make_frontend(dataset.modalities[name], NoOptions()) for name in names}
    small = NetworkChoice("mlp", {"width": 0.25})
    return Lab(
        store=FeatureStore(dataset, split_dataset(dataset, SplitRule()), frontends),
        task=Classification(3),
        session=Session(folder / "lab", torch.device("cpu"), 0, batch_size=32),
        student_modality="a",
        student=small,
        teachers={
            "multimodal": (names, NetworkChoice("video_prompts", {"width": 0.25})),
            **{name: ((name,), small) for name in names[1:]},
        },
        optimizer=OptimizerChoice(lr=5e-3),
        epochs=Epochs(3, 1, 5),
    )


def test_map_is_the_mean_of_average_precisions():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(300, 6)), rng.normal(size=(90, 6))
    asked, held = rng.integers(0, 4, 300), rng.integers(0, 4, 90)
    cosine = queries @ gallery.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(gallery, axis=1)
    wanted = np.mean([average_precision_score(held == c, row) for c, row in zip(asked, cosine, strict=True)])
    said = mean_average_precision(*map(torch.from_numpy, (queries, gallery, asked, held)))
    assert said == pytest.approx(wanted, abs=1e-9)


def test_a_query_without_anything_relevant_counts_for_nothing():
    embeddings = torch.eye(3)
    assert mean_average_precision(embeddings, embeddings, torch.tensor([0, 1, 7]), torch.tensor([0, 1, 2])) == 1.0
    assert mean_average_precision(embeddings, embeddings, torch.tensor([7, 7, 7]), torch.tensor([0, 1, 2])) == 0.0
    # By hand: the relevant items come second and third of three, 1/2 and 2/3.
    near = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    said = mean_average_precision(near[:1], near, torch.tensor([1]), torch.tensor([0, 1, 1]))
    assert said == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_triplets_take_the_hardest_pair_of_the_other_modality():
    rng = np.random.default_rng(0)
    one, other, target = rng.normal(size=(8, 3)), rng.normal(size=(8, 3)), np.arange(8) % 3
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other))
    total = []
    for x, y in ((a, b), (b, a)):
        for i in range(8):
            d = np.linalg.norm(x[i] - y, axis=1)
            total.append(max(0, d[target == target[i]].max() - d[target != target[i]].min() + 0.4))
    said = hardest_triplets(*map(torch.from_numpy, (one, other, target)), margin=0.4)
    assert float(said) == pytest.approx(np.mean(total), rel=1e-5)
    assert float(hardest_triplets(torch.randn(4, 3), torch.randn(4, 3), torch.zeros(4), 1.2)) == 0


@pytest.mark.parametrize("pairs", ["triplet", "cosine"])
def test_two_branches_learn_to_find_each_other(tmp_path, pairs):
    lab = make_lab(tmp_path)
    method = make_method("adviser_retrieval", lab, pairs=pairs)
    method.check()
    student = require_it_teaches(method)
    assert student.reads == ("a",)
    scores = method.insights["retrieval_map"]
    untrained = method.retrieved(lab.new_student(), lab.new_teacher("b"), "test")
    assert list(scores) == ["a -> b", "b -> a", "mean"]
    assert scores["mean"] == pytest.approx((scores["a -> b"] + scores["b -> a"]) / 2)
    assert scores["mean"] > untrained["mean"] + 0.1
    assert f"{scores['mean']:.1%}" in method.insights["notes"][0]["text"]


def test_any_modality_that_the_student_does_not_read_may_be_the_partner(tmp_path):
    lab = make_lab(tmp_path, modalities=3)
    assert make_method("adviser_retrieval", lab, partner="c").partner == "c"
    assert make_method("adviser_retrieval", lab).partner == "b"
    with pytest.raises(UserError, match=r"distill\.options\.partner: unknown modality 'x'"):
        make_method("adviser_retrieval", lab, partner="x")
