from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from distill.tasks import Classification, balanced_class_weights


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_tau_squared_times_the_kullback_leibler_divergence(temperature):
    rng = np.random.default_rng(0)
    learner, teacher = rng.normal(0, 3, (2, 5, 7))
    p = softmax(teacher / temperature, axis=1)
    q = log_softmax(learner / temperature, axis=1)
    expected = temperature**2 * np.sum(p * (np.log(p) - q), axis=1)
    task = Classification(7)
    ours = task.sample_kd(torch.from_numpy(learner), torch.from_numpy(teacher), temperature)
    assert ours.numpy() == pytest.approx(expected, rel=1e-5)
    assert float(task.kd(torch.from_numpy(learner), torch.from_numpy(teacher), temperature)) == pytest.approx(
        expected.mean(), rel=1e-5
    )


def test_kd_of_equals_is_zero_and_gradients_reach_both_sides():
    z = torch.randn(4, 3, requires_grad=True)
    t = torch.randn(4, 3, requires_grad=True)
    assert float(Classification(3).kd(z, z, 4.0).detach()) == pytest.approx(0, abs=1e-6)
    Classification(3).kd(z, t, 4.0).backward()
    assert z.grad is not None
    assert t.grad is not None
    assert t.grad.abs().sum() > 0


def test_class_weights_make_every_class_count_alike():
    weights = balanced_class_weights(torch.tensor([90, 10]))
    assert weights.tolist() == pytest.approx([100 / 180, 5.0])
    logits = torch.zeros(100, 2)
    target = torch.tensor([0] * 90 + [1] * 10)
    # With equal logits the weighted mean loss is that of the unweighted one: weights have mean 1.
    assert float(Classification(2, weights).loss(logits, target)) == pytest.approx(math.log(2), rel=1e-5)
    only_rare = Classification(2, weights).loss(logits[:10], target[90:])
    assert float(only_rare) == pytest.approx(5 * math.log(2), rel=1e-5)


def test_metrics_count_rare_classes_in_the_balanced_accuracy():
    logits = torch.tensor([[1.0, 0.0]] * 10)
    target = torch.tensor([0] * 9 + [1])
    metrics = Classification(2).metrics(logits, target)
    assert metrics["accuracy"] == pytest.approx(0.9)
    assert metrics["error"] == pytest.approx(0.1)
    assert metrics["balanced_accuracy"] == pytest.approx(0.5)
