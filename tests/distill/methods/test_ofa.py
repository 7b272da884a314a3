"""One-for-all distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.methods.ofa import exit_branch, ofa_loss
from distill.training.checkpoint import load_tensors
from mst_edge.core.errors import UserError
from tests.distill.methods.helpers import cross_entropy, make_method, require_exact_resume, require_it_teaches, softmax
from tests.distill.test_training import make_lab, store  # noqa: F401

rng = np.random.default_rng(7)
Z, T, Y = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), rng.integers(0, 5, 6)


def _loss(gamma, temperature=1.0, teacher=T):
    return float(ofa_loss(torch.tensor(Z), torch.tensor(teacher), torch.tensor(Y), gamma, temperature))


@pytest.mark.parametrize(("gamma", "temperature"), [(1.0, 1.0), (1.1, 1.0), (1.5, 2.0)])
def test_the_loss_class_by_class(gamma, temperature):
    p, q = softmax(T / temperature), softmax(Z / temperature)
    total = 0.0
    for i, y in enumerate(Y):
        for c in range(5):
            weight = (1 + p[i, c]) ** gamma - 1 if c == y else p[i, c] ** gamma
            total -= weight * np.log(q[i, c])
    assert _loss(gamma, temperature) == pytest.approx(total / len(Y), rel=1e-5)


def test_gamma_one_is_plain_cross_entropy_with_the_teacher():
    assert _loss(1.0) == pytest.approx(-(softmax(T) * np.log(softmax(Z))).sum(axis=1).mean(), rel=1e-5)


def test_a_sure_and_right_teacher_gives_the_labels_times_two_to_the_gamma_minus_one():
    sure = 100.0 * np.eye(5)[Y]
    assert _loss(1.4, teacher=sure) == pytest.approx((2**1.4 - 1) * cross_entropy(Z, Y), rel=1e-5)


def test_gamma_raises_the_target_over_the_other_classes():
    z = torch.zeros(6, 5, requires_grad=True)
    shares = []
    for gamma in (1.0, 1.5):
        (grad,) = torch.autograd.grad(ofa_loss(z, torch.tensor(T), torch.tensor(Y), gamma, 1.0), z)
        # At equal logits: gradient = (sum of weights) / K - weight.
        shares.append(-grad[torch.arange(6), torch.tensor(Y)])
    assert (shares[1] > shares[0]).all()


@pytest.mark.parametrize(
    ("shape", "classes", "parameters"),
    [
        ((6, 28, 28), 10, 1126),
        ((16, 14, 14), 10, 3706),
        ((32, 8, 8), 10, 10746),
        ((64, 4, 4), 10, 35578),
        ((84,), 10, 1910),
        ((1280,), 8, 20632),
    ],
)
def test_exits_have_the_published_size(shape, classes, parameters):
    branch = exit_branch(shape, classes)
    assert sum(p.numel() for p in branch.parameters()) == parameters
    assert branch(torch.randn(2, *shape)).shape == (2, classes)


def test_exits_read_maps_over_time_and_maps_of_one_position():
    assert exit_branch((8, 13), 3)(torch.randn(2, 8, 13)).shape == (2, 3)
    assert exit_branch((8, 1, 1), 3)(torch.randn(2, 8, 1, 1)).shape == (2, 3)
    with pytest.raises(UserError, match=r"distill\.options\.layers: an exit cannot read a layer of shape"):
        exit_branch((8, 2, 2, 2), 3)


def test_it_teaches_through_an_exit_per_maskable_layer(store, tmp_path):  # noqa: F811
    method = make_method("ofa", make_lab(store, tmp_path))
    require_it_teaches(method)
    history = method.lab.histories["ofa"]
    assert history[-1]["exits"] < history[0]["exits"]
    groups, _ = load_tensors(tmp_path / "ofa" / "final.safetensors")
    biases = [value for name, value in groups["exits"].items() if name in ("0.17.bias", "1.2.bias")]
    assert len(biases) == 2  # of the map and of the vector; zero at first
    assert all(bias.any() for bias in biases)


def test_exits_alone_teach_the_layers_below_them_and_leave_the_head(store, tmp_path):  # noqa: F811
    method = make_method("ofa", make_lab(store, tmp_path), task_weight=0, logits_weight=0, layers=("blocks",))
    before, after = method.lab.new_student().module.state_dict(), method.train().module.state_dict()
    assert torch.equal(before["head.weight"], after["head.weight"])
    assert torch.equal(before["squeeze.weight"], after["squeeze.weight"])
    assert not torch.equal(before["stem.weight"], after["stem.weight"])


def test_a_killed_run_goes_on_with_its_exits(store, tmp_path):  # noqa: F811
    require_exact_resume("ofa", store, tmp_path, "ofa", at=1)


def test_an_unknown_layer_is_told(store, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"distill\.options\.layers: unknown layer 'blockz'; did you mean 'blocks'"):
        make_method("ofa", make_lab(store, tmp_path), layers=("blockz",)).train()
