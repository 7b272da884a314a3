"""VideoAdviser with language models, offline: one RoBERTa is the student, one reads the teacher's texts and prompts."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from distill.huggingface.source import Source
from distill.lab import OptimizerChoice
from distill.networks.video_prompts import VideoPrompts
from distill.student import student_outputs
from distill.tokens import TokenShape
from distill.training.phase import Silent
from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import checked_methods, deployable, make_lab
from quantize.export import export_student
from tests.huggingface_models import ROBERTA, write_model
from tests.language_tokenizers import byte_level
from tests.opinions import make_opinions, write_opinions
from tests.quantizing import quantized

pytest.importorskip("transformers")
MOODS = ("highly negative", "negative", "weakly negative", "neutral", "weakly positive", "positive", "highly positive")
PROMPTS = [f"a video with {mood} sentiment" for mood in MOODS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Opinions, a RoBERTa with random weights, and a recipe."""
    folder = tmp_path_factory.mktemp("va")
    write_opinions(folder / "data", 120)
    write_model(folder / "roberta", ROBERTA, byte_level([*make_opinions(60)[0], *PROMPTS]), "<pad>")
    teacher = {
        "classes": 7,
        "width": 0.25,
        "frames": 4,
        "hidden": 16,
        "reader": {"network": "hf:roberta", "options": {"pooling": "mean"}},
        "prompts": PROMPTS,
        "utterance": "both",
    }
    recipe = {
        "name": "va",
        "dataset": {"path": "data"},
        "modalities": {"text": {"tokenizer": "hf:roberta", "max_tokens": 24}},
        "student": {"modality": "text", "network": "hf:roberta"},
        "teachers": {"multimodal": {"network": "video_prompts", "options": teacher}},
        "distill": {
            "method": "videoadviser",
            "compare": [],
            "epochs": {"collaborate": 2, "masks": 1, "distill": 2},
            "batch_size": 24,
            "optimizer": {"name": "adamw", "lr": 0.003, "pretrained_lr": 0.001},
        },
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def lab_of(folder, out, *changes):
    recipe = load_recipe(folder / "r.yaml", changes)
    data = prepare(recipe, None)
    lab = make_lab(recipe, data, out, torch.device("cpu"), Silent())
    return data, lab, checked_methods(recipe, lab)[recipe.distill.method]


def teacher_of(folder, shapes, **options):
    torch.manual_seed(0)
    reader = {"network": f"hf:{folder / 'roberta'}"}
    return VideoPrompts(shapes, 1, **{"classes": 7, "width": 0.25, "reader": reader, "prompts": PROMPTS, **options})


def test_a_roberta_learns_numbers_and_rounding_costs_what_the_specification_allows(folder, tmp_path):
    data, lab, method = lab_of(folder, tmp_path / "lab")
    student = deployable(method.train(), data, lab, {})
    ids = data.splits["test"]
    raw, truth = student.frontend.host(data.dataset.read("text", ids)), np.asarray(data.dataset.target[ids])[:, 0]
    torch_says = np.concatenate(list(student_outputs(student, raw)))[:, 0]
    fp32 = export_student(student, tmp_path / "fp32")
    said = {}
    for name in ("fp32", "fp16", "int8-dynamic"):
        variant = fp32 if name == "fp32" else quantized(fp32, raw[:8], tmp_path / name, name)
        session = onnxruntime.InferenceSession(variant.model, providers=["CPUExecutionProvider"])
        assert [given.name for given in session.get_inputs()] == ["text"]
        said[name] = session.run(None, {"text": raw})[0][:, 0].astype(np.float64)
    errors = {name: np.abs(numbers - truth).mean() for name, numbers in said.items()}
    assert np.abs(said["fp32"] - torch_says).max() <= 1e-4
    assert abs(errors["fp16"] - errors["fp32"]) <= 0.005
    assert abs(errors["int8-dynamic"] - errors["fp32"]) <= 0.02


def test_prompts_are_what_the_reader_makes_of_their_words(folder):
    tokenizer = Source(str(folder / "roberta")).tokenizer(24)
    shapes = {"text": TokenShape(24, tokenizer.vocabulary, 1, tokenizer.identity), "video": (5, 12)}
    tokens = byte_level([*make_opinions(60)[0], *PROMPTS]).encode(PROMPTS[2]).ids
    network = teacher_of(folder, shapes).eval()
    assert network.texts.ids[2, : len(tokens)].tolist() == tokens
    features = network.reader.embed(network.texts.ids)
    wanted = features @ network.texts.project.weight.T + network.texts.project.bias
    assert torch.allclose(network.class_vectors(), wanted, atol=1e-6)
    assert "prompts" not in dict(network.named_parameters())
    alone = teacher_of(folder, {"video": (5, 12)}).eval()  # as a cross-modal teacher: it reads no text but these
    assert alone({"video": torch.zeros(2, 5, 12)}).shape == (2, 1)


def test_layers_with_weights_of_files_learn_at_a_rate_of_their_own(folder):
    network = teacher_of(folder, {"video": (5, 12)})
    optimizer = OptimizerChoice(lr=1e-2, pretrained_lr=1e-4).build([network]).optimizer
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in network.reader.trunk.parameters()} == {1e-4}
    others = [p for name, p in network.named_parameters() if not name.startswith("reader.trunk.")]
    assert {rates[id(p)] for p in others} == {1e-2}
    assert len(rates) == len(list(network.parameters()))
    (group,) = OptimizerChoice(lr=1e-2).build([network]).optimizer.param_groups
    assert group["lr"] == 1e-2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"prompts": PROMPTS[:5]},
            r"teachers\.multimodal\.options\.prompts: expected 7 texts, one per class, received 5",
        ),
        ({"reader": {}}, r"options\.prompts: only a language model tells what words mean .*; name one as reader"),
        ({"prompts": ["so " * 40, *PROMPTS[1:]]}, r"options\.prompts: 'so so .* has more than 24 tokens"),
        ({"reader": {"network": "hf:./none"}}, r"options\.reader\.network: no such folder"),
        ({"reader": {"network": "text_bag", "option": 1}}, r"options\.reader: unknown key 'option'"),
    ],
)
def test_prompts_that_do_not_fit_are_told_before_training(folder, tmp_path, options, says):
    changes = [f"teachers.multimodal.options.{key}={yaml.safe_dump(value)}" for key, value in options.items()]
    with pytest.raises(UserError, match=says):
        lab_of(folder, tmp_path / "lab", *changes)[1].new_teacher("multimodal")
    assert not (tmp_path / "lab").exists()
