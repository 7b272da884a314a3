"""FitNets: hints, then KD."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distill.lab import Epochs
from distill.methods.fitnets import hint_distance
from distill.training.checkpoint import load_tensors
from mst_edge.core.errors import UserError
from tests.distill.methods.helpers import make_method, require_exact_resume, require_it_teaches
from tests.distill.test_training import make_lab, store  # noqa: F401


def test_the_hint_loss_against_the_formula():
    torch.manual_seed(0)
    regressors = nn.ModuleList([nn.Linear(3, 5), nn.Linear(2, 4)])
    guided, hints = [torch.randn(6, 3), torch.randn(6, 2)], [torch.randn(6, 5), torch.randn(6, 4)]
    wanted = sum(
        np.mean((g.numpy() @ r.weight.detach().numpy().T + r.bias.detach().numpy() - h.numpy()) ** 2)
        for r, g, h in zip(regressors, guided, hints, strict=True)
    )
    assert hint_distance(regressors, guided, hints).item() == pytest.approx(wanted, rel=1e-5)


def test_hints_train_everything_below_the_guided_layer_and_nothing_above(store, tmp_path):  # noqa: F811
    method = make_method("fitnets", make_lab(store, tmp_path), student_layers=("blocks",), teacher_layers=("fused",))
    student = method.lab.new_student()
    before = {name: p.detach().clone() for name, p in student.module.named_parameters()}
    method._learn_hints(student)
    moved = {name for name, p in student.module.named_parameters() if not torch.equal(p, before[name])}
    below = {name for name in before if name.startswith(("stem.", "blocks."))}
    assert moved == below
    groups, _ = load_tensors(tmp_path / "fitnets_hints" / "final.safetensors")
    method.seed_helpers()
    initial = nn.Linear(*reversed(groups["regressors"]["0.weight"].shape))
    assert not torch.equal(groups["regressors"]["0.weight"], initial.weight)
    history = method.lab.histories["fitnets_hints"]
    assert all(row["val_hint"] > 0 for row in history)


def test_hints_lower_the_distance_on_validation_samples(store, tmp_path):  # noqa: F811
    method = make_method("fitnets", make_lab(store, tmp_path, epochs=Epochs(6, 1, 6)), hint_share=0.75)
    method._learn_hints(method.lab.new_student())
    history = method.lab.histories["fitnets_hints"]
    assert len(history) == 9
    assert history[-1]["val_hint"] < 0.8 * history[0]["val_hint"]


@pytest.mark.parametrize(
    ("share", "epochs", "hints"), [(0.3, (8, 1, 12), 6), (0.0, (2, 1, 2), 1), (1.0, (2, 1, 2), 3), (0.3, (0, 0, 1), 0)]
)
def test_hints_come_out_of_the_students_own_budget(store, tmp_path, share, epochs, hints):  # noqa: F811
    lab = make_lab(store, tmp_path, epochs=Epochs(*epochs))
    work = make_method("fitnets", lab, hint_share=share).workload()
    assert [phase.epochs for phase in work] == [hints, lab.epochs.student - hints]


def test_it_teaches(store, tmp_path):  # noqa: F811
    method = make_method("fitnets", make_lab(store, tmp_path))
    require_it_teaches(method)
    assert [len(method.lab.histories[name]) for name in ("fitnets_hints", "fitnets")] == [1, 3]


@pytest.mark.parametrize(("phase", "at"), [("fitnets_hints", 0), ("fitnets", 0)])
def test_a_killed_run_goes_on_in_either_stage(store, tmp_path, phase, at):  # noqa: F811
    require_exact_resume("fitnets", store, tmp_path, phase, at, hint_share=0.5)


def test_layers_that_make_no_pairs_are_told(store, tmp_path):  # noqa: F811
    method = make_method(
        "fitnets", make_lab(store, tmp_path), student_layers=("blocks",), teacher_layers=("fused", "hidden")
    )
    with pytest.raises(UserError, match=r"teacher_layers: 1 layers of the student cannot be paired with 2 of the"):
        method.train()
