"""Features read inside networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.methods.ofa import exit_branch
from distill.networks.registry import Model, NetworkChoice, build_model
from distill.suffix import split_at
from distill.taps import Tap, embedding_layer, frozen_features, maskable_layers, pooled, recomputes
from mst_edge.core.errors import UserError
from tests.distill.test_training import make_lab, store  # noqa: F401


def _batch(lab, count=8):
    return lab.store.gather(lab.store.splits["train"][:count], ("facts", "signal"), torch.device("cpu"))


def test_one_pass_gives_logits_and_the_outputs_of_layers_and_of_embed(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    model = lab.new_student()
    model.module.eval()
    tap = Tap(model, ["blocks", "embed"], store.shapes, where="here")
    x = _batch(lab).inputs
    logits, (maps, embedding) = tap(x)
    assert torch.equal(logits, model(x))
    assert torch.equal(embedding, model.module.embed(x["signal"]))
    assert torch.equal(maps, model.module.blocks(torch.relu(model.module.stem(x["signal"]))))
    assert tap.feature_shapes == [tuple(maps.shape[1:]), tuple(embedding.shape[1:])]
    assert torch.allclose(tap.features(x)[0], maps.mean(dim=2))


def test_a_tap_leaves_no_trace_in_the_network_and_gradients_pass(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    model = lab.new_student()
    tap = Tap(model, ["blocks", "embed"], store.shapes, where="here")
    assert model.module.training
    _, (maps, embedding) = tap(_batch(lab).inputs)
    (maps.sum() + embedding.sum()).backward()
    assert model.module.stem.weight.grad is not None
    assert "embed" not in model.module.__dict__
    assert not model.module.blocks._forward_hooks


def test_maps_are_averaged_over_positions():
    maps = torch.rand(4, 3, 5, 2)
    assert torch.allclose(pooled(maps), maps.mean(dim=(2, 3)))
    assert torch.equal(pooled(maps[..., 0, 0]), maps[..., 0, 0])


def test_the_embedding_is_embed_or_the_last_maskable_layer_or_what_is_said(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    assert embedding_layer(lab.new_student(), "", where="x") == "embed"
    assert embedding_layer(lab.new_teacher("multimodal"), "", where="x") == "hidden"
    assert embedding_layer(lab.new_teacher("multimodal"), "fused", where="x") == "fused"


class _Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(12, 3)
        self.unused = nn.Linear(12, 3)

    def forward(self, x):
        return self.lin(self.lin(x).repeat(1, 4))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (["lni"], r"here: unknown layer 'lni'; did you mean 'lin'"),
        (["embed"], r"here: network 'bare' of bare has no embed\(\)"),
        (["unused"], r"here: layer 'unused' of bare does not give one"),
        (["lin"], r"here: layer 'lin' of bare does not give one"),
    ],
)
def test_a_layer_that_cannot_be_read_is_told(layers, says):
    model = Model("bare", "bare", _Bare(), ("facts",), False)
    with pytest.raises(UserError, match=says):
        Tap(model, layers, {"facts": (12,)}, where="here")


def test_a_network_without_embedding_or_maskable_layers_is_told_with_a_fix():
    model = Model("bare", "bare", _Bare(), ("facts",), False)
    for ask in (lambda: embedding_layer(model, "", where="here"), lambda: maskable_layers(model, where="here")):
        with pytest.raises(UserError, match=r"here: .* names no maskable layers; name the layers here"):
            ask()


def test_frozen_features_are_kept_below_the_limit_and_recomputed_above(store, tmp_path):  # noqa: F811
    lab, poor = make_lab(store, tmp_path), make_lab(store, tmp_path, keep_gb=1e-6)
    teacher = lab.new_teacher("multimodal")
    teacher.module.eval()
    tap = Tap(teacher, ["fused", "hidden"], store.shapes, where="here")
    kept, computed = frozen_features(lab, tap), frozen_features(poor, tap)
    assert (kept.reads, recomputes(lab, tap)) == ((), False)
    assert (computed.reads, recomputes(poor, tap)) == (("facts", "signal"), True)
    batch = _batch(lab)
    for one, other in zip(kept(batch), computed(batch), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
        assert not other.requires_grad
        assert one.abs().sum() > 0


@pytest.mark.parametrize(
    ("network", "shapes", "layer", "width"),
    [
        ("mlp", {"x": (9,)}, "embed", 64),
        ("tcn", {"x": (3, 20)}, "embed", 64),
        ("small_cnn", {"x": (1, 16, 16)}, "embed", 64),
        ("ds_cnn", {"x": (1, 49, 10)}, "embed", 64),
        ("lenet5", {"x": (1, 28, 28)}, "embed", 84),
        ("avmnist_audio_cnn", {"x": (1, 32, 32)}, "embed", 128 * 16),
        ("avmnist_teacher", {"x": (1, 28, 28), "y": (1, 112, 112)}, "fusion1", 298),
        ("fusion", {"x": (9,), "y": (3, 20)}, "hidden", 128),
    ],
)
def test_every_network_of_ours_can_be_tapped_where_methods_look_by_default(network, shapes, layer, width):
    model = build_model("m", NetworkChoice(network), shapes, 5, where="here")
    assert embedding_layer(model, "", where="here") == layer
    tap = Tap(model, [layer, *maskable_layers(model, where="here")], shapes, where="here")
    assert tap.widths[0] == width
    assert all(exit_branch(shape, 5)(torch.zeros(2, *shape)).shape == (2, 5) for shape in tap.feature_shapes)
    assert split_at(model, model.maskable[-1]) is not None
