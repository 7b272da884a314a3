"""What the tests of several methods use."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from distill.methods.base import METHODS
from distill.training.checkpoint import copy_state
from tests.distill.test_training import Kill, KillAt, make_lab


def make_method(name, lab, **options):
    cls = METHODS.get(name)
    return cls(lab, cls.Options(**options))


def softmax(z, axis=1):
    """Independent of torch, in float64."""
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def cross_entropy(z, target):
    return -np.log(softmax(z)[np.arange(len(z)), target]).mean()


def same(one, other) -> bool:
    states = copy_state(one), copy_state(other)
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def no_parameter_in_common(one, other) -> bool:
    """Whether every learned tensor of ``one`` differs from its counterpart: what learned, learned everywhere."""
    return not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def require_it_teaches(method):
    """Trains end to end: the student is of the same make as any other, has learned, and not what lone learns."""
    lab = method.lab
    student = method.train()
    lone = lab.lone_student()
    assert copy_state(student.module).keys() == copy_state(lone.module).keys()
    assert not same(student.module, lone.module)
    assert not student.module.training
    assert (
        sum(len(lab.histories[work.phase]) for work in method.workload() if "student" in work.trained)
        == lab.epochs.student
    )
    assert lab.validate(student)["val_error"] < lab.validate(lab.new_student())["val_error"]
    return student


def require_exact_resume(name, store, folder, phase, at=0, **options):
    """A run that is killed after epoch ``at`` of ``phase`` ends with the weights of one that was not."""
    whole = make_method(name, make_lab(store, folder / "whole"), **options).train()
    lab = make_lab(store, folder / "killed")
    killed = dataclasses.replace(lab, session=dataclasses.replace(lab.session, reporter=KillAt(phase, at)))
    with pytest.raises(Kill):
        make_method(name, killed, **options).train()
    resumed = make_method(name, make_lab(store, folder / "killed"), **options).train()
    assert same(whole.module, resumed.module)
