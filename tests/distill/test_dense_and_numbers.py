"""Segmentation and regression: losses, distillation and metrics against numpy; routing that learns who is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from distill.methods.mst import MstDistill
from distill.mst_options import MstOptions
from distill.router import EvidenceRouter, MapRouter, NumberRouter
from distill.tasks import Classification, Regression, Segmentation

IGNORED = 255
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (4, 3, 5, 6))
TEACHER = RNG.normal(0, 2, (4, 3, 5, 6))
MAPS = RNG.integers(0, 3, (4, 5, 6))
MAPS[:, 0] = IGNORED
MAPS[3] = IGNORED  # a picture without any label


def segmentation(**more):
    return Segmentation(3, (5, 6), ignore_label=IGNORED, **more)


def regression():
    return Regression(torch.tensor([300.0, 0.0]), torch.tensor([0.1, 5000.0]), ("t", "v"), ("K", "1/min"))


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


def pixel_losses():
    """Cross entropy of each labelled pixel, by numpy; NaN where there is no label."""
    log_p = log_softmax(LOGITS, axis=1)
    picked = np.take_along_axis(log_p, np.where(MAPS == IGNORED, 0, MAPS)[:, None], axis=1)[:, 0]
    return np.where(MAPS == IGNORED, np.nan, -picked)


def test_the_loss_of_a_map_is_the_mean_over_labelled_pixels():
    logits, maps = tensors(LOGITS, MAPS)
    losses = pixel_losses()
    assert float(segmentation().loss(logits, maps)) == pytest.approx(np.nanmean(losses), rel=1e-5)
    each = segmentation().sample_loss(logits, maps).numpy()
    assert each[:3] == pytest.approx([np.nanmean(one) for one in losses[:3]], rel=1e-5)
    assert each[3] == 0


def test_a_batch_without_labels_costs_nothing_and_teaches_nothing():
    logits = torch.randn(2, 3, 5, 6, requires_grad=True)
    loss = segmentation().loss(logits, torch.full((2, 5, 6), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


def test_class_weights_weigh_pixels():
    logits, maps = tensors(LOGITS, MAPS)
    weights = torch.tensor([0.5, 1.0, 3.0])
    per_pixel = np.array([0.5, 1.0, 3.0])[np.where(MAPS == IGNORED, 0, MAPS)]
    expected = np.nansum(pixel_losses() * per_pixel) / (MAPS != IGNORED).sum()
    assert float(segmentation(class_weights=weights).loss(logits, maps)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_of_maps_is_the_mean_over_all_pixels(temperature):
    p, log_q = softmax(TEACHER / temperature, axis=1), log_softmax(LOGITS / temperature, axis=1)
    expected = temperature**2 * (p * (np.log(p) - log_q)).sum(axis=1).mean(axis=(1, 2))
    found = segmentation().sample_kd(*tensors(LOGITS, TEACHER), temperature)
    assert found.numpy() == pytest.approx(expected, rel=1e-4)


def test_metrics_of_maps_are_the_same_at_once_and_in_batches():
    task = segmentation()
    logits, maps = tensors(LOGITS, MAPS)
    meter = task.meter()
    for part in (slice(0, 1), slice(1, 4)):
        meter.add(logits[part], maps[part])
    found = meter.result()
    assert found == pytest.approx(task.metrics(logits, maps))
    labelled = MAPS != IGNORED
    right = (LOGITS.argmax(axis=1) == MAPS)[labelled]
    assert found["pixel_accuracy"] == pytest.approx(right.mean())
    assert found["mean_recall"] == pytest.approx(np.mean([right[MAPS[labelled] == k].mean() for k in range(3)]))
    assert found["loss"] == pytest.approx(np.nanmean(pixel_losses()), rel=1e-5)
    assert found["confidence"] == pytest.approx(np.nanmean(np.exp(-pixel_losses())), rel=1e-5)


def test_numbers_are_compared_in_deviations_of_the_training_split():
    z, t = RNG.normal(size=(2, 7, 2)).astype(np.float32)
    target = RNG.normal(size=(7, 2)).astype(np.float32) * (0.1, 5000) + (300, 0)
    task, y = regression(), (target - (300, 0)) / (0.1, 5000)
    assert task.sample_loss(*tensors(z, target)).numpy() == pytest.approx(0.5 * ((z - y) ** 2).mean(axis=1), rel=1e-3)
    # The closed form of KL between Gaussians of one variance s^2 is (difference of means)^2 / (2 s^2); with means
    # divided by tau and the result multiplied by tau^2, tau cancels.
    for tau in (1.0, 4.0):
        expected = tau**2 * ((t / tau - z / tau) ** 2 / 2).mean(axis=1)
        assert task.sample_kd(*tensors(z, t), tau).numpy() == pytest.approx(expected, rel=1e-5)
    assert task.outputs(torch.from_numpy(z)).numpy() == pytest.approx(z * (0.1, 5000) + (300, 0), rel=1e-6)


def test_metrics_of_numbers_against_numpy():
    rng = np.random.default_rng(1)
    target = rng.normal(size=(40, 2)) * (0.1, 5000) + (300, 0)
    z = (target - (300, 0)) / (0.1, 5000) * 0.8 + rng.normal(0, 0.3, (40, 2))
    answers = z * (0.1, 5000) + (300, 0)
    task, meter = regression(), regression().meter()
    for part in (slice(0, 13), slice(13, 40)):
        meter.add(*tensors(z[part], target[part]))
    found, error = meter.result(), answers - target
    assert found["mae_t"] == pytest.approx(np.abs(error).mean(axis=0)[0], rel=1e-3)
    assert found["rmse_v"] == pytest.approx(np.sqrt((error**2).mean(axis=0))[1], rel=1e-3)
    r2 = 1 - (error**2).sum(axis=0) / ((target - target.mean(axis=0)) ** 2).sum(axis=0)
    assert found["r2"] == pytest.approx(r2.mean(), rel=1e-3)
    pearson = [np.corrcoef(answers[:, k], target[:, k])[0, 1] for k in range(2)]
    assert found["pearson"] == pytest.approx(np.mean(pearson), rel=1e-3)
    scoring = task.scoring
    assert found["nrmse"] == pytest.approx(scoring.value(scoring.statistics(answers, target)), rel=1e-3)


def test_headline_metrics_are_those_of_the_scoring():
    logits, maps = tensors(LOGITS, MAPS)
    classes = torch.tensor([0, 1, 2, 1])
    for task, z, target in ((segmentation(), logits, maps), (Classification(3), logits.mean(dim=(2, 3)), classes)):
        scoring = task.scoring
        expected = scoring.value(scoring.statistics(scoring.answers(task.outputs(z).numpy()), target.numpy()))
        assert task.metrics(z, target)[scoring.metric] == pytest.approx(expected)


def test_the_published_router_of_maps_has_the_published_size():
    assert sum(p.numel() for p in MapRouter(41, 4).parameters()) == 4596


@pytest.mark.parametrize("kind", [MapRouter, EvidenceRouter])
def test_routers_of_maps_give_weights_that_sum_to_one(kind):
    weights = kind(3, 4)(torch.randn(7, 3, 8, 9), torch.randn(7, 4, 3, 8, 9))
    assert weights.shape == (7, 4)
    assert torch.allclose(weights.sum(dim=1), torch.ones(7))


def test_the_evidence_of_a_map_is_the_mean_over_its_pixels():
    router = EvidenceRouter(3, 2)
    student, teachers = torch.randn(5, 3, 4, 6), torch.randn(5, 2, 3, 4, 6)
    pixel_by_pixel = torch.stack(
        [router.evidence(student[..., i, j], teachers[..., i, j]) for i in range(4) for j in range(6)]
    ).mean(dim=0)
    assert torch.allclose(router.evidence(student, teachers), pixel_by_pixel, atol=1e-6)


def test_trust_in_teachers_of_numbers_follows_their_own_error():
    """Gaussians of the teachers' mean squared error: scaling all errors changes nothing."""
    errors = torch.tensor([[0.0, 0.2], [0.3, 0.1]])
    variance = (errors**2).mean()
    expected = torch.softmax(-(errors**2) / (2 * variance), dim=1)
    for scale in (1.0, 1e-3):
        losses = 0.5 * (scale * errors) ** 2
        assert torch.allclose(regression().trust(losses, losses), expected, atol=1e-5)
        # A process that has one of the samples knows of the others' errors.
        assert torch.allclose(regression().trust(losses[:1], losses), expected[:1], atol=1e-5)
    assert torch.isfinite(regression().trust(torch.zeros(2, 2), torch.zeros(2, 2))).all()


class _Lab:
    """Only what routing needs."""

    def __init__(self, task):
        self.task = task


def routed(task, z, teachers, target, router):
    method = MstDistill.__new__(MstDistill)
    method.lab, method.options, method._names = _Lab(task), MstOptions(balance_weight=0.0), ["0", "1"]
    return method._routed(z, teachers, router, target, 0)


def learned_choice(task, z, teachers, target):
    """The teacher chosen per sample, once the router has learned, and the gradient's reach."""
    torch.manual_seed(0)
    router = task.routers["evidence"](task.num_outputs, 2)
    optimizer = torch.optim.Adam(router.parameters(), lr=1e-2)
    for _ in range(150):
        losses = routed(task, z, teachers, target, router)
        optimizer.zero_grad()
        losses["route"].backward()
        assert all(p.grad is not None for p in router.parameters())
        optimizer.step()
    return router(z, teachers).argmax(dim=1)


EVEN = torch.arange(128) % 2 == 0


def test_the_router_of_maps_learns_which_teacher_is_right():
    """One teacher is right on the even samples, the other on the odd; the wrong one is unsure of itself."""
    torch.manual_seed(1)
    task = Segmentation(3, (6, 6), ignore_label=IGNORED)
    target = torch.randint(0, 3, (128, 6, 6))
    sure = 6 * torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2).float()
    unsure = torch.randn(128, 3, 6, 6)
    even = EVEN[:, None, None, None]
    teachers = torch.stack([torch.where(even, sure, unsure), torch.where(even, unsure, sure)], dim=1)
    target[:, 0] = IGNORED
    chosen = learned_choice(task, torch.randn(128, 3, 6, 6), teachers, target)
    assert ((chosen == 0) == EVEN).float().mean() > 0.95


def test_the_router_of_numbers_learns_which_teacher_is_right():
    """The wrong teacher is far off; the student, who is roughly right, gives it away."""
    torch.manual_seed(1)
    task = Regression(torch.zeros(1), torch.ones(1))
    target = torch.randn(128, 1)
    right, wrong = target + 0.05 * torch.randn(128, 1), target + 1.5 * torch.randn(128, 1).sign()
    teachers = torch.stack([torch.where(EVEN[:, None], right, wrong), torch.where(EVEN[:, None], wrong, right)], dim=1)
    chosen = learned_choice(task, target + 0.4 * torch.randn(128, 1), teachers, target)
    assert ((chosen == 0) == EVEN).float().mean() > 0.95


@pytest.mark.parametrize("kind", [EvidenceRouter, NumberRouter])
def test_evidence_sends_no_gradient_into_student_or_teachers(kind):
    student, teachers = torch.randn(5, 4, requires_grad=True), torch.randn(5, 3, 4, requires_grad=True)
    kind(4, 3)(student, teachers)[:, 0].sum().backward()
    assert student.grad is None
    assert teachers.grad is None
