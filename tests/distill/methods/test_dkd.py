"""Decoupled KD: both parts against their definition, and what they are together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.methods.dkd import labelled, parts
from distill.tasks.classification import divergence
from distill.training.features import Batch
from tests.distill.methods.helpers import cross_entropy, make_method, require_it_teaches, softmax
from tests.distill.test_training import make_lab, store  # noqa: F401

rng = np.random.default_rng(8)
Z, T, Y = 3 * rng.normal(size=(9, 5)), 3 * rng.normal(size=(9, 5)), rng.integers(0, 5, 9)


def _parts(z, t, y, tau):
    """As the paper defines them, sample by sample: probabilities first, then the target taken out."""
    target, others = [], []
    for one, other, label in zip(z, t, y, strict=True):
        q, p = (softmax(logits[None] / tau)[0] for logits in (one, other))
        binary = [np.array([x[label], 1 - x[label]]) for x in (q, p)]
        rest = [np.delete(x, label) / (1 - x[label]) for x in (q, p)]
        target.append(tau**2 * sum(binary[1] * np.log(binary[1] / binary[0])))
        others.append(tau**2 * sum(rest[1] * np.log(rest[1] / rest[0])))
    return np.array(target), np.array(others)


def _tensors(*arrays):
    return [torch.tensor(array) for array in arrays]


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_both_parts_are_those_of_the_paper(tau):
    for found, wanted in zip(parts(*_tensors(Z, T, Y), tau), _parts(Z, T, Y, tau), strict=True):
        assert found.numpy() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_with_what_the_teacher_gives_to_other_classes_as_beta_it_is_kd(tau):
    """Eq. 6 of the paper: the weight that KD gives to the second part is small where the teacher is sure."""
    z, t, y = _tensors(Z, T, Y)
    target, others = parts(z, t, y, tau)
    unsure = torch.tensor(1 - softmax(T / tau)[np.arange(9), Y])
    assert (target + unsure * others).numpy() == pytest.approx(divergence(z, t, tau).numpy(), rel=1e-4)


def test_of_two_classes_the_first_part_is_kd_and_the_second_is_nothing():
    z, t, y = _tensors(Z[:, :2], T[:, :2], Y % 2)
    target, others = parts(z, t, y, 4.0)
    assert target.numpy() == pytest.approx(divergence(z, t, 4.0).numpy(), rel=1e-5)
    assert others.abs().max() == 0


def test_a_teacher_that_is_certain_leaves_finite_losses_and_gradients():
    """Where p_target is 1 in float32, log(1 - p) would be minus infinity."""
    z = torch.tensor([[60.0, 0, 1, 2]], requires_grad=True)
    target, others = parts(z, torch.tensor([[90.0, 3, 2, 1]]), torch.tensor([0]), 1.0)
    (target + others).sum().backward()
    assert torch.isfinite(target + others).all()
    assert torch.isfinite(z.grad).all()
    assert others.item() > 0.1  # the teacher's ranking of the other classes is still heard


def _losses(store, folder, epoch, **options):  # noqa: F811
    method = make_method("dkd", make_lab(store, folder), **options)
    batch = Batch(torch.arange(9), {}, torch.tensor(Y))
    z, t = _tensors(Z, T)
    return {name: float(value) for name, value in method.loss(z, {"multimodal": t}, batch, epoch).items()}


def test_the_loss_weighs_labels_and_both_parts_and_lets_the_parts_grow(store, tmp_path):  # noqa: F811
    options = {"task_weight": 0.5, "alpha": 2.0, "beta": 3.0, "temperature": 2.0, "warmup_share": 0.75}
    target, others = (part.mean() for part in _parts(Z, T, Y, 2.0))
    for epoch, share in [(0, 0.0), (1, 1 / 3), (3, 1.0), (100, 1.0)]:  # 3 of 4 epochs
        wanted = 0.5 * cross_entropy(Z, Y) + share * (2 * target + 3 * others)
        assert _losses(store, tmp_path, epoch, **options)["loss"] == pytest.approx(wanted, rel=1e-5)
    target, others = (part.mean() for part in _parts(Z, T, Y, 4.0))
    at_once = _losses(store, tmp_path, 0, warmup_share=0.0)["loss"]
    assert at_once == pytest.approx(cross_entropy(Z, Y) + target + 8 * others, rel=1e-5)


def test_of_maps_only_labelled_pixels_count_each_as_a_sample():
    z, t = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    y = torch.randint(0, 3, (2, 3, 5))
    y[0, 1, 2] = y[1, 0, 0] = 3
    of_student, of_teacher, target = labelled(z, t, y, ignore_label=3)
    assert of_student.shape == (28, 4)
    assert torch.equal(of_student[-1], z[1, :, 2, 4])
    assert torch.equal(of_teacher[0], t[0, :, 0, 0])
    assert 3 not in target


def test_it_teaches(store, tmp_path):  # noqa: F811
    require_it_teaches(make_method("dkd", make_lab(store, tmp_path)))


def test_int8_training_goes_on_with_all_of_the_loss(store, tmp_path):  # noqa: F811
    """Its epochs are the student's last ones: the parts do not grow from 0 again."""
    method = make_method("dkd", make_lab(store, tmp_path))
    assert method.warmth(method.lab.epochs.student) == 1.0
