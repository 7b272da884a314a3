"""TAID: the mixture, how its share grows, and that a killed run loses nothing of it."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from distill.lab import Epochs
from distill.methods.taid import Mixture, TaidOptions
from distill.training.checkpoint import load_tensors
from distill.training.features import Batch
from mst_edge.core.errors import UserError
from tests.distill.methods.helpers import (
    cross_entropy,
    make_method,
    require_exact_resume,
    require_it_teaches,
    same,
    softmax,
)
from tests.distill.test_training import make_lab, store  # noqa: F401

rng = np.random.default_rng(5)


def _published(losses, steps, *, start=0.4, end=1.0, alpha=5e-4, beta=0.99):
    """t after each step, by the authors' rule in plain numbers."""
    t, m, before, found = start, 0.0, math.inf, []
    for step, loss in enumerate(losses):
        if math.isfinite(before):
            m = beta * m + (1 - beta) * (before - loss) / (before + 1e-15)
            moved = t + alpha / (1 + math.exp(-m)) * (1 - t)
            t = min(end, max(start + (end - start) * step / steps, moved))
        before = loss
        found.append(t)
    return found


def _shares(losses, steps, **options):
    mixture, found = Mixture(TaidOptions(**options), steps), []
    for loss in losses:
        mixture.observe(torch.tensor([loss]))
        found.append(float(mixture.share))
    return found


@pytest.mark.parametrize(
    ("steps", "alpha"),
    [(50, 5e-4), (100_000, 0.2), (100_000, 5e-4)],
    ids=["the schedule leads", "the loss leads", "neither moves far"],
)
def test_the_share_moves_as_published(steps, alpha):
    losses = np.exp(-np.linspace(0, 2, 50)) * rng.uniform(0.8, 1.2, 50)
    found = _shares(losses, steps, step_size=alpha)
    assert found == pytest.approx(_published(losses, steps, alpha=alpha), rel=1e-5)
    assert all(later >= earlier for earlier, later in itertools.pairwise(found))


def test_the_first_step_moves_nothing_and_the_last_share_is_the_limit():
    assert _shares([0.7], 10) == pytest.approx([0.4])
    assert _shares(np.full(200, 0.5), 10, t_end=0.8)[-1] == pytest.approx(0.8)


def test_a_falling_loss_moves_the_share_faster_than_a_rising_one():
    falling, rising = ([1 + sign * 0.02 * k for k in range(40)] for sign in (-1, 1))
    assert _shares(falling, 100_000, step_size=0.05)[-1] > _shares(rising, 100_000, step_size=0.05)[-1]


def test_the_loss_of_a_step_is_the_mean_over_all_its_parts():
    whole, parted = (Mixture(TaidOptions(step_size=0.3), 1000) for _ in range(2))
    for values in rng.uniform(0.1, 1, (6, 10)):
        whole.observe(torch.tensor(values))
        parted.observe(torch.tensor(values[:3]), ends_step=False)
        parted.observe(torch.tensor(values[3:]))
    assert same(whole, parted)
    assert int(parted.step) == 6


Z, T, Y = 2 * rng.normal(size=(6, 3)), 2 * rng.normal(size=(6, 3)), rng.integers(0, 3, 6)


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (0.4, 1.0), (0.7, 3.0), (1.0, 1.0)])
def test_the_student_learns_from_the_mixture_and_gets_no_gradient_through_it(store, tmp_path, share, temperature):  # noqa: F811
    options = {"t_start": share, "t_end": share, "temperature": temperature, "task_weight": 0.3, "kd_weight": 2.0}
    method = make_method("taid", make_lab(store, tmp_path), **options)
    z = torch.tensor(Z, requires_grad=True)
    batch = Batch(torch.arange(6), {}, torch.tensor(Y))
    losses = method.loss(z, {"multimodal": torch.tensor(T)}, batch, 0)
    q = softmax(((1 - share) * Z + share * T) / temperature)
    p = softmax(Z / temperature)
    wanted = temperature**2 * (q * np.log(q / p)).sum(axis=1).mean()
    assert float(losses["kd"].detach()) == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert float(losses["loss"].detach()) == pytest.approx(0.3 * cross_entropy(Z, Y) + 2 * wanted, rel=1e-5)
    (gradient,) = torch.autograd.grad(losses["kd"], z)
    assert gradient.numpy() == pytest.approx(temperature * (p - q) / 6, abs=1e-6)


def test_a_killed_run_goes_on_with_its_mixture_to_the_same_bits(store, tmp_path):  # noqa: F811
    options = {"step_size": 0.5, "momentum": 0.9}
    require_exact_resume("taid", store, tmp_path, "taid", at=1, **options)
    whole, resumed = (
        load_tensors(tmp_path / run / "taid" / "final.safetensors")[0]["mixture"] for run in ("whole", "killed")
    )
    assert set(whole) == {"share", "trend", "before", "step"}
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    # It is ahead of its schedule, and so depends on all that went before.
    assert float(whole["share"]) > 0.4 + 0.6 * (int(whole["step"]) - 1) / int(whole["step"])
    assert int(whole["step"]) == 4 * store.steps("train", 32)


def test_steps_are_counted_as_epochs_have_batches(store):  # noqa: F811
    for size in (7, 32, len(store.splits["train"]) - 1, 10_000):
        batches = store.shuffled("train", size, [0], ("signal",), torch.device("cpu"))
        assert store.steps("train", size) == len(list(batches))


def test_it_teaches_and_says_how_the_share_grew(store, tmp_path):  # noqa: F811
    method = make_method("taid", make_lab(store, tmp_path, epochs=Epochs(3, 1, 5)))
    require_it_teaches(method)
    shares = method.insights["t"]
    assert len(shares) == 8
    assert 0.4 <= shares[0] < shares[-1] <= 1.0


def test_cut_batches_move_the_share_alike(store, tmp_path):  # noqa: F811
    """Two parts one after another: the same steps, the same losses up to batch norm and dropout, which see parts."""
    lab = make_lab(store, tmp_path, epochs=Epochs(1, 1, 1))
    lab = dataclasses.replace(lab, session=dataclasses.replace(lab.session, accumulate=2))
    make_method("taid", lab).train()
    state = load_tensors(tmp_path / "taid" / "final.safetensors")[0]["mixture"]
    assert int(state["step"]) == 2 * store.steps("train", 32)


@pytest.mark.parametrize("ends", [(0.9, 0.5), (-0.1, 1.0), (0.2, 1.5)])
def test_shares_that_make_no_mixture_are_refused(store, tmp_path, ends):  # noqa: F811
    method = make_method("taid", make_lab(store, tmp_path), t_start=ends[0], t_end=ends[1])
    with pytest.raises(UserError, match=r"distill\.options\.t_start: expected 0 <= t_start <= t_end <= 1, received "):
        method.check()
