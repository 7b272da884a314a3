"""VideoAdviser: both steps against independent renderings, gradients that stop where they must, both modes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import NoOptions, TokenizerOptions, make_frontend
from distill.lab import Epochs, Lab, OptimizerChoice
from distill.networks.prompts import PromptGenerator
from distill.networks.registry import NetworkChoice, blank_features
from distill.networks.video_prompts import VideoPrompts
from distill.step_distill import first_step
from distill.tasks import Classification, task_for
from distill.tokens import TokenShape
from distill.training.checkpoint import load_tensors
from distill.training.features import FeatureStore
from distill.training.phase import Session
from mst_edge.core.errors import UserError
from tests.distill.methods.helpers import make_method, require_it_teaches
from tests.opinions import CENTRES, write_opinions

SHAPES = {"text": TokenShape(8, 300), "video": (5, 12)}
TEACHER = NetworkChoice("video_prompts", {"classes": 7, "width": 0.25, "frames": 4, "hidden": 32})


def make_store(folder, vocabulary=320) -> FeatureStore:
    dataset = open_arrays(folder)
    frontends = {
        "text": make_frontend(dataset.modalities["text"], TokenizerOptions(vocabulary=vocabulary, max_tokens=12)),
        "video": make_frontend(dataset.modalities["video"], NoOptions()),
    }
    return FeatureStore(dataset, split_dataset(dataset, SplitRule()), frontends)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(write_opinions(tmp_path_factory.mktemp("d") / "opinions"))


def make_lab(store, folder, *, seed=0, batch=32, teacher=TEACHER, **changes) -> Lab:
    lab = Lab(
        store=store,
        task=task_for(store.dataset, store.splits["train"]),
        session=Session(folder, torch.device("cpu"), seed, batch_size=batch),
        student_modality="text",
        student=NetworkChoice("text_bag", {"width": 0.5, "dropout": 0.1}),
        teachers={"multimodal": (("text", "video"), teacher), "video": (("video",), NetworkChoice("tcn"))},
        optimizer=OptimizerChoice(lr=5e-3),
        epochs=Epochs(1, 1, 2),
    )
    return dataclasses.replace(lab, **changes)


def small(**options) -> VideoPrompts:
    torch.manual_seed(0)
    return VideoPrompts(SHAPES, 1, **{"classes": 7, "width": 0.25, "frames": 4, "dropout": 0.0, **options})


def features(batch=6):
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 300, (batch, 8), generator=rng, dtype=torch.int32)
    return {"text": ids, "video": torch.randn(batch, 5, 12, generator=rng)}


def test_prompts_look_at_frames_as_in_x_clip():
    """Layer norm, cross-attention, quick GELU and alpha, rendered with numpy in float64."""
    torch.manual_seed(0)
    dim, heads = 8, 2
    generator = PromptGenerator(dim, heads, layers=2).double().eval()
    prompts, tokens = torch.randn(3, 7, dim, dtype=torch.float64), torch.randn(3, 5, dim, dtype=torch.float64)
    w = {name: value.detach().numpy() for name, value in generator.state_dict().items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    seen, x = norm(tokens.numpy(), "layernorm"), prompts.numpy()
    for layer in ("decoder.0", "decoder.1"):
        q = norm(x, f"{layer}.norm1") @ w[f"{layer}.cross_attn.q_proj.weight"].T
        k, v = (seen @ w[f"{layer}.cross_attn.{part}_proj.weight"].T for part in "kv")
        joined = []
        for part in np.split(np.arange(dim), heads):
            scores = q[..., part] @ k[..., part].transpose(0, 2, 1) / np.sqrt(dim / heads)
            e = np.exp(scores - scores.max(-1, keepdims=True))
            joined.append(e / e.sum(-1, keepdims=True) @ v[..., part])
        out = np.concatenate(joined, -1)
        x = x + out @ w[f"{layer}.cross_attn.proj.weight"].T + w[f"{layer}.cross_attn.proj.bias"]
        h = norm(x, f"{layer}.norm3") @ w[f"{layer}.mlp.0.weight"].T + w[f"{layer}.mlp.0.bias"]
        x = x + (h / (1 + np.exp(-1.702 * h))) @ w[f"{layer}.mlp.3.weight"].T + w[f"{layer}.mlp.3.bias"]
    assert np.allclose(generator(prompts, tokens).detach().numpy(), 0.1 * x, atol=1e-12)


def test_class_logits_are_scaled_cosines_of_video_and_enhanced_prompts():
    network, seen = small().eval(), {}
    for name in ("integrate", "enhance"):
        getattr(network, name).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    classes, number = network.advise(features())
    v = seen["integrate"].detach().numpy()
    e = network.prompts.detach().numpy() + seen["enhance"].detach().numpy()
    cosine = np.einsum("bd,bkd->bk", v, e) / np.linalg.norm(v, axis=1)[:, None] / np.linalg.norm(e, axis=2)
    assert np.allclose(classes.detach().numpy(), cosine / 0.07, atol=1e-4)
    assert number.shape == (6, 1)
    assert torch.equal(network(features()), number)


def test_the_first_step_is_as_written():
    rng = np.random.default_rng(0)
    z, r, y = rng.normal(size=(5, 7)), rng.normal(size=(5, 1)), rng.uniform(-3, 3, (5, 1))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    classes = np.round(y[:, 0]).astype(int) + 3
    losses = first_step(*map(torch.from_numpy, (z, r, y)), torch.tensor(CENTRES).float(), "round")
    wanted = {
        "classes": -np.log(p[np.arange(5), classes]).mean(),
        "number": np.abs(r - y).mean(),
        "step": ((r - p @ np.array(CENTRES)[:, None]) ** 2).mean(),
    }
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(wanted, rel=1e-5)


def test_the_number_never_teaches_the_class_head(store, tmp_path):
    """The gradient of step 1 to the class logits is none at all: neither by the mean nor by the probabilities that
    weigh the prompts."""
    network, task = small(), make_lab(store, tmp_path).task
    classes, number = network.advise(features())
    losses = first_step(classes, task.outputs(number), torch.ones(6, 1), torch.tensor(CENTRES).float(), "soft")
    assert torch.autograd.grad(losses["step"], classes, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(losses["number"], network.logit_scale, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(losses["classes"], network.logit_scale)[0] != 0


@pytest.mark.parametrize("signal", ["number", "mean"])
def test_the_student_never_teaches_the_teacher(store, tmp_path, signal):
    method = make_method("videoadviser", make_lab(store, tmp_path), mode="joint", signal=signal)
    student, teacher = method.lab.new_student(), method.lab.new_teacher("multimodal")
    batch = store.gather(store.splits["train"][:8], ["text", "video"], torch.device("cpu"))
    for model in (student, teacher):
        model.module.eval()
    losses = method._joint_step(student, teacher)(batch, 0)
    advice = torch.autograd.grad(
        losses["advice"], list(teacher.module.parameters()), retain_graph=True, allow_unused=True
    )
    assert all(gradient is None for gradient in advice)
    alone = method.lab.losses(teacher, batch)[1]["loss"]
    together = torch.autograd.grad(losses["loss"], list(teacher.module.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(alone, list(teacher.module.parameters()), allow_unused=True)
    assert all(torch.equal(a, b) for a, b in zip(together, wanted, strict=True) if a is not None)


def test_the_second_step_is_in_the_unit_of_the_label(store, tmp_path):
    method = make_method("videoadviser", make_lab(store, tmp_path), advice_weight=0.5)
    task = method.lab.task
    z, told, y = torch.randn(4, 1), torch.randn(4, 1), torch.tensor([[1.0], [-2.0], [0.0], [3.0]])
    losses = method._advised(z, told, y)
    scale, shift = float(task.scale), float(task.shift)
    said, wanted = z.numpy() * scale + shift, told.numpy() * scale + shift
    assert float(losses["task"]) == pytest.approx(np.abs(said - y.numpy()).mean(), rel=1e-5)
    assert float(losses["advice"]) == pytest.approx(((said - wanted) ** 2).mean(), rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(float(losses["task"]) + 0.5 * float(losses["advice"]), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"signal": "mean"}, {"mode": "joint", "distance": "huber"}])
def test_it_teaches(store, tmp_path, options):
    lab = make_lab(store, tmp_path)
    method = make_method("videoadviser", lab, **options)
    method.check()
    require_it_teaches(method)
    if options.get("mode") == "joint":
        assert "teacher_step" in lab.histories["videoadviser"][0]
        assert not method.fine_tunes


def test_in_two_stages_the_teachers_number_is_computed_once(store, tmp_path, monkeypatch):
    lab = make_lab(store, tmp_path)
    lab.trained_teacher("multimodal")
    assert {"classes", "number", "step"} <= set(lab.histories["lone_multimodal"][0])
    runs, original = [], VideoPrompts.advise
    monkeypatch.setattr(VideoPrompts, "advise", lambda self, x: runs.append(len(x["video"])) or original(self, x))
    make_method("videoadviser", lab).train()
    assert sum(runs) <= len(store.splits["train"]) + len(store.splits["val"]) + 2  # and two to try it


def test_routed_teachers_learn_step_one_too(store, tmp_path):
    """MST-Distill's stage 1 trains the network by its own objective; its masks sit on the number's features.

    The scale of class logits is moved by their cross-entropy alone, never by the number.
    """
    lab = make_lab(store, tmp_path)
    method = make_method("mst", lab)
    require_it_teaches(method)
    assert [row["name"] for row in method.insights["teachers"]][:2] == ["multimodal:fused", "multimodal:hidden"]
    groups, _ = load_tensors(tmp_path / "mst_collaborate" / "final.safetensors")
    assert groups["multimodal"]["logit_scale"] != lab.new_teacher("multimodal").module.logit_scale


def test_classes_are_taught_by_softened_probabilities(tmp_path):
    """The nominal case: prompts are the task's own classes, and there is no number."""
    folder = write_opinions(tmp_path / "d", 200)
    numbers = np.load(folder / "target.npy")
    np.save(folder / "target.npy", (numbers > 0).astype(np.int64))
    (folder / "dataset.yaml").write_text("classes: [bad, good]\n")
    teacher = NetworkChoice("video_prompts", {"width": 0.25, "frames": 4})
    lab = make_lab(make_store(folder), tmp_path / "lab", teacher=teacher, optimizer=OptimizerChoice(lr=0.03))
    assert isinstance(lab.task, Classification)
    assert lab.new_teacher("multimodal").maskable == ("video",)
    require_it_teaches(make_method("videoadviser", lab))


@pytest.mark.parametrize("utterance", ["head", "prompts", "both", "none"])
def test_a_text_goes_where_it_is_told_to(utterance):
    network = small(utterance=utterance).eval()
    given = features()
    other = {**given, "text": given["text"].flip(0)}
    (classes, number), (classes2, number2) = network.advise(given), network.advise(other)
    assert torch.equal(classes, classes2) == (utterance in ("head", "none"))
    assert torch.equal(number, number2) == (utterance == "none")


@pytest.mark.parametrize("shape", [(9,), (5, 12), (3, 20, 24), (3, 6, 20, 24)])
def test_whatever_is_no_text_becomes_frames(shape):
    network = VideoPrompts({"seen": shape}, 1, classes=7, width=0.25, frames=4)
    assert network(blank_features({"seen": shape})).shape == (2, 1)
    tokens = {1: 1, 2: 4, 3: 1, 4: 4}[len(shape)]
    assert network.streams["seen"](torch.zeros(2, *shape)).shape == (2, tokens, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": 5},
            r"teachers\.multimodal\.options\.classes: expected 7, the number of ordinal classes in the data",
        ),
        ({"classes": 7, "labels": "hard"}, r"teachers\.multimodal\.options\.labels: unknown label mode 'hard'"),
        ({"classes": 7, "utterance": "x"}, r"teachers\.multimodal\.options\.utterance: expected head, prompts"),
    ],
)
def test_a_teacher_that_does_not_fit_the_scale_is_refused(store, tmp_path, options, message):
    lab = make_lab(store, tmp_path, teacher=NetworkChoice("video_prompts", options))
    with pytest.raises(UserError, match=message):
        lab.new_teacher("multimodal")


def test_a_number_without_a_scale_is_refused(store, tmp_path):
    lab = make_lab(store, tmp_path)
    lab.task.output = dataclasses.replace(lab.task.output, ordinal=())
    with pytest.raises(UserError, match=r"teachers\.multimodal\.network: .* the data names none; .*ordinal: \[-3"):
        lab.new_teacher("multimodal")


def test_the_mean_of_classes_needs_a_class_head(store, tmp_path):
    lab = make_lab(store, tmp_path, teacher=NetworkChoice("fusion", {"width": 0.5}))
    require_it_teaches(make_method("videoadviser", lab))  # any teacher has a number
    with pytest.raises(UserError, match=r"distill\.options\.signal: .* is a fusion, which has no classes behind its"):
        make_method("videoadviser", lab, signal="mean").check()
