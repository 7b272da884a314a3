"""Contrastive distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.lab import Epochs
from distill.methods.crd import ContrastiveMemory, CrdOptions, contrast
from distill.training.checkpoint import load_tensors
from distill.training.features import Batch
from tests.distill.methods.helpers import make_method, require_exact_resume, require_it_teaches
from tests.distill.test_training import make_lab, store  # noqa: F401

TINY = 1e-7


def _memory(store, **options):  # noqa: F811
    torch.manual_seed(0)
    return ContrastiveMemory(5, 7, store, CrdOptions(**{"embedding": 16, "negatives": 20, **options}))


def _batch(store, size=8):  # noqa: F811
    return store.gather(store.splits["train"][10 : 10 + size], (), torch.device("cpu"))


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _contrast(h, samples):
    total = 0.0
    for row in h:
        noise = (len(row) - 1) / samples
        total -= np.log(row[0] / (row[0] + noise + TINY))
        total -= sum(np.log(noise / (x + noise + TINY)) for x in row[1:])
    return total / len(h)


def test_the_loss_against_the_formula_row_by_row(store, monkeypatch):  # noqa: F811
    memory, batch = _memory(store), _batch(store)
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=(8, 7)).astype(np.float32)
    drawn = memory.draw_negatives(memory.row[batch.ids])
    monkeypatch.setattr(memory, "draw_negatives", lambda rows: drawn)
    banks = {"s": memory.student_memory.double().numpy(), "t": memory.teacher_memory.double().numpy()}
    layers = {"s": memory.student, "t": memory.teacher}
    u, v = (
        _unit(x @ layers[side].weight.detach().double().numpy().T + layers[side].bias.detach().double().numpy())
        for side, x in (("s", s), ("t", t))
    )
    chosen = np.concatenate([np.arange(10, 18)[:, None], drawn.numpy()], axis=1)
    wanted = 0.0
    for anchors, bank in ((u, banks["t"]), (v, banks["s"])):
        h = np.exp(np.einsum("bd,bmd->bm", anchors, bank[chosen]) / 0.07)
        wanted += _contrast(h / (h.mean() * 144), 144)
    loss = memory(torch.tensor(s), torch.tensor(t), batch)["contrast"]
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    updated = banks["s"].copy()
    updated[10:18] = _unit(0.5 * updated[10:18] + 0.5 * u)
    assert np.allclose(memory.student_memory.numpy(), updated, atol=1e-6)


def test_positives_are_the_sample_itself_and_negatives_never_of_its_class(store):  # noqa: F811
    memory, batch = _memory(store, negatives=500), _batch(store, 30)
    rows = memory.row[batch.ids]
    assert store.splits["train"][rows].tolist() == batch.ids.tolist()
    drawn = memory.draw_negatives(rows)
    assert drawn.shape == (30, 500)
    assert not bool((memory.classes[drawn] == batch.target[:, None]).any())
    # All others are drawn, about equally often: 96 of them in 500 draws, 30 times.
    others = (memory.classes != batch.target[0]).nonzero().flatten()
    counts = torch.bincount(drawn[batch.target == batch.target[0]].flatten(), minlength=144)[others]
    assert counts.min() > 0.4 * counts.float().mean()


def test_the_loss_falls_with_the_positives_score_and_rises_with_the_negatives():
    scores = torch.full((3, 11), 0.1)
    near, far = scores.clone(), scores.clone()
    near[:, 0] = 5
    far[:, 1:] = 5
    assert contrast(near, 100) < contrast(scores, 100) < contrast(far, 100)


def test_at_scores_equal_to_the_noise_every_answer_is_a_coin_toss():
    """h = m/N: one positive and m negatives, log 2 each."""
    assert float(contrast(torch.full((3, 11), 10 / 100), 100)) == pytest.approx(11 * np.log(2), rel=1e-4)


def test_normalisers_are_set_by_the_first_batch_and_stay_and_memories_keep_unit_length(store):  # noqa: F811
    memory, batch = _memory(store), _batch(store)
    assert memory.normalisers.tolist() == [0, 0]
    memory(torch.randn(8, 5), torch.randn(8, 7), batch)
    first = memory.normalisers.clone()
    assert (first > 0).all()
    memory(3 * torch.randn(8, 5), torch.randn(8, 7), batch)
    assert torch.equal(memory.normalisers, first)
    assert torch.allclose(memory.teacher_memory[10:18].norm(dim=1), torch.ones(8))
    assert not torch.allclose(memory.teacher_memory[:10].norm(dim=1), torch.ones(10), atol=1e-3)


def test_gradients_reach_the_features_and_both_projections(store):  # noqa: F811
    memory = _memory(store)
    s = torch.randn(8, 5, requires_grad=True)
    memory(s, torch.randn(8, 7), _batch(store))["contrast"].backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (s, memory.student.weight, memory.teacher.weight))


def test_a_students_features_come_to_pick_out_those_of_the_teacher(store):  # noqa: F811
    """Features of student and teacher that carry the same information: the projections find it."""
    torch.manual_seed(0)
    memory, ids = _memory(store, negatives=64), store.splits["train"]
    batch = Batch(torch.from_numpy(ids), {}, store.target("train"))
    s = torch.randn(144, 5)
    t = s @ torch.randn(5, 7)
    optimizer = torch.optim.Adam(memory.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = memory(s, t, batch)["contrast"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    u = torch.nn.functional.normalize(memory.student(s), dim=1)
    similarity = u @ memory.teacher_memory.T
    other_class = batch.target[:, None] != batch.target
    rank = ((similarity > similarity.diagonal()[:, None]) & other_class).sum(dim=1).float().mean()
    assert rank < 3  # of 96; 48 by chance
    assert losses[-1] < losses[0]


def test_it_teaches(store, tmp_path):  # noqa: F811
    require_it_teaches(make_method("crd", make_lab(store, tmp_path, epochs=Epochs(4, 1, 4)), negatives=256))


@pytest.mark.parametrize("at", [0, 2])
def test_a_killed_run_goes_on_with_its_memories(store, tmp_path, at):  # noqa: F811
    require_exact_resume("crd", store, tmp_path, "crd", at, negatives=64)


def test_the_memories_are_in_the_checkpoint_and_not_in_the_student(store, tmp_path):  # noqa: F811
    method = make_method("crd", make_lab(store, tmp_path), negatives=64)
    student = method.train()
    assert not any("memory" in key for key in student.module.state_dict())
    groups, _ = load_tensors(tmp_path / "crd" / "final.safetensors")
    assert {"student_memory", "teacher_memory", "normalisers"} <= groups["comparison"].keys()
