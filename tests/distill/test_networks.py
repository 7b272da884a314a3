from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.masks import probe_layer
from distill.networks.auto import auto_network
from distill.networks.registry import NETWORKS, NetworkChoice, build_model, find_layer
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError

IMAGE, SPECTROGRAM = (1, 28, 28), (1, 112, 112)


@pytest.mark.parametrize(
    ("shape", "network"),
    [
        ((12,), "mlp"),
        ((3, 40), "tcn"),
        ((1, 8, 8), "small_cnn"),
        ((3, 96, 64), "small_cnn"),
        ((3, 192, 160), "small_cnn"),
        ((3, 15, 24, 32), "clip_cnn"),
    ],
)
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_auto_fits_any_shape(shape, network, width):
    assert auto_network({"x": shape}) == network
    model = build_model("m", NetworkChoice("auto", {"width": width}), {"x": shape}, 7, where="student")
    assert model({"x": torch.randn(2, *shape)}).shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 300), (2, 5), (1,), (1, 1, 1, 1)])
def test_auto_fits_odd_shapes(shape):
    model = build_model("m", NetworkChoice(), {"x": shape}, 3, where="student")
    assert model({"x": torch.randn(2, *shape)}).shape == (2, 3)


@pytest.mark.parametrize(("size", "width"), [("tiny", 0.5), ("small", 1.0), ("base", 2.0)])
@pytest.mark.parametrize("shapes", [{"x": (3, 40)}, {"x": (3, 40), "y": (12,)}])
def test_a_size_stands_for_a_width(size, width, shapes):
    model = build_model("m", NetworkChoice("auto", {"size": size, "dropout": 0.3}), shapes, 3, where="student")
    assert model.options == {"width": width, "dropout": 0.3}
    by_width = build_model("m", NetworkChoice("auto", {"width": width}), shapes, 3, where="student")
    assert model.parameters == by_width.parameters


def test_what_auto_built_can_be_built_again_without_auto():
    model = build_model("m", NetworkChoice("auto", {"size": "tiny"}), {"x": (3, 40)}, 3, where="student")
    again = build_model("m", NetworkChoice(model.network, model.options), {"x": (3, 40)}, 3, where="student")
    assert model.network == "tcn"
    assert again.module.state_dict().keys() == model.module.state_dict().keys()
    assert again.parameters == model.parameters


@pytest.mark.parametrize(("features", "devices"), [(6, ["cpu"]), (600_000, ["meta", "cpu"])])
def test_a_network_is_tried_without_computing_where_its_input_is_large(features, devices):
    """A network that needs values to run is tried for real all the same."""
    choice = NetworkChoice("tests.distill.test_networks:Branching")
    model = build_model("m", choice, {"x": (features,)}, 2, where="student")
    assert model.module.tried_on == devices
    with pytest.raises(UserError, match="its output has shape"):
        build_model("m", NetworkChoice(choice.network, {"more": 1}), {"x": (features,)}, 2, where="student")


class Branching(nn.Module):
    def __init__(self, input_shape, num_outputs, more=0):
        super().__init__()
        self.layer = nn.Linear(input_shape[0], num_outputs + more)
        self.tried_on = []

    def forward(self, x):
        self.tried_on.append(x.device.type)
        return self.layer(x if x.sum().item() > 0 else -x)


def test_width_scales_the_parameters():
    small, large = (
        build_model("m", NetworkChoice("ds_cnn", {"width": width}), {"x": (1, 40, 61)}, 10, where="s").parameters
        for width in (0.5, 1.0)
    )
    assert 2 < large / small < 4


def test_fusion_joins_any_number_of_modalities():
    shapes = {"image": (1, 8, 8), "signal": (3, 40), "facts": (12,)}
    model = build_model("m", NetworkChoice("auto"), shapes, 5, where="teachers.multimodal")
    assert model.reads == ("image", "signal", "facts")
    assert model({name: torch.randn(2, *shape) for name, shape in shapes.items()}).shape == (2, 5)


def test_fusion_joins_three_modalities_of_different_kinds_and_hears_each():
    torch.manual_seed(0)
    shapes = {"clip": (3, 10, 16, 24), "sound": (1, 40, 31), "motion": (6, 50)}
    encoders = {"sound": {"network": "bc_resnet"}, "motion": {"network": "transformer", "options": {"depth": 1}}}
    model = build_model("m", NetworkChoice("fusion", {"encoders": encoders}), shapes, 5, where="teachers.multimodal")
    model.module.eval()
    inputs = {name: torch.randn(2, *shape) for name, shape in shapes.items()}
    logits = model(inputs)
    assert logits.shape == (2, 5)
    for name, shape in shapes.items():
        assert not torch.allclose(model({**inputs, name: torch.randn(2, *shape)}), logits)
    fused = probe_layer(model, "fused", shapes, "x")
    assert fused.shape[1] == sum(encoder.embedding_dim for encoder in model.module.encoders.values())


@pytest.mark.parametrize(
    ("encoders", "says"),
    [
        ({"soud": {}}, "teachers.multimodal.options.encoders: unknown modality 'soud'; did you mean 'sound'"),
        ({"sound": {"net": "tcn"}}, "encoders.sound: unknown key 'net'"),
        ({"sound": {"network": "bc_resnt"}}, "encoders.sound.network: unknown network .* did you mean 'bc_resnet'"),
        ({"sound": {"network": "bc_resnet", "options": {"tau": 1}}}, "encoders.sound.options: unknown option"),
        ({"sound": {"network": "segnet"}}, "encoders.sound: segnet cannot be an encoder"),
        (
            {"sound": {"network": "auto", "options": {"size": "huge"}}},
            "encoders.sound.options.size: unknown size 'huge'",
        ),
    ],
)
def test_an_encoder_that_cannot_be_is_told_with_its_key(encoders, says):
    choice = NetworkChoice("fusion", {"encoders": encoders})
    with pytest.raises(UserError, match=says):
        build_model("m", choice, {"sound": (1, 40, 31), "facts": (4,)}, 5, where="teachers.multimodal")


def test_fusion_takes_named_encoders_and_drops_their_heads():
    choice = NetworkChoice("fusion", {"encoders": {"image": {"network": "lenet5"}}})
    model = build_model("m", choice, {"image": IMAGE, "facts": (12,)}, 5, where="teachers.multimodal")
    assert isinstance(model.module.encoders["image"].fc2, nn.Identity)


EXAMPLES = {
    "tcn": (3, 40),
    "transformer": (3, 40),
    "mlp": (12,),
    "crisismmd_mlp": (12,),
    "lenet5": IMAGE,
    "clip_cnn": (3, 8, 16, 16),
    "stream_cnn": (3, 8, 16, 16),
    "ravdess_visual": (3, 8, 16, 16),
    "vggsound_visual": (4, 8, 8, 8),
    "ravdess_audio": (3, 40),
    "vggsound_audio": (3, 40),
    "segnet": (1, 32, 32),
    "small_unet": (1, 32, 32),
    "text_bag": TokenShape(10, 300),
    "text_transformer": TokenShape(10, 300),
}
DENSE = {"segnet", "small_unet"}


@pytest.mark.parametrize("name", [n for n in NETWORKS.names() if not getattr(NETWORKS.get(n), "multimodal", False)])
def test_every_layer_that_a_network_offers_to_mask_gives_channels(name):
    shape = EXAMPLES.get(name, (1, 40, 61))
    dense = shape[1:] if name in DENSE else None
    model = build_model("m", NetworkChoice(name), {"x": shape}, 4, where="student", map_size=dense)
    assert model.maskable
    for path in model.maskable:
        assert probe_layer(model, path, {"x": shape}, "x").ndim >= 2


class Tiny(nn.Module):
    def __init__(self, input_shape, num_outputs, bias=True):
        super().__init__()
        self.layer = nn.Linear(input_shape[0], num_outputs, bias)

    def forward(self, x):
        return self.layer(x)


def test_any_importable_class_is_a_network():
    choice = NetworkChoice("tests.distill.test_networks:Tiny", {"bias": False})
    assert build_model("m", choice, {"x": (6,)}, 2, where="student").parameters == 12


@pytest.mark.parametrize(
    ("choice", "shapes", "says"),
    [
        (NetworkChoice("lenet"), {"x": IMAGE}, "did you mean 'lenet5'"),
        (NetworkChoice("lenet5"), {"x": (1, 8, 8)}, "lenet5 cannot read features of shape"),
        (NetworkChoice("tcn", {"wide": 2}), {"x": (3, 40)}, "unknown option of Tcn 'wide'.*did you mean 'width'"),
        (NetworkChoice("tcn"), {"x": (3, 40), "y": (2,)}, "reads one modality, not 2"),
        (NetworkChoice("auto", {"size": "smal"}), {"x": (3,)}, "unknown size 'smal'; did you mean 'small'"),
        (NetworkChoice("auto", {"size": "tiny", "width": 1}), {"x": (3,)}, "size and width say the same"),
        (NetworkChoice(), {"x": (1, 2, 3, 4, 5)}, "no network is known for features of shape"),
        (NetworkChoice("no.such:Net"), {"x": (3,)}, "cannot import network"),
        (NetworkChoice("avmnist_teacher"), {"a": (1, 8, 8), "b": (1, 9, 9)}, "expected one 28 x 28 image"),
    ],
)
def test_what_does_not_fit_is_told_with_its_key(choice, shapes, says):
    with pytest.raises(UserError, match=says) as caught:
        build_model("m", choice, shapes, 10, where="student")
    assert str(caught.value).startswith("student")


def test_an_unknown_layer_names_the_closest():
    model = build_model("m", NetworkChoice("tcn"), {"x": (3, 40)}, 4, where="s")
    with pytest.raises(UserError, match="did you mean 'blocks"):
        find_layer(model.module, "block.0", where="distill.options.layers")


def test_names_are_listed_sorted():
    assert NETWORKS.names() == sorted(NETWORKS.names())
    assert {"lenet5", "fusion", "ds_cnn"} <= set(NETWORKS.names())
