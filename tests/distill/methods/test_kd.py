"""Plain KD, and what every method shares: the choice of the teacher and the account of its work."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from distill.lab import Epochs, FineTuning
from distill.methods.base import METHODS
from distill.methods.from_teachers import FromTeachers
from distill.methods.single_teacher import SingleTeacher
from distill.training.features import Batch
from mst_edge.core.errors import UserError
from mst_edge.stages.distill import method_options
from tests.distill.methods.helpers import cross_entropy, make_method, require_it_teaches, softmax
from tests.distill.test_training import make_lab, store  # noqa: F401

FROM_TEACHERS = [name for name in METHODS.names() if issubclass(METHODS.get(name), FromTeachers)]
# These want networks with tokens or stages, which those of the lab here lack; they have files of their own.
OTHER_NETWORKS = ("transkd", "vidlankd")
FROM_ONE_TEACHER = [name for name in FROM_TEACHERS if issubclass(METHODS.get(name), SingleTeacher)]


def test_the_loss_is_hintons(store, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    z, t, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    method = make_method("kd", make_lab(store, tmp_path), temperature=2.0, alpha=0.3)
    losses = method.loss(
        torch.tensor(z), {"multimodal": torch.tensor(t)}, Batch(torch.arange(6), {}, torch.tensor(y)), 0
    )
    p, q = softmax(t / 2), softmax(z / 2)
    kd = 4 * (p * np.log(p / q)).sum(axis=1).mean()
    assert float(losses["loss"]) == pytest.approx(0.7 * cross_entropy(z, y) + 0.3 * kd, rel=1e-5)


@pytest.mark.parametrize("name", FROM_TEACHERS)
def test_every_method_has_a_frozen_documented_set_of_options(name):
    cls = METHODS.get(name).Options
    assert cls.__dataclass_params__.frozen
    assert all(option in cls.__doc__.partition("Attributes:")[2] for option in cls.__dataclass_fields__)
    assert name not in FROM_ONE_TEACHER or method_options(name, "", {}).teacher == ""


@pytest.mark.parametrize("name", FROM_ONE_TEACHER)
def test_an_unknown_teacher_is_told_with_the_known_ones(store, tmp_path, name):  # noqa: F811
    with pytest.raises(UserError, match=r"distill\.options\.teacher: unknown teacher 'fact'; .*facts, multimodal"):
        make_method(name, make_lab(store, tmp_path), teacher="fact")


def test_a_recipes_lists_become_options():
    assert method_options("mlld", "", {"temperatures": [1, 4]}).temperatures == [1, 4]
    assert method_options("fitnets", "", {"student_layers": ["blocks"]}).student_layers == ["blocks"]


@pytest.mark.parametrize("name", [name for name in FROM_ONE_TEACHER if name not in OTHER_NETWORKS])
def test_the_plan_counts_every_epoch_of_the_student_once_and_the_chosen_teacher(store, tmp_path, name):  # noqa: F811
    lab = make_lab(store, tmp_path)
    work = make_method(name, lab).workload()
    assert sum(phase.epochs for phase in work if "student" in phase.trained) == lab.epochs.student
    assert not any(phase.phase.startswith("lone_") for phase in work)
    if name != "dcd":  # asks its teacher about pairs of modalities
        assert make_method(name, lab, teacher="facts").workload()[0].phase == "lone_facts"


@pytest.mark.parametrize("name", FROM_TEACHERS)
def test_what_learns_by_logits_alone_goes_on_in_int8_training(store, tmp_path, name):  # noqa: F811
    """A new method object, as the stage makes one: what ``train`` left on disk is all that it has."""
    lab = make_lab(store, tmp_path, epochs=Epochs(1, 1, 1))
    if not make_method(name, lab).fine_tunes:
        with pytest.raises(UserError, match=f"the student's logits alone, which {name} cannot do"):
            make_method(name, lab).check_fine_tuning()
        return
    student = lab.new_student()
    make_method(name, lab).fine_tune(student, FineTuning("qad", 2, 1e-2))
    losses = [epoch["loss"] for epoch in lab.histories["qad"]]
    assert losses[1] < losses[0]


def test_it_teaches(store, tmp_path):  # noqa: F811
    require_it_teaches(make_method("kd", make_lab(store, tmp_path)))


def test_a_cross_modal_teacher_is_trained_on_its_own_modality_and_listened_to(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    require_it_teaches(make_method("kd", lab, teacher="facts"))
    assert [name for name in lab.histories if name.startswith("lone_")] == ["lone_facts", "lone_student"]


@pytest.mark.parametrize("name", [name for name in FROM_TEACHERS if name not in OTHER_NETWORKS])
def test_bf16_autocast_changes_the_losses_little(store, tmp_path, name):  # noqa: F811
    losses = []
    for bf16 in (False, True):
        lab = make_lab(store, tmp_path / str(bf16), epochs=Epochs(1, 1, 1))
        lab = dataclasses.replace(lab, session=dataclasses.replace(lab.session, bf16=bf16))
        make_method(name, lab).train()
        losses.append(lab.histories[name][0]["loss"])
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
