"""The mean of several teachers, and the student's loyalty to each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from distill.lab import Epochs
from distill.methods.multi_teacher import MEAN
from distill.networks.registry import NetworkChoice
from distill.tasks import Regression, task_for
from distill.training.features import Batch, FeatureStore
from mst_edge.core.errors import UserError
from mst_edge.stages.distill import method_options
from tests.conftest import write_numbers
from tests.distill.methods.helpers import cross_entropy, make_method, require_it_teaches, softmax
from tests.distill.test_training import make_lab, store  # noqa: F401

rng = np.random.default_rng(1)
Z, Y = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
ONE, OTHER = 3 * rng.normal(size=(6, 3)), 3 * rng.normal(size=(6, 3))


def _loss(store, folder, **options):  # noqa: F811
    method = make_method("multi_teacher", make_lab(store, folder), **options)
    said = {"multimodal": torch.tensor(ONE), "facts": torch.tensor(OTHER)}
    return float(method.loss(torch.tensor(Z), said, Batch(torch.arange(6), {}, torch.tensor(Y)), 0)["loss"])


@pytest.mark.parametrize(("weights", "share"), [({}, 0.5), ({"facts": 3.0}, 0.25), ({"multimodal": 0.5}, 1 / 3)])
def test_the_student_learns_from_the_weighted_mean_of_softened_probabilities(store, tmp_path, weights, share):  # noqa: F811
    p = share * softmax(ONE / 2) + (1 - share) * softmax(OTHER / 2)
    q = softmax(Z / 2)
    kd = 4 * (p * np.log(p / q)).sum(axis=1).mean()
    found = _loss(store, tmp_path, temperature=2.0, alpha=0.3, weights=weights)
    assert found == pytest.approx(0.7 * cross_entropy(Z, Y) + 0.3 * kd, rel=1e-5)


def test_of_pixels_each_is_averaged_for_itself_and_of_numbers_the_numbers(store, tmp_path):  # noqa: F811
    task = make_lab(store, tmp_path).task
    maps, weights = torch.randn(2, 3, 4, 5, 6), torch.tensor([0.2, 0.3, 0.5])
    whole = task.ensemble(maps, weights, 2.0)
    assert whole.shape == (2, 4, 5, 6)
    assert torch.allclose(whole[..., 3, 2], task.ensemble(maps[..., 3, 2], weights, 2.0), atol=1e-6)
    numbers = Regression(torch.zeros(2), torch.ones(2)).ensemble(torch.randn(4, 3, 2), weights, 2.0)
    assert numbers.shape == (4, 2)


def _probabilities(lab, model):
    return softmax(lab.logits(model, "test").numpy().astype(np.float64))


def test_it_teaches_and_tells_how_loyal_the_student_is(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    method = make_method("multi_teacher", lab, weights={"facts": 3.0})
    student = require_it_teaches(method)
    own = _probabilities(lab, student)
    said = {name: _probabilities(lab, lab.trained_teacher(name)) for name in ("multimodal", "facts")}
    said[MEAN] = 0.25 * said["multimodal"] + 0.75 * said["facts"]
    truth = lab.store.target("test").numpy()
    rows = {row["name"]: row for row in method.insights["loyalty"]}
    assert list(rows) == ["multimodal", "facts", MEAN]
    for name, p in said.items():
        distances = [jensenshannon(a, b, base=2) for a, b in zip(own, p, strict=True)]
        assert rows[name]["label"] == pytest.approx((own.argmax(axis=1) == p.argmax(axis=1)).mean())
        assert rows[name]["probability"] == pytest.approx(1 - np.mean(distances), abs=1e-5)
        assert rows[name]["accuracy"] == pytest.approx((p.argmax(axis=1) == truth).mean())
    assert [row["weight"] for row in rows.values()] == pytest.approx([0.25, 0.75, 1.0])
    (note,) = method.insights["notes"]
    assert f"facts label {rows['facts']['label']:.1%} probability {rows['facts']['probability']:.2f}" in note["text"]


def test_only_the_named_teachers_are_trained_and_each_is_in_the_plan(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path, teachers={
        "multimodal": (("facts", "signal"), NetworkChoice("fusion", {"width": 0.5})),
        "facts": (("facts",), NetworkChoice("mlp")),
        "signal": (("signal",), NetworkChoice("tcn", {"width": 0.25})),
    })  # fmt: skip
    everyone = make_method("multi_teacher", lab)
    assert everyone.listened == ("multimodal", "facts", "signal")
    assert [work.phase for work in everyone.workload()] == ["lone_facts", "lone_signal", "multi_teacher"]
    some = make_method("multi_teacher", lab, teachers=("facts", "signal"))
    assert [work.trained for work in some.workload()] == [["facts"], ["signal"], ["student"]]


def test_loyalty_in_numbers_is_relative_to_the_range_of_the_labels(tmp_path):
    dataset = open_arrays(write_numbers(tmp_path / "data"))
    fronts = {name: make_frontend(spec, frontend_options(spec.kind)()) for name, spec in dataset.modalities.items()}
    data = FeatureStore(dataset, split_dataset(dataset, SplitRule()), fronts)
    task = task_for(dataset, data.splits["train"])
    lab = make_lab(data, tmp_path / "run", task=task, epochs=Epochs(1, 1, 1))
    method = make_method("multi_teacher", lab)
    student = method.train()
    labels = dataset.target[data.splits["train"]]
    ranges = labels.max(axis=0) - labels.min(axis=0)
    own, *said = (
        task.outputs(lab.logits(model, "test")).numpy().astype(np.float64)
        for model in (student, lab.trained_teacher("multimodal"), lab.trained_teacher("facts"))
    )
    said.append((said[0] + said[1]) / 2)
    for row, numbers in zip(method.insights["loyalty"], said, strict=True):
        assert row["regression"] == pytest.approx(1 - (np.abs(own - numbers) / ranges).mean(), abs=1e-5)
    assert "multimodal regression 0." in method.insights["notes"][0]["text"]


def test_a_recipes_lists_and_weights_become_options():
    options = method_options("multi_teacher", "", {"teachers": ["facts", "multimodal"], "weights": {"facts": 2}})
    assert (options.teachers, options.weights) == (["facts", "multimodal"], {"facts": 2})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"teachers": ("multimodal", "fact")}, r"options\.teachers: unknown teacher 'fact'; .*facts, multimodal"),
        ({"teachers": ("facts",)}, r"options\.teachers: a mean needs two distinct teachers or more, received facts"),
        ({"teachers": ("facts", "facts")}, r"a mean needs two distinct teachers or more, received facts, facts"),
        ({"weights": {"image": 1.0}}, r"options\.weights: unknown teacher 'image'"),
        ({"weights": {"facts": 0.0}}, r"options\.weights\.facts: weights must be above 0, received 0"),
    ],
    ids=["unknown", "one", "twice", "weight of nobody", "weight of nothing"],
)
def test_what_makes_no_mean_is_refused(store, tmp_path, options, says):  # noqa: F811
    with pytest.raises(UserError, match=says):
        make_method("multi_teacher", make_lab(store, tmp_path), **options)


def test_one_modality_has_no_second_teacher(store, tmp_path):  # noqa: F811
    alone = {"unimodal": (("signal",), NetworkChoice("tcn"))}
    with pytest.raises(UserError, match=r"two distinct teachers or more, received unimodal.*use kd"):
        make_method("multi_teacher", make_lab(store, tmp_path, teachers=alone))
