"""Mask networks and specialised teachers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.masks import CompactMask, FullMask, make_specialised, masked
from distill.networks.registry import NetworkChoice, build_model
from mst_edge.core.errors import UserError


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("features", "spatial", "published"),
    [
        (84, False, 307_147),
        (120, False, 885_901),
        (298, False, 13_185_166),
        (64, True, 133_351),
        (128, True, 1_074_240),
    ],
)
def test_full_masks_have_the_published_size(features, spatial, published):
    # The published count for maps includes the bias-free convolutions and the batch norm: C^2 + 11 C.
    assert _size(FullMask(features, spatial)) == published


@pytest.mark.parametrize(("features", "spatial"), [(84, False), (298, False), (596, False), (64, True), (512, True)])
def test_compact_masks_are_at_least_fifty_times_smaller(features, spatial):
    width = features // 6 * 3
    full = features**2 * width + features * width + 4 * width**2 + 4 * width + width + 1
    full += features**2 + 11 * features if spatial else 0
    assert _size(CompactMask(features, spatial)) * 50 <= full


@pytest.mark.parametrize("kind", [FullMask, CompactMask])
@pytest.mark.parametrize(("spatial", "shape"), [(False, (5, 24)), (True, (5, 24, 6, 4))])
def test_masks_lie_between_zero_and_one(kind, spatial, shape):
    network = kind(24, spatial)
    mask = network(network.summary(torch.randn(shape) * 10))
    assert mask.shape == (5, 24)
    assert ((mask > 0) & (mask < 1)).all()


def test_a_compact_mask_starts_near_one():
    assert CompactMask(64, False)(torch.randn(8, 64)).mean() > 0.85


def test_a_layer_too_narrow_for_a_full_mask_is_refused():
    with pytest.raises(UserError, match="too narrow"):
        FullMask(5, False)


class Whole(nn.Module):
    def summary(self, h):
        return h


class Constant(Whole):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, h):
        return torch.full(h.shape[:2], self.value)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    model = build_model("multimodal", NetworkChoice("fusion"), {"a": (12,), "b": (3, 40)}, 4, where="t")
    model.module.eval()
    return model


@pytest.fixture
def inputs():
    return {"a": torch.randn(6, 12), "b": torch.randn(6, 3, 40)}


def test_masking_multiplies_the_layers_output_and_nothing_else(teacher, inputs):
    seen = {}
    handle = teacher.module.hidden.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    teacher(inputs)
    plain = seen["x"]
    with masked(teacher.module, "fused", Constant(0.5)):
        teacher(inputs)
    handle.remove()
    assert torch.allclose(seen["x"], 0.5 * plain)


def test_maps_are_masked_channel_by_channel():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Identity())
    x = torch.randn(2, 1, 5, 5)
    plain = net(x)

    class Gate(Whole):
        def forward(self, h):
            assert h.ndim == 4
            return torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(len(h), 4)

    with masked(net, "0", Gate()):
        out = net(x)
    assert torch.allclose(out, plain * torch.tensor([0.0, 1.0, 2.0, 3.0])[None, :, None, None])


def test_each_specialised_teacher_has_its_own_mask_alone(teacher, inputs):
    """The published code leaves the hook of one mask in place while the next teacher runs."""
    plain = teacher(inputs)
    first = make_specialised(teacher, "fused", "compact", {"a": (12,), "b": (3, 40)}, "layers")
    second = make_specialised(teacher, "hidden", "compact", {"a": (12,), "b": (3, 40)}, "layers")
    first.mask, second.mask = Constant(0.1), Constant(1.0)
    first(inputs)
    assert torch.allclose(second(inputs), plain)
    assert torch.allclose(teacher(inputs), plain)
    assert not torch.allclose(first(inputs), plain)


def test_the_mask_is_removed_also_when_the_forward_pass_fails(teacher, inputs):
    class Broken(Whole):
        def forward(self, h):
            raise RuntimeError("broken")

    plain = teacher(inputs)
    with pytest.raises(RuntimeError, match="broken"), masked(teacher.module, "fused", Broken()):
        teacher(inputs)
    assert torch.allclose(teacher(inputs), plain)


@pytest.mark.parametrize("kind", ["full", "compact"])
@pytest.mark.parametrize("layer", ["fused", "hidden", "encoders.b.blocks"])
def test_masks_are_sized_by_the_layer(teacher, inputs, kind, layer):
    shapes = {"a": (12,), "b": (3, 40)}
    if kind == "full" and layer == "encoders.b.blocks":
        with pytest.raises(UserError, match="full masks know maps"):
            make_specialised(teacher, layer, kind, shapes, "layers")
        return
    assert make_specialised(teacher, layer, kind, shapes, "layers")(inputs).shape == (6, 4)


def test_an_unknown_layer_is_told(teacher):
    with pytest.raises(UserError, match="layers: unknown layer 'fuse'; did you mean 'fused'"):
        make_specialised(teacher, "fuse", "compact", {"a": (12,), "b": (3, 40)}, "layers")


def test_masks_learn_while_the_teacher_does_not(teacher, inputs):
    teacher.module.requires_grad_(False)
    special = make_specialised(teacher, "fused", "compact", {"a": (12,), "b": (3, 40)}, "layers")
    special(inputs).square().sum().backward()
    assert all(p.grad is None for p in teacher.module.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in special.mask.parameters())
