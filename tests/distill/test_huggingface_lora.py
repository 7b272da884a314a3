"""Adapters beside a model's weights: what learns, what a state holds, and that a merged network says the same."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from distill.huggingface.source import source_of
from distill.networks.registry import NetworkChoice, build_model
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError
from tests.huggingface_models import ROBERTA, write_model
from tests.language_tokenizers import byte_level
from tests.texts import make_texts

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="needs the extra peft")
TEXTS = make_texts(60)[0]
QUERY = "trunk.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("lora") / "roberta", ROBERTA, byte_level(TEXTS), "<pad>")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return source_of(f"hf:{folder}", "").tokenizer(16)


@pytest.fixture(scope="module")
def shape(tokenizer):
    return TokenShape(16, tokenizer.vocabulary, tokenizer.padding, tokenizer.identity)


def _build(folder, shape, **options):
    choice = NetworkChoice(f"hf:{folder}", {"lora": {"rank": 2, "alpha": 8}, "dropout": 0.0, **options})
    return build_model("teacher", choice, {"x": shape}, 3, where="teacher")


@pytest.fixture
def trained(folder, shape, tokenizer):
    """An adapted network after five steps, its ids, and its weights before them."""
    torch.manual_seed(0)
    model = _build(folder, shape)
    before = {name: weight.detach().clone() for name, weight in model.module.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.module.parameters() if p.requires_grad], lr=0.05)
    ids = torch.from_numpy(tokenizer.encode_all(TEXTS[:8]))
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.module(ids), torch.arange(8) % 3).backward()
        optimizer.step()
    model.module.eval()
    return model, ids, before


def test_only_adapters_and_head_learn(trained):
    model, _, before = trained
    moved = {name for name, weight in model.module.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("head.")}
    assert f"{QUERY}.lora_A.default.weight" in moved


def test_its_state_is_small_and_belongs_to_the_models_weights(trained, folder, shape):
    model, ids, _ = trained
    state = model.module.state_dict()
    assert all("lora_" in name or name.startswith("head.") for name in state)
    assert sum(v.numel() for v in state.values()) < 0.2 * model.parameters
    again = _build(folder, shape, **json.loads(json.dumps({k: v for k, v in model.options.items() if k != "model"})))
    again.module.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(ids), model.module(ids))
    with pytest.raises(UserError, match=r"teacher\.options\.weights_sha256: the weights of .* are not those that the"):
        _build(folder, shape, **{**model.options, "weights_sha256": "0"})


def test_merged_it_has_plain_weights_and_says_the_same(trained, folder, shape):
    model, ids, _ = trained
    plain = model.deployed()
    assert "lora" not in plain.options
    assert not [name for name in plain.module.state_dict() if "lora" in name]
    again = build_model("student", NetworkChoice("hf:gone", plain.options), {"x": shape}, 3, where="student")
    again.module.load_state_dict(plain.module.state_dict())
    with torch.no_grad():
        said = model.module(ids)
        torch.testing.assert_close(again.module.eval()(ids), said, atol=1e-5, rtol=1e-4)
        base = dict(model.module.named_parameters())
        a, b = (base[f"{QUERY}.lora_{part}.default.weight"] for part in "AB")
        wanted = base[f"{QUERY}.base_layer.weight"] + 8 / 2 * b @ a
        torch.testing.assert_close(again.module.get_submodule(QUERY).weight, wanted)
    assert "lora" in model.options  # merging leaves the one that learns alone


def test_layers_say_where_adapters_are(folder, shape):
    model = _build(folder, shape, lora={"layers": ["trunk.encoder.layer.1.attention"]})
    places = {name.rpartition(".lora_A")[0] for name in model.module.state_dict() if ".lora_A" in name}
    at = "trunk.encoder.layer.1.attention"
    assert places == {f"{at}.self.query", f"{at}.self.key", f"{at}.self.value", f"{at}.output.dense"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lora": {"ranc": 2}}, r"teacher\.options\.lora: unknown key 'ranc'; did you mean 'rank'"),
        ({"lora": {"rank": 0}}, r"teacher\.options\.lora\.rank: 0 is no rank of LoRA"),
        ({"lora": {"layers": ["trunk.embeddings"]}}, "lora.layers: trunk.embeddings holds no linear layer"),
        ({"lora": {"layers": ["trunk.encoder.layr"]}}, "lora.layers: unknown layer 'trunk.encoder.layr'"),
        ({"weights": "none"}, "lora: adapters learn beside a model's own weights; set weights: own"),
    ],
)
def test_what_makes_no_sense_is_told(folder, shape, options, says):
    with pytest.raises(UserError, match=says):
        _build(folder, shape, **options)
