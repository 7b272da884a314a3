"""The training loop: seeded, resumable to the bit, honest about what breaks."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from distill.lab import Epochs, Lab, OptimizerChoice
from distill.methods.base import METHODS
from distill.networks.registry import NetworkChoice
from distill.tasks import Classification
from distill.training.checkpoint import copy_state, load_tensors, optimizer_state, restore_optimizer, save_tensors
from distill.training.features import FeatureStore
from distill.training.phase import Phase, Session, Silent, run_phase
from mst_edge.core.errors import UserError
from tests.conftest import write_arrays


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    dataset = open_arrays(write_arrays(tmp_path_factory.mktemp("d") / "d"))
    frontends = {name: make_frontend(spec, frontend_options(spec.kind)()) for name, spec in dataset.modalities.items()}
    return FeatureStore(dataset, split_dataset(dataset, SplitRule()), frontends)


def make_lab(store, folder, *, seed=0, epochs=Epochs(2, 1, 2), **changes) -> Lab:  # noqa: B008
    session = Session(folder, torch.device("cpu"), seed, batch_size=32)
    lab = Lab(
        store=store,
        task=Classification(3),
        session=session,
        student_modality="signal",
        student=NetworkChoice("tcn", {"width": 0.5, "dropout": 0.1}),
        teachers={
            "multimodal": (("facts", "signal"), NetworkChoice("fusion", {"width": 0.5})),
            "facts": (("facts",), NetworkChoice("mlp")),
        },
        optimizer=OptimizerChoice(lr=3e-3),
        epochs=epochs,
    )
    return dataclasses.replace(lab, **changes)


class Kill(Exception):
    pass


class KillAt(Silent):
    """Raises when epoch ``at`` of ``phase`` ends, like a power cut just after a checkpoint."""

    def __init__(self, phase: str, at: int) -> None:
        self.phase, self.at = phase, at

    def epoch(self, phase, epoch, scalars):
        if phase == self.phase and epoch == self.at:
            raise Kill


def _same(one: nn.Module, other: nn.Module) -> bool:
    states = copy_state(one), copy_state(other)
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(("phase", "at"), [("mst_collaborate", 0), ("mst_masks", 0), ("mst", 0), ("mst", 1)])
def test_a_killed_run_ends_with_the_same_weights_as_one_that_was_not(store, tmp_path, phase, at):
    method = METHODS.get("mst")
    whole = method(make_lab(store, tmp_path / "whole"), method.Options()).train()
    lab = make_lab(store, tmp_path / "killed")
    with pytest.raises(Kill):
        method(
            dataclasses.replace(lab, session=dataclasses.replace(lab.session, reporter=KillAt(phase, at))),
            method.Options(),
        ).train()
    resumed = method(make_lab(store, tmp_path / "killed"), method.Options()).train()
    assert _same(whole.module, resumed.module)


def test_a_run_killed_in_the_middle_of_an_epoch_continues_from_its_last_checkpoint(store, tmp_path, monkeypatch):
    whole = make_lab(store, tmp_path / "whole").lone_student()
    lab = make_lab(store, tmp_path / "killed")
    plain, calls = lab.task.loss, []

    def loss(logits, target):
        calls.append(1)
        if len(calls) == 8:  # the second epoch's third batch
            raise Kill
        return plain(logits, target)

    monkeypatch.setattr(lab.task, "loss", loss)
    with pytest.raises(Kill):
        lab.lone_student()
    assert _same(make_lab(store, tmp_path / "killed").lone_student().module, whole.module)


def test_a_finished_phase_is_loaded_and_not_trained_again(store, tmp_path):
    first = make_lab(store, tmp_path).lone_student()
    again = make_lab(store, tmp_path)
    assert _same(again.lone_student().module, first.module)
    assert len(again.histories["lone_student"]) == 4


def test_seeds_of_initialisation_and_split_are_separate(store, tmp_path):
    one, other = make_lab(store, tmp_path / "a", seed=0), make_lab(store, tmp_path / "b", seed=1)
    assert not _same(one.new_student().module, other.new_student().module)
    assert one.store.splits is other.store.splits


def test_every_method_starts_from_the_same_student(store, tmp_path):
    lab = make_lab(store, tmp_path)
    assert _same(lab.new_student().module, lab.new_student().module)


def test_the_best_epoch_is_kept_and_ties_are_broken_by_the_next_metric(store, tmp_path):
    lab = make_lab(store, tmp_path)
    student = lab.new_student()
    scores = iter([(0.5, 1.0), (0.2, 0.9), (0.2, 0.8), (0.3, 0.1)])
    kept = []

    def validate():
        error, loss = next(scores)
        kept.append(copy_state(student.module))
        return {"val_error": error, "val_loss": loss}

    phase = Phase(
        "best", 4, {"student": student.module}, [lab.optimizer.build([student.module])],
        lambda batch, _e: {"loss": lab.task.loss(student(batch.inputs), batch.target)},
        validate, {"student": ("val_error", "val_loss")}, ("signal",),
    )  # fmt: skip
    run_phase(phase, store, lab.session)
    final = copy_state(student.module)
    assert all(torch.equal(final[key], kept[2][key]) for key in final)


def test_a_loss_that_is_no_number_stops_with_a_fix(store, tmp_path):
    lab = make_lab(store, tmp_path, optimizer=OptimizerChoice(name="sgd", lr=1e30))
    with pytest.raises(UserError, match=r"distill\.optimizer\.lr: the loss is no longer finite in phase lone_student"):
        lab.lone_student()


def test_bf16_autocast_trains(store, tmp_path):
    lab = make_lab(store, tmp_path)
    lab = dataclasses.replace(lab, session=dataclasses.replace(lab.session, bf16=True))
    lab.lone_student()
    assert lab.histories["lone_student"][-1]["loss"] < lab.histories["lone_student"][0]["loss"]


def test_batches_never_hold_one_sample_alone(store):
    sizes = [len(b.ids) for b in store.shuffled("train", 13, [0], ("signal",), torch.device("cpu"))]
    assert sum(sizes) == len(store.splits["train"]) == 144
    assert min(sizes) > 1
    assert 144 % 13 == 1


def test_every_sample_is_visited_once_per_epoch_in_a_seeded_order(store):
    def order(seed):
        return np.concatenate(
            [b.ids.numpy() for b in store.shuffled("train", 32, seed, ("facts",), torch.device("cpu"))]
        )

    assert sorted(order([1])) == store.splits["train"].tolist()
    assert np.array_equal(order([1]), order([1]))
    assert not np.array_equal(order([1]), order([2]))


def test_features_are_standardised_on_training_samples_alone(store):
    train = np.asarray(store._arrays["facts"])[store.splits["train"]]
    assert np.abs(train.mean(axis=0)).max() < 1e-5
    everything = np.asarray(store._arrays["facts"])
    assert np.abs(everything.mean(axis=0)).max() > 1e-3


def test_features_are_memory_mapped_and_reused(store):
    again = FeatureStore(store.dataset, store.splits, store.frontends)
    assert isinstance(again._arrays["signal"], np.memmap)
    assert again._arrays["signal"].filename == store._arrays["signal"].filename


def test_tensors_and_facts_survive_the_disk(tmp_path):
    state = {"a": {"w": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3)}}
    save_tensors(tmp_path / "x.safetensors", state, {"epoch": 4})
    groups, facts = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(groups["a"]["w"], state["a"]["w"])
    assert facts == {"epoch": 4}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("shape", [(3,), (3, 5, 6)], ids=["linear", "channels_last"])
def test_optimizers_continue_exactly(name, shape, tmp_path):
    """Convolutions train in channels-last layout; a file holds their optimiser's state in another."""

    def make():
        torch.manual_seed(0)
        net = nn.Linear(3, 2) if len(shape) == 1 else nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)
        return net, OptimizerChoice(name, lr=0.1).build([net]).optimizer

    def step(net, optimizer):
        optimizer.zero_grad()
        inputs = torch.arange(4.0 * math.prod(shape)).reshape(4, *shape).sin()
        net(inputs).square().sum().backward()
        optimizer.step()

    net, optimizer = make()
    step(net, optimizer)
    save_tensors(tmp_path / "x", {"optimizer": optimizer_state(optimizer)}, {})
    weights = copy_state(net)
    step(net, optimizer)
    other, fresh = make()
    other.load_state_dict(weights)
    restore_optimizer(fresh, load_tensors(tmp_path / "x")[0]["optimizer"])
    step(other, fresh)
    assert _same(net, other)


def test_a_student_of_several_phases_anneals_once():
    """Cosine from 1 to 0 over 8 + 12 epochs: the second phase goes on where the first one ended."""
    epochs = Epochs(collaborate=8, masks=1, distill=12)
    net, choice, share = nn.Linear(1, 1), OptimizerChoice(schedule="cosine"), epochs.share_of_collaboration
    first = choice.build([net], span=(0.0, share))
    second = choice.build([net], span=(share, 1.0))
    factors = [first.factor(e / 8) for e in range(8)] + [second.factor(e / 12) for e in range(12)]
    assert factors == pytest.approx([0.5 * (1 + math.cos(math.pi * e / 20)) for e in range(20)])


@pytest.mark.parametrize("counts", [True, False])
def test_what_it_came_with_is_kept_where_no_epoch_is_better(store, tmp_path, counts):
    lab = make_lab(store, tmp_path)
    student = lab.new_student()
    start = copy_state(student.module)
    errors = iter([0.4, 0.6, 0.5] if counts else [0.6, 0.5])
    phase = Phase(
        "worse", 2, {"student": student.module}, [lab.optimizer.build([student.module])],
        lambda batch, _e: {"loss": lab.task.loss(student(batch.inputs), batch.target)},
        lambda: {"val_error": next(errors)}, {"student": ("val_error",)}, ("signal",), start_counts=counts,
    )  # fmt: skip
    run_phase(phase, store, lab.session)
    assert next(errors, None) is None
    end = copy_state(student.module)
    assert all(torch.equal(start[key], end[key]) for key in start) == counts
