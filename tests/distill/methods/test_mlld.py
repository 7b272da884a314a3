"""Multi-level logit distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.methods.mlld import correlations
from distill.training.features import Batch
from tests.distill.methods.helpers import cross_entropy, make_method, require_it_teaches, softmax
from tests.distill.test_training import make_lab, store  # noqa: F401

rng = np.random.default_rng(3)
Z, T, Y = 2 * rng.normal(size=(7, 4)), 2 * rng.normal(size=(7, 4)), rng.integers(0, 4, 7)


def _levels(z, t, temperature):
    """The three levels entry by entry."""
    p, q = softmax(z / temperature), softmax(t / temperature)
    samples, classes = p.shape
    instance = temperature**2 * np.mean([sum(q[i] * np.log(q[i] / p[i])) for i in range(samples)])
    between_classes = sum((p[:, a] @ p[:, b] - q[:, a] @ q[:, b]) ** 2 for a in range(classes) for b in range(classes))
    between_samples = sum((p[i] @ p[j] - q[i] @ q[j]) ** 2 for i in range(samples) for j in range(samples))
    return instance, between_classes / classes, between_samples / samples


def _losses(store, folder, z=Z, t=T, **options):  # noqa: F811
    method = make_method("mlld", make_lab(store, folder), **options)
    batch = Batch(torch.arange(len(Y)), {}, torch.tensor(Y))
    return {
        name: float(v) for name, v in method.loss(torch.tensor(z), {"multimodal": torch.tensor(t)}, batch, 0).items()
    }


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 6.0])
def test_each_level_at_one_temperature(store, tmp_path, temperature):  # noqa: F811
    losses = _losses(store, tmp_path, temperatures=(temperature,))
    wanted = _levels(Z, T, temperature)
    assert [losses["instance"], losses["class"], losses["batch"]] == pytest.approx(wanted, rel=1e-5)


def test_levels_are_summed_over_temperatures_and_weighted(store, tmp_path):  # noqa: F811
    losses = _losses(
        store, tmp_path, temperatures=(2, 3, 5), task_weight=0.5, instance_weight=2, class_weight=3, batch_weight=4
    )
    instance, classes, samples = np.sum([_levels(Z, T, temperature) for temperature in (2, 3, 5)], axis=0)
    wanted = 0.5 * cross_entropy(Z, Y) + 2 * instance + 3 * classes + 4 * samples
    assert losses["loss"] == pytest.approx(wanted, rel=1e-5)


def test_nothing_is_left_to_learn_from_a_teacher_with_the_same_probabilities(store, tmp_path):  # noqa: F811
    losses = _losses(store, tmp_path, z=T + rng.normal(size=(7, 1)))
    assert [losses["instance"], losses["class"], losses["batch"]] == pytest.approx([0, 0, 0], abs=1e-5)


def test_classes_are_compared_whatever_the_order_of_samples_and_samples_whatever_the_order_of_classes():
    z, t = torch.tensor(Z), torch.tensor(T)
    classes, samples = correlations(z, t, 2.0)
    shuffled_samples = correlations(z[torch.randperm(7)], t, 2.0)
    shuffled_classes = correlations(z[:, [1, 2, 3, 0]], t, 2.0)
    assert shuffled_samples[0] == pytest.approx(float(classes))
    assert shuffled_samples[1] != pytest.approx(float(samples))
    assert shuffled_classes[1] == pytest.approx(float(samples))
    assert shuffled_classes[0] != pytest.approx(float(classes))


def test_it_teaches(store, tmp_path):  # noqa: F811
    require_it_teaches(make_method("mlld", make_lab(store, tmp_path)))
