"""Modality-general decisive features: joint learning, ranking, KD from the pruned teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distill.lab import freeze
from distill.methods.mgdfr import saliency, without
from distill.networks.registry import Model
from mst_edge.core.errors import UserError
from tests.distill.methods.helpers import make_method, no_parameter_in_common, require_exact_resume, require_it_teaches
from tests.distill.test_training import make_lab, store  # noqa: F401


def test_the_ranking_against_the_formula_feature_by_feature():
    torch.manual_seed(1)
    head = nn.Linear(6, 3)
    h, z = torch.randn(40, 6), torch.randn(40, 3)
    torch.manual_seed(2)
    with torch.no_grad():
        found = saliency(lambda kept: head(kept[0]), (h,), z, repeats=4)
    torch.manual_seed(2)
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    wanted = np.zeros(6)
    for _ in range(4):
        order = torch.randperm(40).numpy()
        for d in range(6):
            shuffled = h.numpy().copy()
            shuffled[:, d] = shuffled[order, d]
            wanted[d] += np.mean((shuffled @ weight.T + bias - z.numpy()) ** 2)
    wanted = (wanted - wanted.min()) / (wanted.max() - wanted.min())
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)
    assert (float(found.min()), float(found.max())) == (0, 1)


def test_features_that_the_student_shares_outrank_noise_and_dead_ones_come_last():
    torch.manual_seed(0)
    h = torch.randn(200, 6, 3)  # maps: six channels, three positions
    head = torch.zeros(6, 2)
    head[0], head[1] = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])

    def after(kept):
        return kept[0].mean(dim=2) @ head + kept[1]

    bypass = torch.zeros(200, 2)
    found = saliency(after, (h, bypass), after((h, bypass)), repeats=3)
    assert found.argsort(descending=True)[:2].tolist() == [0, 1]
    assert found[2:].tolist() == pytest.approx([0] * 4, abs=1e-6)


def test_removed_features_have_no_say_and_the_others_are_untouched():
    h, bypass = torch.randn(5, 6, 2), torch.randn(5, 3)
    pruned, same_bypass = without((h, bypass), torch.tensor([1, 4]), h.mean(dim=0))
    assert torch.equal(pruned[:, [0, 2, 3, 5]], h[:, [0, 2, 3, 5]])
    assert torch.equal(pruned[:, [1, 4]], h.mean(dim=0)[[1, 4]].expand(5, 2, 2))
    assert same_bypass is bypass


def test_the_pruned_teacher_answers_otherwise_than_the_whole_one(store, tmp_path):  # noqa: F811
    """The removal is no idle gesture: three quarters of the features are constant, and logits show it."""
    method = make_method("mgdfr", make_lab(store, tmp_path), teacher_layer="hidden")
    lab = method.lab
    student, teacher = lab.lone_student(), freeze(method.lab.learning_teacher("multimodal"))
    answers = method._prune(student, teacher)
    batch = lab.store.gather(lab.store.splits["train"], teacher.reads, torch.device("cpu"))
    seen = []
    handle = teacher.module.hidden.register_forward_hook(lambda _m, _i, out: seen.append(out))
    whole = teacher(batch.inputs)
    handle.remove()
    removed = method.insights["removed"]
    assert len(removed) == 96
    assert method.insights["features"] == 128
    matters = np.array(method.insights["saliency"])
    assert matters[removed].max() <= np.delete(matters, removed).min()
    h = seen[0].clone()
    h[:, removed] = h.mean(dim=0)[removed]
    wanted = teacher.module.head(torch.relu(h))
    assert torch.allclose(answers["multimodal"](batch)[0], wanted, atol=1e-4)
    assert not torch.allclose(wanted, whole, atol=1e-2)


def test_nothing_removed_is_the_whole_teacher(store, tmp_path):  # noqa: F811
    method = make_method("mgdfr", make_lab(store, tmp_path), removed=0.0, repeats=1, teacher_layer="hidden")
    student, teacher = method.lab.lone_student(), freeze(method.lab.learning_teacher("multimodal"))
    batch = method.lab.store.gather(method.lab.store.splits["train"], teacher.reads, torch.device("cpu"))
    answers = method._prune(student, teacher)
    assert torch.allclose(answers["multimodal"](batch)[0], teacher(batch.inputs), atol=1e-5)


def test_it_teaches_in_two_stages_and_the_shared_teacher_stays(store, tmp_path):  # noqa: F811
    method = make_method("mgdfr", make_lab(store, tmp_path))
    frozen = method.lab.trained_teacher("multimodal").module
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    require_it_teaches(method)
    assert all(torch.equal(value, frozen.state_dict()[name]) for name, value in before.items())
    joint = method.lab.histories["mgdfr_joint"]
    assert len(joint) == 1
    assert {"apart", "task_student", "task_teacher"} <= joint[0].keys()


def test_joint_learning_pulls_the_logits_together(store, tmp_path):  # noqa: F811
    method = make_method("mgdfr", make_lab(store, tmp_path), joint_share=1.0)
    student, teacher = method.lab.new_student(), method.lab.learning_teacher("multimodal")
    method._learn_together(student, teacher)
    history = method.lab.histories["mgdfr_joint"]
    assert history[-1]["apart"] < history[0]["apart"]
    assert no_parameter_in_common(teacher.module, method.lab.trained_teacher("multimodal").module)


@pytest.mark.parametrize(("phase", "at"), [("mgdfr_joint", 0), ("mgdfr", 0)])
def test_a_killed_run_goes_on_in_either_stage(store, tmp_path, phase, at):  # noqa: F811
    require_exact_resume("mgdfr", store, tmp_path, phase, at, joint_share=0.5, repeats=2)


class _Branches(nn.Module):
    maskable = ("lin",)

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(12, 3)

    def forward(self, x):
        return self.lin(x) if x.sum() > 0 else -self.lin(x)


@pytest.mark.parametrize(
    ("layer", "says"),
    [("fuse", "teacher_layer: unknown layer 'fuse'"), ("", "teacher_layer: teacher facts cannot be split at layer")],
)
def test_what_cannot_be_ranked_is_told_before_anything_is_trained(store, tmp_path, monkeypatch, layer, says):  # noqa: F811
    method = make_method("mgdfr", make_lab(store, tmp_path), teacher="facts", teacher_layer=layer)
    model = Model("facts", "branches", _Branches(), ("facts",), False)
    monkeypatch.setattr(method.lab, "new_teacher", lambda name: model)
    with pytest.raises(UserError, match=says):
        method.check()
    assert not method.lab.histories
