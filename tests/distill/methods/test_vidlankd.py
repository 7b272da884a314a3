"""VidLanKD's token objectives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from distill.lab import Epochs, Lab, OptimizerChoice
from distill.methods.vidlankd import Head, neuron_selectivity, token_contrast, token_layer
from distill.networks.registry import NetworkChoice, build_model
from distill.taps import frozen_outputs
from distill.tasks import task_for
from distill.tokens import TokenShape
from distill.training.checkpoint import load_tensors
from distill.training.features import FeatureStore
from distill.training.phase import Session
from mst_edge.core.errors import UserError
from tests.conftest import write_arrays
from tests.distill.methods.helpers import make_method, require_it_teaches, same
from tests.distill.test_training import Kill, KillAt
from tests.huggingface_models import DISTILBERT, write_model
from tests.texts import make_texts, write_text_arrays

SMALL = NetworkChoice("text_transformer", {"width": 0.25, "depth": 1})
LARGER = NetworkChoice("text_transformer", {"width": 0.5, "depth": 1})
FUSION = NetworkChoice("fusion", {"encoders": {"signal": {"network": "transformer"}, "text": {"network": "text_bag"}}})
SIGNAL = NetworkChoice("transformer")


def make_store(folder) -> FeatureStore:
    dataset = open_arrays(folder)
    said = {"text": {"vocabulary": 400, "max_tokens": 12}}
    fronts = {
        name: make_frontend(spec, frontend_options(spec.kind)(**said.get(name, {})))
        for name, spec in dataset.modalities.items()
    }
    return FeatureStore(dataset, split_dataset(dataset, SplitRule()), fronts)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Texts, and beside them a vector and a sequence that say the same."""
    folder = write_text_arrays(tmp_path_factory.mktemp("d") / "d", 150)
    write_arrays(folder, samples=150)
    np.save(folder / "target.npy", np.array(make_texts(150)[1]))
    return make_store(folder)


def make_lab(store, folder, **changes) -> Lab:
    lab = Lab(
        store=store,
        task=task_for(store.dataset, store.splits["train"]),
        session=Session(folder, torch.device("cpu"), 0, batch_size=16),
        student_modality="text",
        student=SMALL,
        teachers={"unimodal": (("text",), LARGER)},
        optimizer=OptimizerChoice(lr=1e-2),
        epochs=Epochs(1, 1, 2),
    )
    return dataclasses.replace(lab, **changes)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


RNG = np.random.default_rng(5)
S, T = unit(RNG, 3, 6, 4), unit(RNG, 3, 6, 4)
REAL = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=bool)  # the last text is empty


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


def test_neuron_selectivity_is_the_discrepancy_of_neurons_as_published_but_for_a_factor():
    """Huang and Wang's sums over all pairs of neurons, each a pattern over the sentence's tokens."""

    def mean_kernel(a, b):
        width = a.shape[1]
        return sum((a[:, i] @ b[:, j]) ** 2 for i in range(width) for j in range(width)) / width**2

    total = 0.0
    for number in range(2):
        s, t = S[number][REAL[number]], T[number][REAL[number]]
        discrepancy = mean_kernel(s, s) - 2 * mean_kernel(s, t) + mean_kernel(t, t)
        total += discrepancy * s.shape[1] ** 2 / len(s) ** 2
    assert float(neuron_selectivity(*tensors(S, T, REAL))) == pytest.approx(total / 3, rel=1e-9)


def test_neuron_selectivity_asks_for_the_same_cosines_between_tokens_and_not_for_the_same_vectors():
    turned = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    assert float(neuron_selectivity(*tensors(S, S @ turned, REAL))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_contrast_token_by_token(temperature):
    losses = []
    for i in range(3):
        for position in np.flatnonzero(REAL[i]):
            others = np.flatnonzero(REAL[:, position])
            for own, theirs in ((S, T), (T, S)):
                scores = np.array([own[i, position] @ theirs[j, position] for j in others]) / temperature
                losses.append(np.log(np.exp(scores).sum()) - scores[list(others).index(i)])
    found = float(token_contrast(*tensors(S, T, REAL), temperature))
    assert found == pytest.approx(np.mean(losses), rel=1e-9)


@pytest.mark.parametrize("loss", [neuron_selectivity, lambda *parts: token_contrast(*parts, 0.5)])
def test_padding_has_no_say(loss):
    """The published code averages over all positions; here whatever stands in padding changes nothing."""
    s, t, real = tensors(S, T, REAL)
    other = torch.where(real[:, :, None], s, torch.from_numpy(unit(RNG, 3, 6, 4)))
    assert float(loss(other, t, real)) == pytest.approx(float(loss(s, t, real)), rel=1e-12)
    s.requires_grad_(True)
    loss(s, t, real).backward()
    assert not s.grad[~real].any()
    assert s.grad[real].any(dim=1).sum() >= 4  # the only one at its position has nothing to be told from
    assert float(loss(s.detach(), t, torch.zeros_like(real))) == 0


def test_heads_are_as_published():
    torch.manual_seed(0)
    head, x = Head(4, 3).double(), torch.randn(5, 4).double()
    first, _, norm, last = head
    z = torch.nn.functional.gelu(x @ first.weight.T + first.bias)
    z = (z - z.mean(dim=1, keepdim=True)) / (z.var(dim=1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    z = z @ last.weight.T + last.bias
    assert torch.allclose(head(x), z / z.norm(dim=1, keepdim=True), atol=1e-6)


def _losses(method, ids):
    lab = method.lab
    student, teacher = lab.new_student(), lab.new_teacher(method.teacher)
    teacher.module.eval()
    taps = method.taps(student, teacher)
    torch.manual_seed(0)
    comparison = method.comparison(*taps)
    batch = lab.store.gather(ids, sorted({*student.reads, *teacher.reads}), torch.device("cpu"))
    wanted = [output.float() for output in frozen_outputs(lab, taps[1])(batch)]
    return student, teacher, comparison, comparison(taps[0](batch.inputs)[1], wanted, batch)


def test_gradients_reach_student_and_heads_and_stop_at_the_teacher(store, tmp_path):
    method = make_method("vidlankd", make_lab(store, tmp_path))
    student, teacher, comparison, losses = _losses(method, store.splits["train"][:8])
    assert losses.keys() == {"nst", "contrast"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in comparison.parameters())
    assert all(p.grad is not None for p in student.module.blocks.parameters())
    assert all(p.grad is None for p in teacher.module.parameters())


def test_it_teaches_with_either_term_or_both(store, tmp_path):
    method = make_method("vidlankd", make_lab(store, tmp_path / "both", epochs=Epochs(2, 1, 4)))
    require_it_teaches(method)
    history = method.lab.histories["vidlankd"]
    assert all(history[-1][name] < history[0][name] for name in ("nst", "contrast"))
    groups, _ = load_tensors(tmp_path / "both" / "vidlankd" / "final.safetensors")
    assert {name.split(".")[1] for name in groups["comparison"]} == {"nst", "contrast"}
    for left_out, kept in (("nst", "contrast"), ("contrast", "nst")):
        method = make_method("vidlankd", make_lab(store, tmp_path / kept), **{f"{left_out}_weight": 0})
        assert _losses(method, store.splits["train"][:8])[-1].keys() == {kept}


def test_a_killed_run_goes_on_with_its_heads(store, tmp_path):
    whole = make_method("vidlankd", make_lab(store, tmp_path / "whole")).train()
    lab = make_lab(store, tmp_path / "killed")
    killed = dataclasses.replace(lab, session=dataclasses.replace(lab.session, reporter=KillAt("vidlankd", 0)))
    with pytest.raises(Kill):
        make_method("vidlankd", killed).train()
    assert same(whole.module, make_method("vidlankd", make_lab(store, tmp_path / "killed")).train().module)


TEXT = TokenShape(12, 400)


@pytest.mark.parametrize(
    ("network", "shapes", "layer"),
    [
        ("text_bag", {"text": TEXT}, "tokens"),
        ("transformer", {"signal": (3, 40)}, "tokens"),
        ("video_prompts", {"text": TEXT, "signal": (3, 40)}, "reader.tokens"),
        ("fusion", {"text": TEXT, "facts": (12,)}, "encoders.text.tokens"),
    ],
)
def test_tokens_are_found_in_networks_of_one_and_of_several_modalities(network, shapes, layer):
    model = build_model("m", NetworkChoice(network), shapes, 3, where="m")
    assert token_layer(model, next(iter(shapes)), "m") == layer


def test_a_teacher_of_video_and_text_teaches_by_its_text_tokens(store, tmp_path):
    teachers = {"multimodal": (("signal", "text"), NetworkChoice("video_prompts", {"width": 0.5}))}
    method = make_method("vidlankd", make_lab(store, tmp_path, teachers=teachers))
    method.check()
    *_, losses = _losses(method, store.splits["train"][:8])
    assert all(float(value.detach()) > 0 for value in losses.values())


def test_language_models_teach_and_learn_by_their_tokens(store, tmp_path):
    model = write_model(tmp_path / "m", {**DISTILBERT, "vocab_size": 400, "pad_token_id": 0})
    fresh = NetworkChoice(f"hf:{model}", {"weights": "none"})
    lab = make_lab(store, tmp_path, student=fresh, teachers={"unimodal": (("text",), LARGER)})
    method = make_method("vidlankd", lab)
    method.check()
    assert _losses(method, store.splits["train"][:8])[-1].keys() == {"nst", "contrast"}


def test_sequences_of_one_length_are_compared_too(store, tmp_path):
    lab = make_lab(
        store,
        tmp_path,
        student_modality="signal",
        student=NetworkChoice("transformer", {"width": 0.25}),
        teachers={"multimodal": (("signal", "text"), FUSION)},
    )
    method = make_method("vidlankd", lab)
    method.check()
    *_, losses = _losses(method, store.splits["train"][:8])
    assert all(float(value.detach()) > 0 for value in losses.values())


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        (
            {"teachers": {"multimodal": (("text", "signal"), FUSION), "signal": (("signal",), SIGNAL)}},
            {"teacher": "signal"},
            "options.teacher: the signal teacher reads signal and not the student's text: its tokens are others",
        ),
        (
            {"teachers": {"multimodal": (("text", "signal"), NetworkChoice("video_prompts", {"utterance": "none"}))}},
            {},
            "teacher_layer: video_prompts of multimodal names no layer of tokens; take a transformer, text_bag or hf:",
        ),
        ({}, {"student_layer": "squeeze"}, r"layer squeeze of student gives \(16,\) per sample, not \(chan"),
        ({}, {"teacher_layer": "tokenz"}, "teacher_layer: unknown layer 'tokenz'; did you mean 'tokens'"),
        ({}, {"temperature": 0.0}, "options.temperature: expected more than 0, received 0.0"),
        ({}, {"nst_weight": 0, "contrast_weight": 0}, "nst_weight and contrast_weight are both 0; lone does the same"),
        (
            {
                "student_modality": "signal",
                "student": SIGNAL,
                "teachers": {"multimodal": (("signal", "text"), FUSION)},
            },
            {"teacher_layer": "encoders.text.tokens"},
            "layer tokens of the student gives 40 tokens, encoders.text.tokens of the multimodal teacher 12",
        ),
        (
            {"student_modality": "signal", "student": NetworkChoice("tcn")},
            {},
            "student_layer: tcn of student names no layer of tokens",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_told_before_any_training(store, tmp_path, changes, options, says):
    method = make_method("vidlankd", make_lab(store, tmp_path, **changes), **options)
    with pytest.raises(UserError, match=says):
        method.check()
    assert not any(tmp_path.iterdir())
