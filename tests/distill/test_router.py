"""Routing: formulas against independent renderings, and that a learning router learns what it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.router import EvidenceRouter, LinearRouter, balance_loss, top_k


@pytest.mark.parametrize("kind", [LinearRouter, EvidenceRouter])
def test_weights_sum_to_one(kind):
    weights = kind(10, 4)(torch.randn(7, 10), torch.randn(7, 4, 10))
    assert weights.shape == (7, 4)
    assert torch.allclose(weights.sum(dim=1), torch.ones(7))


def test_the_published_router_is_two_linear_layers():
    assert sum(p.numel() for p in LinearRouter(10, 4).parameters()) == 304
    assert sum(p.numel() for p in LinearRouter(8, 4).parameters()) == 212


def test_balance_is_the_divergence_from_even_use_divided_by_the_number_of_teachers():
    weights = torch.softmax(torch.randn(50, 4), dim=1)
    mean = weights.mean(dim=0).numpy()
    expected = np.sum(0.25 * (np.log(0.25) - np.log(mean))) / 4
    assert float(balance_loss(weights)) == pytest.approx(expected, rel=1e-4)
    assert float(balance_loss(torch.full((5, 4), 0.25))) == pytest.approx(0, abs=1e-6)


def test_balance_stays_finite_when_a_teacher_is_never_used():
    assert torch.isfinite(balance_loss(torch.tensor([[1.0, 0.0, 0.0]])))


def test_top_k_takes_the_largest_and_renormalises():
    share, chosen = top_k(torch.tensor([[0.1, 0.5, 0.3, 0.1]]), 2)
    assert chosen.tolist() == [[1, 2]]
    assert share.tolist()[0] == pytest.approx([0.625, 0.375])


def test_the_evidence_router_sends_no_gradient_into_student_or_teachers():
    student = torch.randn(5, 10, requires_grad=True)
    teachers = torch.randn(5, 3, 10, requires_grad=True)
    EvidenceRouter(10, 3)(student, teachers)[:, 0].sum().backward()
    assert student.grad is None
    assert teachers.grad is None
