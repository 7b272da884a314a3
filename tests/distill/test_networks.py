from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.networks.registry import NETWORKS, NetworkChoice, auto_network, build_model, find_layer
from mst_edge.core.errors import UserError

IMAGE, SPECTROGRAM = (1, 28, 28), (1, 112, 112)


@pytest.mark.parametrize(
    ("network", "shapes", "parameters"),
    [
        ("lenet5", {"image": IMAGE}, 61_706),
        ("avmnist_audio_cnn", {"audio": SPECTROGRAM}, 343_562),
        ("avmnist_teacher", {"image": IMAGE, "audio": SPECTROGRAM}, 1_809_752),
    ],
)
def test_benchmark_networks_have_the_published_size(network, shapes, parameters):
    model = build_model("m", NetworkChoice(network), shapes, 10, where="student")
    assert model.parameters == parameters


@pytest.mark.parametrize(
    ("shape", "network"), [((12,), "mlp"), ((3, 40), "tcn"), ((1, 8, 8), "small_cnn"), ((3, 96, 64), "small_cnn")]
)
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_auto_fits_any_shape(shape, network, width):
    assert auto_network({"x": shape}) == network
    model = build_model("m", NetworkChoice("auto", {"width": width}), {"x": shape}, 7, where="student")
    assert model({"x": torch.randn(2, *shape)}).shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 300), (2, 5), (1,)])
def test_auto_fits_odd_shapes(shape):
    model = build_model("m", NetworkChoice(), {"x": shape}, 3, where="student")
    assert model({"x": torch.randn(2, *shape)}).shape == (2, 3)


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


def test_fusion_takes_named_encoders_and_drops_their_heads():
    choice = NetworkChoice("fusion", {"encoders": {"image": {"network": "lenet5"}}})
    model = build_model("m", choice, {"image": IMAGE, "facts": (12,)}, 5, where="teachers.multimodal")
    assert isinstance(model.module.encoders["image"].fc2, nn.Identity)


@pytest.mark.parametrize("name", ["small_cnn", "tcn", "mlp", "ds_cnn", "lenet5", "avmnist_audio_cnn"])
def test_every_maskable_layer_exists(name):
    shape = {"tcn": (3, 40), "mlp": (12,), "lenet5": IMAGE}.get(name, (1, 40, 61))
    model = build_model("m", NetworkChoice(name), {"x": shape}, 4, where="student")
    assert model.maskable
    for path in model.maskable:
        find_layer(model.module, path, where="")


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
        (NetworkChoice("no.such:Net"), {"x": (3,)}, "cannot import network"),
        (NetworkChoice("avmnist_teacher"), {"a": (1, 8, 8), "b": (1, 9, 9)}, "expected one 28 x 28 image"),
    ],
)
def test_what_does_not_fit_is_told_with_its_key(choice, shapes, says):
    with pytest.raises(UserError, match=says) as caught:
        build_model("m", choice, shapes, 10, where="student")
    assert str(caught.value).startswith("student.")


def test_an_unknown_layer_names_the_closest():
    model = build_model("m", NetworkChoice("tcn"), {"x": (3, 40)}, 4, where="s")
    with pytest.raises(UserError, match="did you mean 'blocks"):
        find_layer(model.module, "block.0", where="distill.options.layers")


def test_names_are_listed_sorted():
    assert NETWORKS.names() == sorted(NETWORKS.names())
    assert {"lenet5", "fusion", "ds_cnn"} <= set(NETWORKS.names())
