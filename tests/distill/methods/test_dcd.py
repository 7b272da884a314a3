"""Dynamic contrastive distillation: losses against numpy, a teacher asked about mixed pairs, what it teaches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from distill.lab import Epochs
from distill.methods.dcd import DcdOptions, contrast
from distill.mixing import Mixer
from distill.networks.registry import NetworkChoice
from distill.retrieval import recall_at
from mst_edge.core.errors import UserError
from tests.distill.methods.helpers import make_method, require_exact_resume, require_it_teaches, softmax
from tests.distill.methods.test_adviser_retrieval import make_lab as adviser_lab
from tests.distill.test_training import store  # noqa: F401

FUSION = NetworkChoice("fusion", {"width": 0.25, "hidden": 16})


class Whole(nn.Module):
    """A teacher of several modalities that has no parts."""

    multimodal = True

    def __init__(self, input_shapes, num_outputs):
        super().__init__()
        self.head = nn.Linear(sum(shape[0] for shape in input_shapes.values()), num_outputs)

    def forward(self, inputs):
        return self.head(torch.cat([inputs[name] for name in sorted(inputs)], dim=1) ** 2)


def make_lab(folder, modalities=2, teacher=FUSION):
    lab = adviser_lab(folder, modalities)
    reads, _ = lab.teachers["multimodal"]
    return dataclasses.replace(lab, teachers={**lab.teachers, "multimodal": (reads, teacher)})


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("mined", ["other_classes", "all"])
def test_the_losses_are_as_written(gamma, mined):
    rng = np.random.default_rng(0)
    similar, match = rng.uniform(-1, 1, (9, 9)), rng.normal(0, 3, (9, 9))
    target = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])  # of class 0, few samples are of another one
    options = DcdOptions(negatives=4, mined=mined, teacher_temperature=2.0)
    nce, kl = [], []
    for i in range(9):
        others = [j for j in range(9) if (target[j] != target[i] if mined == "other_classes" else j != i)]
        among = [i, *sorted(others, key=lambda j: -match[i, j])[:4]]
        q, p = softmax(similar[i, among] / 0.07, 0), softmax(match[i, among] / 2, 0)
        nce.append(-np.log(q[0]))
        kl.append((p * np.log(p / q)).sum())
    weight = np.clip((np.array(kl) / np.mean(kl)) ** gamma, 0.2, 5)
    expected = (weight * nce).mean(), (weight * kl).mean()
    given = torch.from_numpy(similar).requires_grad_()
    said = contrast(given, torch.from_numpy(match), torch.from_numpy(target), gamma, options)
    assert [value.item() for value in said] == pytest.approx(expected, rel=1e-6)
    sum(said).backward()
    assert bool(given.grad.isfinite().all())


def test_a_batch_of_one_class_has_no_negatives():
    said = contrast(torch.eye(4).requires_grad_(), torch.eye(4), torch.zeros(4).long(), 1.0, DcdOptions())
    assert [value.item() for value in said] == [0.0, 0.0]


@pytest.mark.parametrize("teacher", [FUSION, NetworkChoice(f"{__name__}:Whole")])
def test_the_teacher_is_asked_about_every_mixed_pair(tmp_path, teacher):
    """Of three modalities one is exchanged; a teacher in parts says what the whole one would."""
    lab = make_lab(tmp_path, 3, teacher)
    model = lab.new_teacher("multimodal")
    model.module.eval()
    mixer = Mixer(lab, model)
    batch = lab.store.gather(lab.store.splits["train"][:70], mixer.reads or model.reads, torch.device("cpu"))
    everything = lab.store.gather(lab.store.splits["train"][:70], model.reads, torch.device("cpu"))
    said = mixer.match_scores(batch, "b")
    assert said.shape == (70, 70)
    for i, j in [(0, 0), (3, 60), (69, 1)]:
        mixed = {name: x[[j if name == "b" else i]] for name, x in everything.inputs.items()}
        expected = model(mixed).log_softmax(dim=1)[0, batch.target[i]]
        assert float(said[i, j]) == pytest.approx(expected.item(), abs=1e-5)
    assert bool(mixer.reads) == (teacher is not FUSION)  # parts are kept


def test_two_branches_learn_to_find_each_other(tmp_path):
    lab = dataclasses.replace(make_lab(tmp_path), epochs=Epochs(3, 1, 5))
    # With the teacher's own logits in the same cache.
    lab.frozen_logits(lab.trained_teacher("multimodal"))(lab.store.gather(np.arange(0), ["a"], torch.device("cpu")))
    method = make_method("dcd", lab)
    method.check()
    student = require_it_teaches(method)
    assert student.reads == ("a",)
    scores, recall = method.insights["retrieval_map"], method.insights["retrieval_recall"]
    untrained = method.retrieved(lab.new_student(), lab.new_teacher("b"), "test")
    assert scores["mean"] > untrained["mean"] + 0.1
    assert list(recall) == ["a -> b", "b -> a"]
    assert recall["a -> b"]["1"] <= recall["a -> b"]["5"] <= recall["a -> b"]["10"]
    assert f"R@1: a -> b {recall['a -> b']['1']:.1%}" in method.insights["notes"][0]["text"]


def test_a_killed_run_ends_with_the_same_weights(store, tmp_path):  # noqa: F811
    require_exact_resume("dcd", store, tmp_path, "dcd")


def test_recall_counts_queries_that_find_their_class_among_the_first():
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    queries, held, asked = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 2, 0]), None
    asked = torch.tensor([1, 2, 9])  # the last has nothing to find
    assert [recall_at(queries, gallery, asked, held, k) for k in (1, 2)] == [0.5, 1.0]


def test_what_cannot_be_done_is_said(tmp_path):
    lab = make_lab(tmp_path)
    with pytest.raises(UserError, match=r"distill\.options\.teacher: the b teacher cannot match a with b: it reads b"):
        make_method("dcd", lab, teacher="b")
    for name in ("negatives", "temperature", "teacher_temperature"):
        with pytest.raises(UserError, match=rf"distill\.options\.{name}: expected more than 0, received 0"):
            make_method("dcd", lab, **{name: 0})
    alone = dataclasses.replace(lab, teachers={"unimodal": (("a",), NetworkChoice("mlp"))})
    with pytest.raises(UserError, match="the data has one modality: there is nothing to search"):
        make_method("dcd", alone)
