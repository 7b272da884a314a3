"""Splitting a frozen network at a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.masks import MaskedTeacher, make_specialised, multiplied
from distill.networks.registry import Model, NetworkChoice, build_model
from distill.suffix import has_one_row_per_sample, split_at

FUSED = {"a": (12,), "b": (3, 40), "c": (1, 16, 16)}
CASES = [
    ("fusion", FUSED, "fused"),
    ("fusion", FUSED, "hidden"),
    ("fusion", FUSED, "encoders.b.blocks"),
    ("avmnist_teacher", {"image": (1, 28, 28), "audio": (1, 112, 112)}, "fused"),
    ("lenet5", {"x": (1, 28, 28)}, "trunk.conv3"),
    ("small_cnn", {"x": (1, 40, 61)}, "stages"),
    ("tcn", {"x": (3, 40)}, "squeeze"),
    ("mlp", {"x": (12,)}, "hidden"),
]


def _model(network, shapes):
    torch.manual_seed(0)
    model = build_model("m", NetworkChoice(network), shapes, 5, where="t")
    model.module.eval().requires_grad_(False)
    return model, {name: torch.randn(6, *shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("slide", [False, True])
@pytest.mark.parametrize(("network", "shapes", "layer"), CASES)
def test_the_two_parts_give_what_the_whole_gives(network, shapes, layer, slide):
    model, inputs = _model(network, shapes)
    split = split_at(model, layer, slide=slide)
    _, kept = split.before(inputs)
    assert has_one_row_per_sample(kept, 6)
    assert torch.allclose(split.after(split.part(kept)), model(inputs), atol=1e-6)


def test_one_pass_serves_the_parts_above_several_layers():
    model, inputs = _model("avmnist_teacher", {"image": (1, 28, 28), "audio": (1, 112, 112)})
    split = split_at(model, "audio.2", "fused", "fusion1")
    layers, kept = split.before(inputs)
    assert [tuple(layer.shape) for layer in layers] == [(6, 128, 28, 28), (6, 596), (6, 298)]
    expected = model(inputs)
    for cut in range(3):
        assert torch.allclose(split.after(split.part(kept, cut), cut), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "shapes", "layer", "slid"),
    [
        ("avmnist_audio_cnn", {"x": (1, 112, 112)}, "conv2", (64, 28, 28)),  # ReLU and pooling
        ("lenet5", {"x": (1, 28, 28)}, "trunk.conv3", (120, 1, 1)),  # ReLU
        ("small_cnn", {"x": (1, 40, 61)}, "stages", (128,)),  # the mean over positions
        ("tcn", {"x": (3, 40)}, "blocks", (128,)),
        ("mlp", {"x": (12,)}, "hidden", (128,)),  # ReLU and dropout
        ("fusion", FUSED, "encoders.c.stages", (64,)),
        ("avmnist_teacher", {"image": (1, 28, 28), "audio": (1, 112, 112)}, "image.conv3", (120, 1, 1)),
    ],
)
def test_a_mask_slides_past_what_it_commutes_with(network, shapes, layer, slid):
    """relu(m h) = m relu(h) for m > 0, and so for pooling and means over positions: what is kept shrinks."""
    model, inputs = _model(network, shapes)
    plain, split = split_at(model, layer), split_at(model, layer, slide=True)
    (h,), kept = split.before(inputs)
    body, *bypass = split.part(kept)
    assert body.shape[1:] == slid
    values = torch.rand(h.shape[:2]) + 0.1
    _, below = plain.before(inputs)
    whole, *rest = plain.part(below)
    expected = plain.after((multiplied(whole, values), *rest))
    assert torch.allclose(split.after((multiplied(body, values), *bypass)), expected, atol=1e-5)
    assert not torch.allclose(expected, model(inputs), atol=1e-3)


def test_a_mask_does_not_slide_past_a_branch_or_what_mixes_channels():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            h = self.layer(x)
            return torch.relu(h) + h

    class Normed(Residual):
        def forward(self, x):
            return torch.relu(self.norm(self.layer(x)))

    for module in (Residual(), Normed()):
        model = Model("m", "x", module.eval(), ("x",), False)
        split = split_at(model, "layer", slide=True)
        (h,), kept = split.before({"x": torch.randn(3, 4)})
        assert torch.equal(split.part(kept)[0], h)


@pytest.mark.parametrize("mask", ["compact", "full"])
@pytest.mark.parametrize(
    ("network", "shapes", "layers"),
    [
        ("fusion", FUSED, ("fused", "hidden")),
        ("fusion", FUSED, ("encoders.c.stages", "encoders.a.hidden")),
        ("avmnist_audio_cnn", {"x": (1, 32, 32)}, ("conv2", "conv3")),
        ("lenet5", {"x": (1, 28, 28)}, ("trunk.conv3", "trunk.fc1")),
        ("tcn", {"x": (3, 40)}, ("squeeze",)),
    ],
)
def test_masks_that_share_a_pass_give_what_each_alone_on_the_whole_teacher_gives(network, shapes, layers, mask):
    model, inputs = _model(network, shapes)
    specialised = [make_specialised(model, layer, mask, shapes, "layers") for layer in layers]
    for special in specialised:
        special.mask.eval()
    with torch.no_grad():
        shared = MaskedTeacher(specialised).frozen.compute(inputs)
        for special, z in zip(specialised, shared, strict=True):
            assert torch.allclose(z, special(inputs), atol=1e-5)


def test_what_cannot_be_traced_or_split_is_left_whole():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x))

    for module in (Branching(), Twice()):
        assert split_at(Model("m", "x", module, ("x",), False), "layer") is None


def test_rows_are_recognised():
    assert not has_one_row_per_sample((torch.zeros(3), torch.zeros(())), 3)
    assert not has_one_row_per_sample((torch.zeros(4), torch.zeros(3)), 3)
    assert not has_one_row_per_sample((3,), 3)
