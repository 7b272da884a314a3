"""TGeo-KD: the controller's weight, and the gradient that reaches it through one step of the student."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import distill.lab
from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, hold_back, split_dataset
from distill.lab import Epochs
from distill.methods.tgeo import Controller
from distill.networks.registry import Model, NetworkChoice
from distill.tasks import Classification
from distill.training.checkpoint import copy_state
from distill.training.features import Batch
from mst_edge.core.errors import UserError
from tests.conftest import write_arrays
from tests.distill.methods.helpers import make_method, require_exact_resume, require_it_teaches, softmax
from tests.distill.test_training import make_lab, store  # noqa: F401

rng = np.random.default_rng(11)
CLASSES, WIDTH = 3, 5


def _controller(means, scale=3.0):
    torch.manual_seed(0)
    controller = Controller(torch.tensor(means, dtype=torch.float32))
    with torch.no_grad():  # far from 1/2 for every sample
        for parameter in controller.parameters():
            parameter.mul_(scale)
    return controller


def _weight(parameters, means, z, t, y):
    """``(B,)`` the controller's weight in numpy, from its layers' weights and biases."""
    s, t, g, o = softmax(z), softmax(t), np.eye(CLASSES)[y], means[y]
    x = np.concatenate([s, t, g, o, (o - s) ** 2, (g - s) ** 2, (t - s) ** 2, (t - g) ** 2, (o - g) ** 2], axis=1)
    w1, b1, w2, b2, w3, b3 = parameters
    hidden = np.maximum(np.maximum(x @ w1.T + b1, 0) @ w2.T + b2, 0)
    return 1 / (1 + np.exp(-(hidden @ w3.T + b3)[:, 0]))


def _numpy(controller):
    return [parameter.detach().numpy().astype(np.float64) for parameter in controller.layers.parameters()]


MEANS = softmax(rng.normal(size=(CLASSES, CLASSES)))


def test_the_weight_is_the_published_perceptron_on_nine_parts():
    z, t, y = 2 * rng.normal(size=(8, CLASSES)), 2 * rng.normal(size=(8, CLASSES)), rng.integers(0, CLASSES, 8)
    controller = _controller(MEANS)
    assert [tuple(layer.weight.shape) for layer in controller.layers[::2]] == [(32, 9 * CLASSES), (16, 32), (1, 16)]
    logits = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    found = controller(logits, torch.tensor(t), torch.tensor(y))
    assert found.detach().numpy() == pytest.approx(_weight(_numpy(controller), MEANS, z, t, y), rel=1e-4)
    assert found.std() > 0.01
    found.sum().backward()
    assert logits.grad is None  # the student must not please the controller


class Linear(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float32))

    def forward(self, x):
        return x @ self.w.T


def _held_loss(parameters, w, x, t, y, held, options):
    """The student's loss on ``held`` after one step of gradient descent, all in float64 numpy."""
    tau, z = options.temperature, x @ w.T
    a = _weight(parameters, MEANS, z, t, y)[:, None]
    kd = tau * (softmax(z / tau) - softmax(t / tau))
    ce = softmax(z) - np.eye(CLASSES)[y]
    stepped = w - options.virtual_lr * (a * kd + (1 - a) * ce).T @ x / len(x)
    return -np.log(softmax(held[0] @ stepped.T)[np.arange(len(held[1])), held[1]]).mean()


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_the_gradient_that_reaches_the_controller_is_that_of_finite_differences(store, tmp_path, weight):  # noqa: F811
    method = make_method("tgeo", make_lab(store, tmp_path), virtual_lr=0.7)
    w, x, t = rng.normal(size=(CLASSES, WIDTH)), rng.normal(size=(8, WIDTH)), 3 * rng.normal(size=(8, CLASSES))
    y = rng.integers(0, CLASSES, 8)
    held = rng.normal(size=(6, WIDTH)), rng.integers(0, CLASSES, 6)
    controller, student = _controller(MEANS), Model("student", "linear", Linear(w), ("signal",), False)
    batch = Batch(torch.arange(8), {"signal": torch.tensor(x, dtype=torch.float32)}, torch.tensor(y), weight)
    other = Batch(torch.arange(6), {"signal": torch.tensor(held[0], dtype=torch.float32)}, torch.tensor(held[1]))
    z, told = student(batch.inputs), torch.tensor(t, dtype=torch.float32)
    sides = method._sides(z, told, batch.target)
    outer = method.outer(student, controller(z, told, batch.target), sides, batch, other)
    assert outer.item() == 0
    (outer * weight).backward()  # as a step does
    assert student.module.w.grad is None  # the student itself learns from the inner loss alone
    # A part of a batch has its share in the step that is tried out.
    options = dataclasses.replace(method.options, virtual_lr=0.7 * weight)
    parameters, checked = _numpy(controller), 0
    for place, parameter in enumerate(controller.layers.parameters()):
        gradient = parameter.grad.numpy()
        largest = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
        ends = []
        for step in (1e-4, -1e-4):
            moved = [values.copy() for values in parameters]
            moved[place][largest] += step
            ends.append(_held_loss(moved, w, x, t, y, held, options))
        wanted = (ends[0] - ends[1]) / 2e-4
        assert gradient[largest] == pytest.approx(wanted, rel=2e-3)
        checked += abs(wanted) > 1e-6
    assert checked == 6


def test_without_the_step_in_between_nothing_reaches_the_controller(store, tmp_path):  # noqa: F811
    """The published script: weights under no_grad, and a loss on held-back samples that knows only the student."""
    method = make_method("tgeo", make_lab(store, tmp_path))
    student, controller = method.lab.new_student(), _controller(MEANS)
    batch = method.lab.store.gather(store.splits["train"][:16], ("signal",), torch.device("cpu"))
    z, told = student(batch.inputs), torch.randn(16, CLASSES)
    with torch.no_grad():
        a = controller(z, told, batch.target)
    losses = method._weighed(a, method._sides(z, told, batch.target))
    (losses["loss"] + method.lab.task.loss(student(batch.inputs), batch.target)).backward()
    assert all(parameter.grad is None for parameter in controller.parameters())


@pytest.mark.parametrize("network", ["tcn", "transformer"])
def test_batch_norm_attention_and_dropout_can_be_tried_out_and_count_no_held_back_sample(store, tmp_path, network):  # noqa: F811
    lab = make_lab(store, tmp_path, student=NetworkChoice(network, {"width": 0.25}))
    method, student = make_method("tgeo", lab, every=1), lab.new_student()
    student.module.train()
    first, second = (lab.store.gather(store.splits["train"][k : k + 8], ("signal",), "cpu") for k in (0, 8))
    controller = _controller(MEANS)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        z = student(first.inputs)
    before, told = copy_state(student.module), torch.randn(8, CLASSES)
    a = controller(z, told, first.target)
    method.outer(student, a, method._sides(z, told, first.target), first, second).backward()
    assert any(parameter.grad.abs().max() > 0 for parameter in controller.parameters())
    after = copy_state(student.module)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_controller_learns_on_training_samples_that_the_student_never_learns_from(store, tmp_path, monkeypatch):  # noqa: F811
    phases, asked = {}, []
    plain = distill.lab.run_phase

    def run_phase(phase, data, session):
        phases[phase.name] = data.splits
        return plain(phase, data, session)

    monkeypatch.setattr(distill.lab, "run_phase", run_phase)
    method = make_method("tgeo", make_lab(store, tmp_path, epochs=Epochs(1, 1, 1)), every=2, held_share=0.2)
    drawn = type(method)._drawn
    monkeypatch.setattr(type(method), "_drawn", lambda *a: asked.append(drawn(*a)) or asked[-1])
    method.train()
    learned, held = set(phases["tgeo"]["train"]), {int(k) for batch in asked for k in batch.ids}
    train = set(store.splits["train"])
    assert set(phases["lone_multimodal"]["train"]) == train
    assert held
    assert learned | held <= train
    assert not learned & held
    assert len(learned) == pytest.approx(0.8 * len(train), abs=3)
    steps = 2 * method.lab.store.with_train(np.array(sorted(learned))).steps("train", 32)
    assert len(asked) == (steps + 1) // 2


def test_groups_are_held_back_whole(tmp_path):
    speakers = np.repeat(np.arange(24), 10)
    dataset = open_arrays(write_arrays(tmp_path / "d", groups=speakers))
    train = split_dataset(dataset, SplitRule())["train"]
    stay, held = hold_back(dataset, train, 0.2, seed=3)
    assert sorted([*stay, *held]) == sorted(train)
    assert not set(speakers[stay]) & set(speakers[held])


def test_it_teaches_and_says_how_much_the_teacher_counted(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    method = make_method("tgeo", lab, every=2)
    require_it_teaches(method)
    assert len(method.insights["kd_share"]) == 4
    assert all(0 < share < 1 for share in method.insights["kd_share"])
    assert len(set(method.insights["kd_share"])) == 4


def test_a_killed_run_ends_with_the_same_weights(store, tmp_path):  # noqa: F811
    require_exact_resume("tgeo", store, tmp_path, "tgeo", at=1, every=3)


def test_classes_weigh_as_in_the_tasks_loss(store, tmp_path):  # noqa: F811
    task = Classification(CLASSES, class_weights=torch.tensor([0.5, 1.0, 2.0]))
    method = make_method("tgeo", make_lab(store, tmp_path, task=task))
    z, y = torch.randn(9, CLASSES), torch.arange(9) % 3
    _, ce = method._sides(z, torch.randn(9, CLASSES), y)
    assert float(ce.mean()) == pytest.approx(float(task.loss(z, y)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"held_share": 1.0}, r"options\.held_share: expected between 0 and 1, received 1\.0; the default is 0\.1"),
        ({"every": 0}, r"options\.every: expected 1 or more, received 0; the default is 10"),
    ],
    ids=["share", "every"],
)
def test_options_that_leave_nothing_to_do_are_refused(store, tmp_path, options, says):  # noqa: F811
    with pytest.raises(UserError, match=says):
        make_method("tgeo", make_lab(store, tmp_path), **options)


def test_a_share_that_holds_nothing_back_is_refused_before_training(store, tmp_path):  # noqa: F811
    method = make_method("tgeo", make_lab(store, tmp_path), held_share=1e-4)
    with pytest.raises(UserError, match="training samples are held back, which is none"):
        method.check()
