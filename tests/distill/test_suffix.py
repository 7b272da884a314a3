"""Splitting a frozen network at a layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.masks import make_specialised
from distill.networks.registry import Model, NetworkChoice, build_model
from distill.suffix import has_one_row_per_sample, row_bytes, split_at

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


@pytest.mark.parametrize(("network", "shapes", "layer"), CASES)
def test_the_two_parts_give_what_the_whole_gives(network, shapes, layer):
    model, inputs = _model(network, shapes)
    split = split_at(model, layer)
    kept = split.before(inputs)
    assert has_one_row_per_sample(kept, 6)
    assert row_bytes(kept) < sum(x[0].numel() * 4 for x in inputs.values()) * 100
    assert torch.allclose(split.after(kept), model(inputs), atol=1e-6)


@pytest.mark.parametrize(("network", "shapes", "layer"), CASES)
def test_a_mask_on_the_split_gives_what_a_mask_on_the_whole_gives(network, shapes, layer):
    model, inputs = _model(network, shapes)
    special = make_specialised(model, layer, "compact", shapes, "layers")
    split = split_at(model, layer)
    assert torch.allclose(special.above(split, split.before(inputs)), special(inputs), atol=1e-6)


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
