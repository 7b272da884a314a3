"""CLIP and X-CLIP as teachers: each tower, and both, say what the library's model says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import frontend_options, make_frontend
from distill.huggingface.source import source_of, transformers
from distill.networks.registry import NetworkChoice, build_model
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from tests.huggingface_models import CLIP, PICTURES, XCLIP, write_model
from tests.language_tokenizers import clip
from tests.mst_edge.test_huggingface_run import checked
from tests.texts import make_texts

pytest.importorskip("transformers")
TEXTS, CLASSES = make_texts(40)
PAD = "<|endoftext|>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    tokenizer = clip(TEXTS)
    write_model(folder / "clip", CLIP, tokenizer, PAD, PICTURES)
    write_model(folder / "xclip", XCLIP, tokenizer, PAD, PICTURES)
    return folder


@pytest.fixture(scope="module")
def said(folders):
    """Ids of eight texts, and their shape."""
    tokenizer = source_of(f"hf:{folders / 'clip'}", "").tokenizer(20)
    ids = torch.from_numpy(tokenizer.encode_all(["", *TEXTS[:7]]))
    return ids, TokenShape(20, tokenizer.vocabulary, tokenizer.padding, tokenizer.identity)


def _sight(*shape):
    """A front end fitted on bytes, eight samples of them, and what CLIP's processor makes of these."""
    spec = ModalitySpec("x", Kind.VIDEO if len(shape) == 4 else Kind.IMAGE, shape, "uint8")
    raw = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    front = make_frontend(spec, frontend_options(spec.kind)())
    front.fit([raw])
    prepared = (raw / 255 - np.array(PICTURES["image_mean"])) / np.array(PICTURES["image_std"])
    return front, front(torch.from_numpy(raw)), torch.from_numpy(np.moveaxis(prepared, -1, -3).astype(np.float32))


def _build(folder, shapes, **options):
    choice = NetworkChoice(f"hf:{folder}", {"dropout": 0.0, **options})
    return build_model("teacher", choice, shapes, 3, where="teacher")


@torch.no_grad()
def test_a_tower_reads_its_modality_alone(folders, said):
    ids, shape = said
    front, features, pixels = _sight(32, 32, 3)
    library = transformers().AutoModel.from_pretrained(folders / "clip").eval()
    picture = _build(folders / "clip", {"x": front.feature_shape}).module.eval()
    text = _build(folders / "clip", {"x": shape}).module.eval()
    wanted = library.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(picture.embed(features), wanted, atol=1e-5, rtol=1e-4)
    # The library sees all tokens up to the first that ends a text; padding is that token again.
    wanted = library.get_text_features(input_ids=ids.long()).pooler_output
    torch.testing.assert_close(text.embed(ids), wanted, atol=1e-5, rtol=1e-4)
    both = sum(weight.numel() for weight in library.parameters())
    assert sum(weight.numel() for weight in [*picture.parameters(), *text.parameters()]) < both + 1000


@torch.no_grad()
def test_a_legacy_config_means_the_highest_id(tmp_path, said):
    """CLIP's configs of 2021 name token 2 as the one that ends a text, and mean the highest id."""
    ids, shape = said
    legacy = {**CLIP, "text_config": {**CLIP["text_config"], "eos_token_id": 2}}
    folder = write_model(tmp_path / "m", legacy, clip(TEXTS), PAD)
    library = transformers().AutoModel.from_pretrained(folder).eval()
    wanted = library.get_text_features(input_ids=ids.long()).pooler_output
    embedded = _build(folder, {"x": shape}).module.eval().embed(ids)
    torch.testing.assert_close(embedded, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("name", "sides"), [("clip", (32, 32, 3)), ("xclip", (4, 32, 32, 3))])
def test_both_towers_join_what_the_library_joins(folders, said, name, sides):
    ids, shape = said
    front, features, pixels = _sight(*sides)
    model = _build(folders / name, {"v": front.feature_shape, "t": shape}).module.eval()
    joined = []
    model.fused.register_forward_hook(lambda _m, _i, out: joined.append(out))
    assert model({"v": features, "t": ids}).shape == (8, 3)
    library = transformers().AutoModel.from_pretrained(folders / name).eval()
    out = library(input_ids=ids.long(), pixel_values=pixels)
    seen, read = (torch.nn.functional.normalize(part, dim=1) for part in joined[0].split(24, dim=1))
    if name == "clip":
        wanted = out.image_embeds, out.text_embeds
    else:  # it says all texts of all videos: each sample's own
        wanted = out.video_embeds, out.text_embeds[torch.arange(8), torch.arange(8)]
    torch.testing.assert_close(seen, wanted[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(read, wanted[1], atol=1e-5, rtol=1e-4)


def test_a_run_builds_both_towers_again_without_the_folder(folders, said):
    _, shape = said
    front, features, _ = _sight(32, 32, 3)
    shapes = {"v": front.feature_shape, "t": shape}
    model = _build(folders / "clip", shapes)
    again = build_model("teacher", NetworkChoice("hf:gone", model.options), shapes, 3, where="teacher")
    again.module.load_state_dict(model.module.state_dict())
    inputs = {"v": features, "t": said[0]}
    with torch.no_grad():
        assert torch.equal(again.module.eval()(inputs), model.module.eval()(inputs))


@pytest.mark.parametrize("name", ["clip", "xclip"])
def test_fresh_towers_fit_any_features(folders, name):
    sight = (1, 16, 16) if name == "clip" else (1, 2, 16, 16)
    model = _build(folders / name, {"v": sight, "t": TokenShape(12, 333)}, weights="none", checkpointing=True)
    inputs = {"v": torch.randn(2, *sight), "t": torch.randint(1, 333, (2, 12))}
    model.module.train()(inputs).sum().backward()
    assert model.module.trunk.text_model.embeddings.token_embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"v": (3, 4, 32, 32)}, "clip reads a text and a picture"),
        (
            {"v": (3, 32, 32), "w": (3, 32, 32)},
            "two towers read one text and one picture or video, not v, w, t; use fu",
        ),
    ],
)
def test_modalities_without_a_tower_are_told(folders, said, shapes, says):
    with pytest.raises(UserError, match=says):
        _build(folders / "clip", {**shapes, "t": said[1]}, weights="none")


def test_clip_teaches_by_masks_on_its_layers(folders, tmp_path):
    """MST-Distill finds layers of either tower by dotted path, in a teacher of both and in one of one tower."""
    samples = 40
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "photo.npy", np.zeros((samples, 32, 32, 3), np.uint8))
    np.save(tmp_path / "data" / "text.npy", np.array(TEXTS))
    np.save(tmp_path / "data" / "target.npy", np.array(CLASSES))
    name = f"hf:{folders / 'clip'}"
    layers = {
        "multimodal": ["trunk.vision_model.encoder.layers.0", "trunk.text_model.encoder.layers.0", "fused"],
        "photo": ["trunk.encoder.layers.0", "pooled"],
    }
    recipe = {
        "name": "clip",
        "dataset": {"path": "data"},
        "modalities": {"text": {"tokenizer": name, "max_tokens": 20}},
        "student": {"modality": "text", "network": "text_bag"},
        "teachers": {"multimodal": {"network": name}, "cross_modal": {"photo": {"network": name}}},
        "distill": {"method": "mst", "compare": [], "options": {"layers": layers}},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    checked(load_recipe(tmp_path / "r.yaml"), tmp_path / "out")
