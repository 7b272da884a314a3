"""Models of Hugging Face as networks: the library's numbers, what is refused, and what builds them again."""

from __future__ import annotations

import json

import pytest
import torch

from distill.datasets.spec import Kind, ModalitySpec
from distill.huggingface.source import source_of, transformers
from distill.networks.registry import NetworkChoice, build_model
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError
from tests.huggingface_models import DISTILBERT, ROBERTA, write_model
from tests.language_tokenizers import byte_level, word_piece
from tests.texts import make_texts

pytest.importorskip("transformers")
TEXTS = make_texts(60)[0]
SPEC = ModalitySpec("text", Kind.TEXT, (), "<U60")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "distilbert", DISTILBERT, word_piece(TEXTS))
    write_model(folder / "roberta", ROBERTA, byte_level(TEXTS), "<pad>")
    return folder


def _shape(tokenizer):
    return TokenShape(tokenizer.max_tokens, tokenizer.vocabulary, tokenizer.padding, tokenizer.identity)


def _build(folder, shape, **options):
    return build_model("student", NetworkChoice(f"hf:{folder}", options), {"x": shape}, 3, where="student")


@pytest.mark.parametrize("name", ["distilbert", "roberta"])
def test_its_features_are_those_of_the_library(folders, name):
    tokenizer = source_of(f"hf:{folders / name}", "").tokenizer(24)
    model = _build(folders / name, _shape(tokenizer), dropout=0.0).module.eval()
    ids = torch.from_numpy(tokenizer.encode_all(["", *TEXTS[:5]]))
    body = transformers().AutoModel.from_pretrained(folders / name).eval()
    visible = (ids != tokenizer.padding).long()
    with torch.no_grad():
        hidden = body(input_ids=ids.long(), attention_mask=visible).last_hidden_state
        torch.testing.assert_close(model.embed(ids), hidden[:, 0], atol=1e-5, rtol=1e-4)
        mean = _build(folders / name, _shape(tokenizer), pooling="mean").module.eval().embed(ids)
    wanted = (hidden * visible[:, :, None]).sum(dim=1) / visible.sum(dim=1, keepdim=True)
    torch.testing.assert_close(mean, wanted, atol=1e-5, rtol=1e-4)


def test_what_it_says_builds_it_again_without_its_folder(folders):
    shape = _shape(source_of(f"hf:{folders / 'distilbert'}", "").tokenizer(24))
    model = _build(folders / "distilbert", shape, frozen=["trunk.embeddings"])
    assert not any(value.requires_grad for value in model.module.trunk.embeddings.parameters())
    options = json.loads(json.dumps(model.options))
    again = build_model("student", NetworkChoice("hf:gone", options), {"x": shape}, 3, where="student")
    again.module.load_state_dict(model.module.state_dict())
    assert again.options == model.options


def test_without_weights_it_fits_any_tokenizer(folders):
    shape = TokenShape(16, 999)
    model = _build(folders / "distilbert", shape, weights="none", checkpointing=True)
    assert model.module.trunk.embeddings.word_embeddings.num_embeddings == 999
    model.module.train()(torch.randint(0, 999, (2, 16))).sum().backward()


@pytest.mark.parametrize("name", ["distilbert", "roberta"])
def test_in_bf16_and_computed_again_it_learns_the_same(folders, name):
    """Checkpointing changes no gradient; bfloat16 changes them by its rounding, of 2^-8, and no more."""
    tokenizer = source_of(f"hf:{folders / name}", "").tokenizer(24)
    ids = torch.from_numpy(tokenizer.encode_all(TEXTS[:8]))
    found = {}
    for kind, options, bf16 in (("plain", {}, False), ("again", {"checkpointing": True}, False), ("bf16", {}, True)):
        torch.manual_seed(0)
        model = _build(folders / name, _shape(tokenizer), dropout=0.0, **options).module
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        calls = []
        layers = next(part for part in model.trunk.modules() if isinstance(part, torch.nn.ModuleList))
        # Inside a layer: hooks of the layer itself stay outside of what is computed again.
        part = next(part for part in layers[0].modules() if isinstance(part, torch.nn.Linear))
        part.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model.train()(ids)
            torch.nn.functional.cross_entropy(logits.float(), torch.arange(8) % 3).backward()
        assert logits.dtype == (torch.bfloat16 if bf16 else torch.float32)
        found[kind] = torch.cat([weight.grad.flatten() for weight in model.trunk.parameters()]), len(calls)
    (plain, once), (again, twice), (rounded, _) = found.values()
    assert (once, twice) == (1, 2)
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)
    assert torch.nn.functional.cosine_similarity(rounded, plain, dim=0) > 0.99
    assert not torch.equal(rounded, plain)


def test_pickled_weights_and_unfit_tokenizers_are_refused(folders, tmp_path):
    tokenizer = word_piece(TEXTS)
    folder = write_model(tmp_path / "m", DISTILBERT, tokenizer)
    shape = _shape(source_of(f"hf:{folder}", "").tokenizer(24))
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"student\.network: .* has no weights as safetensors that fit its config"):
        _build(folder, shape)
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(UserError, match=r"m\.t: the tokenizer of .*: its vocabulary lacks the special token <pad>"):
        source_of(f"hf:{folder}", "m.t").tokenizer(24)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"m\.t: .* has no tokenizer\.json; write it with AutoTokenizer"):
        source_of(f"hf:{folder}", "m.t").tokenizer(24)
    (folder / "config.json").write_text('{"model_type": "distilbart"}')
    with pytest.raises(UserError, match=r"student\.network: unknown model_type 'distilbart'; did you mean"):
        _build(folder, shape)


PICTURES = {
    "vit": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 8,
    },
    "mobilevit": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64]},
}


@pytest.mark.parametrize("kind", PICTURES)
def test_architectures_that_read_pictures_fit_them(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **PICTURES[kind]}))
    model = _build(tmp_path, (1, 32, 32), weights="none")
    assert model.module.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    write_model(tmp_path / "own", {"model_type": kind, **PICTURES[kind], "image_size": 64})
    with pytest.raises(UserError, match=rf"pictures of 1 x 32 x 32, but the {kind} model reads 3 x 64 x 64"):
        _build(tmp_path / "own", (1, 32, 32))


def test_wav2vec_2_reads_a_sequence_of_one_channel(tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    convolutions = {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2", **small, **convolutions}))
    model = _build(tmp_path, (1, 800), weights="none").module.eval()
    wave = torch.randn(2, 1, 800)
    torch.testing.assert_close(model(wave), model(3 * wave + 1), atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="a waveform has one channel"):
        _build(tmp_path, (2, 800), weights="none")


@pytest.mark.parametrize("adapters", [{}, {"lora": {"rank": 2}}])
def test_inside_class_matrix_it_is_built_again_without_its_files(folders, adapters):
    tokenizer = source_of(f"hf:{folders / 'distilbert'}", "").tokenizer(24)
    encoder = {"network": f"hf:{folders / 'distilbert'}", "options": {"licence": "mit", "dropout": 0.0, **adapters}}
    shape = {"x": _shape(tokenizer)}
    choice = NetworkChoice("class_matrix", {"encoder": encoder, "dim": 8})
    model = build_model("student", choice, shape, 3, where="student")
    for weight in model.module.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    deployed = model.deployed()
    options = json.loads(json.dumps(dict(deployed.options)))  # as a file keeps them
    assert options["licence"] == "mit"  # of the student, for the bundle
    options["encoder"]["network"] = "hf:/gone"
    again = build_model("student", NetworkChoice("class_matrix", options), shape, 3, where="student")
    again.module.load_state_dict(deployed.module.state_dict())
    ids = torch.from_numpy(tokenizer.encode_all(TEXTS[:4]))
    torch.testing.assert_close(again.module.eval()(ids), model.module.eval()(ids), atol=1e-4, rtol=1e-4)
