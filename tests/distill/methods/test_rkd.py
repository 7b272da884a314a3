"""Relational distillation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from distill.methods.rkd import Relations, angles, distances
from distill.training.features import Batch
from mst_edge.core.errors import UserError
from tests.distill.methods.helpers import make_method, require_exact_resume, require_it_teaches
from tests.distill.test_training import make_lab, store  # noqa: F401

ONE_PROCESS = Batch(torch.arange(0), {}, torch.arange(0))  # which has nothing to gather
rng = np.random.default_rng(5)
S, T = rng.normal(size=(6, 4)), rng.normal(size=(6, 9))


def _huber(a, b):
    apart = np.abs(np.asarray(a) - np.asarray(b))
    return np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()


def _distances(f):
    d = np.array([[np.linalg.norm(a - b) for b in f] for a in f])
    return d / d[~np.eye(len(f), dtype=bool)].mean()


def _angles(f):
    count = len(f)
    cosines = np.zeros((count, count, count))
    for j in range(count):
        for i in range(count):
            for k in range(count):
                if j not in (i, k):
                    a, b = f[i] - f[j], f[k] - f[j]
                    cosines[j, i, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return cosines


def _relations(s, t, angle_samples=64):
    return {k: float(v) for k, v in Relations(angle_samples)(torch.tensor(s), torch.tensor(t), ONE_PROCESS).items()}


def test_both_relations_pair_by_pair_and_triplet_by_triplet():
    losses = _relations(S, T)
    assert losses["distance"] == pytest.approx(_huber(_distances(S), _distances(T)), rel=1e-4)
    assert losses["angle"] == pytest.approx(_huber(_angles(S), _angles(T)), rel=1e-4)
    assert losses["angle"] > 0.01


def test_the_mean_distance_is_one():
    d = distances(torch.tensor(S))
    assert float(d.sum()) == pytest.approx(6 * 5)
    assert torch.equal(d.diagonal(), torch.zeros(6, dtype=d.dtype))


def test_scale_shift_and_rotation_of_the_embedding_change_nothing():
    moved = 7.5 * S @ ortho_group.rvs(4, random_state=0) + 3
    assert _relations(moved, S) == pytest.approx({"distance": 0, "angle": 0}, abs=1e-6)
    assert _relations(moved, T) == pytest.approx(_relations(S, T), rel=1e-4)


def test_a_stretch_along_one_axis_is_seen_by_both():
    losses = _relations(S * np.array([5, 1, 1, 1]), S)
    assert losses["distance"] > 0.01
    assert losses["angle"] > 0.01


def test_angles_look_at_the_first_samples_only_where_told():
    assert _relations(S, T, angle_samples=4)["angle"] == pytest.approx(_relations(S[:4], T[:4])["angle"])
    assert angles(torch.tensor(S[:4])).shape == (4, 4, 4)


@pytest.mark.parametrize("features", [torch.zeros(5, 3), torch.tensor([[1.0, 2, 3]] * 3 + [[4.0, 5, 6]] * 2) / 3])
def test_coinciding_samples_give_finite_losses_and_gradients_and_no_angle(features):
    s = features.requires_grad_()
    losses = Relations(8)(s, torch.randn(5, 4), ONE_PROCESS)
    (losses["distance"] + losses["angle"]).backward()
    assert torch.isfinite(s.grad).all()
    assert angles(s.detach()).abs().max() <= 1 + 1e-5
    assert angles(s.detach())[0, 1].abs().max() == 0


def test_relations_survive_float32_far_from_the_origin():
    s = torch.tensor(S, dtype=torch.float32)
    moved = s + 100
    assert torch.allclose(distances(moved), distances(s), atol=1e-3)
    assert torch.allclose(angles(moved), angles(s), atol=1e-3)


def test_the_loss_is_the_weighted_sum(store, tmp_path):  # noqa: F811
    method = make_method("rkd", make_lab(store, tmp_path), task_weight=0.5, distance_weight=3, angle_weight=7)
    losses = method.weighted({name: torch.tensor(1.0) for name in ("task", "distance", "angle")})
    assert float(losses["loss"]) == 10.5


def test_it_teaches(store, tmp_path):  # noqa: F811
    require_it_teaches(make_method("rkd", make_lab(store, tmp_path)))


def test_relations_come_closer_to_those_of_the_teacher(store, tmp_path):  # noqa: F811
    method = make_method("rkd", make_lab(store, tmp_path), task_weight=0.0)
    method.train()
    history = method.lab.histories["rkd"]
    assert history[-1]["distance"] < history[0]["distance"]
    assert history[-1]["angle"] < history[0]["angle"]


def test_a_killed_run_of_a_method_without_helpers_resumes(store, tmp_path):  # noqa: F811
    require_exact_resume("rkd", store, tmp_path, "rkd", at=1)


@pytest.mark.parametrize("option", ["student_layer", "teacher_layer"])
def test_an_unknown_layer_is_told_where_the_recipe_names_it(store, tmp_path, option):  # noqa: F811
    method = make_method("rkd", make_lab(store, tmp_path), teacher="facts", **{option: "sqeeze"})
    with pytest.raises(UserError, match=rf"distill\.options\.{option}: unknown layer 'sqeeze'"):
        method.train()


def test_features_above_the_limit_are_recomputed_and_the_plan_says_so(store, tmp_path):  # noqa: F811
    method = make_method("rkd", make_lab(store, tmp_path, keep_gb=1e-6))
    assert method.workload()[-1].forward == ["multimodal"]
    require_it_teaches(method)
    assert make_method("rkd", make_lab(store, tmp_path)).workload()[-1].forward == []
