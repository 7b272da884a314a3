"""C2KD: proxies of student and teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from distill.lab import Epochs
from distill.methods.c2kd import between_proxies, both_ways, kendall_tau_b, proxy_head, without_target
from distill.tasks import Classification
from distill.training.checkpoint import load_tensors
from tests.distill.methods.helpers import (
    make_method,
    no_parameter_in_common,
    require_exact_resume,
    require_it_teaches,
    softmax,
)
from tests.distill.test_training import make_lab, store  # noqa: F401

rng = np.random.default_rng(11)
S, T, Y = rng.normal(size=(12, 5)), rng.normal(size=(12, 5)), rng.integers(0, 5, 12)
TASK = Classification(5)


def _kl(p, q):
    return (p * np.log(p / q)).sum(axis=1)


@pytest.mark.parametrize("decimals", [3, 0])
def test_rank_correlation_is_scipys_also_with_ties(decimals):
    s, t = S.round(decimals), (3 * T).round(decimals)
    wanted = [kendalltau(a, b, variant="b").statistic for a, b in zip(s, t, strict=True)]
    assert kendall_tau_b(torch.tensor(s), torch.tensor(t)).tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_row_of_ties_has_no_correlation():
    assert kendall_tau_b(torch.ones(1, 4), torch.arange(4.0)[None]).tolist() == [0]


def test_network_and_proxy_teach_one_another():
    p, q = softmax(S), softmax(T)
    wanted = _kl(p, q).mean() + _kl(q, p).mean()
    assert float(both_ways(TASK, torch.tensor(S), torch.tensor(T))) == pytest.approx(wanted, rel=1e-5)


def test_each_term_has_a_constant_for_its_target():
    z, q = torch.tensor(S, requires_grad=True), torch.tensor(T, requires_grad=True)
    both_ways(TASK, z, q).backward()
    # KL(sg p || softmax(z)) has gradient (softmax(z) - p) / B in z, and nothing else reaches z.
    assert np.allclose(z.grad.numpy(), (softmax(S) - softmax(T)) / 12, atol=1e-6)
    assert np.allclose(q.grad.numpy(), (softmax(T) - softmax(S)) / 12, atol=1e-6)


def test_the_target_class_is_removed_from_the_softmax():
    others = without_target(torch.tensor(S), torch.tensor(Y)).numpy()
    for row, logits, y in zip(others, S, Y, strict=True):
        assert row.tolist() == np.delete(logits, y).tolist()


@pytest.mark.parametrize("threshold", [-2.0, 0.0, 0.3])
def test_proxies_learn_from_one_another_where_they_rank_classes_alike(threshold):
    loss, selected = between_proxies(TASK, torch.tensor(S), torch.tensor(T), torch.tensor(Y), threshold)
    wanted, count = 0.0, 0
    for s, t, y in zip(S, T, Y, strict=True):
        if kendalltau(s, t).statistic > threshold:
            p, q = softmax(np.delete(s, y)[None]), softmax(np.delete(t, y)[None])
            wanted += float(_kl(p, q)[0] + _kl(q, p)[0]) / 12
            count += 1
    assert float(loss) == pytest.approx(wanted, rel=1e-5)
    assert float(selected) == pytest.approx(count / 12)
    assert (count == 12) is (threshold < -1)


def test_each_proxy_takes_the_other_for_a_constant():
    s, t, y = torch.tensor(S, requires_grad=True), torch.tensor(T, requires_grad=True), torch.tensor(Y)
    between_proxies(TASK, s, t, y, -2.0)[0].backward()
    for learner, other, leaf in ((S, T, s), (T, S, t)):
        p = [softmax(np.delete(z, c)[None])[0] for z, c in zip(learner, Y, strict=True)]
        q = [softmax(np.delete(z, c)[None])[0] for z, c in zip(other, Y, strict=True)]
        assert np.allclose(without_target(leaf.grad, y), (np.array(p) - np.array(q)) / 12, atol=1e-6)
        assert not leaf.grad[torch.arange(12), y].any()


def test_rejected_samples_give_no_gradient():
    s = torch.tensor(S, requires_grad=True)
    between_proxies(TASK, s, torch.tensor(T), torch.tensor(Y), 0.0)[0].backward()
    rejected = [kendalltau(a, b).statistic <= 0 for a, b in zip(S, T, strict=True)]
    assert 0 < sum(rejected) < 12
    assert ((s.grad.abs().sum(dim=1) == 0).numpy() == rejected).all()


def test_the_value_of_the_target_logit_does_not_matter_to_the_divergence():
    shifted = S.copy()
    shifted[np.arange(12), Y] += 9.0
    one, other = (
        between_proxies(TASK, torch.tensor(s), torch.tensor(T), torch.tensor(Y), -2.0)[0] for s in (S, shifted)
    )
    assert float(one) == pytest.approx(float(other))


def test_proxies_have_the_published_size():
    assert sum(p.numel() for p in proxy_head(84, 10).parameters()) == 8158
    assert sum(p.numel() for p in proxy_head(320, 8).parameters()) == 105928


def test_it_teaches_and_the_teacher_learns_along_but_the_shared_one_stays(store, tmp_path):  # noqa: F811
    # Its proxies first have to learn: four epochs, of five batches each, are not enough.
    method = make_method("c2kd", make_lab(store, tmp_path, epochs=Epochs(4, 1, 6)))
    frozen = method.lab.trained_teacher("multimodal").module
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    copies = []
    plain = method.lab.learning_teacher
    method.lab.learning_teacher = lambda name: copies.append(plain(name)) or copies[-1]
    require_it_teaches(method)
    assert all(torch.equal(value, frozen.state_dict()[name]) for name, value in before.items())
    (learned,) = copies
    assert no_parameter_in_common(learned.module, frozen)
    groups, _ = load_tensors(tmp_path / "c2kd" / "final.safetensors")
    assert all(groups[proxy]["3.bias"].all() for proxy in ("student_proxy", "teacher_proxy"))  # zero at first
    assert not any(p.requires_grad for p in frozen.parameters())
    assert 0 < method.lab.histories["c2kd"][-1]["selected"] <= 1


def test_the_plan_counts_the_learning_teacher(store, tmp_path):  # noqa: F811
    (work,) = make_method("c2kd", make_lab(store, tmp_path)).workload()
    assert (list(work.trained), list(work.forward)) == (["student", "multimodal"], [])


def test_a_killed_run_goes_on_with_its_teacher_and_proxies(store, tmp_path):  # noqa: F811
    require_exact_resume("c2kd", store, tmp_path, "c2kd", at=1)
