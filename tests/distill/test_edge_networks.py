"""Edge students: the papers' sizes, any sensible input shape, and their parts against formulas written out."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from distill.networks.bc_resnet import SubSpectralNorm
from distill.networks.registry import Model, NetworkChoice, build_model
from distill.networks.transformer import EncoderBlock, position_table
from mst_edge.core.errors import UserError

MAPS = ["small_cnn", "ds_cnn", "bc_resnet", "mobilenet_v3_small", "resnet18", "vit"]
SEQUENCES = ["tcn", "transformer"]


def _build(network: str, shape: tuple[int, ...], outputs: int = 12, **options: object) -> Model:
    return build_model("student", NetworkChoice(network, options), {"x": shape}, outputs, where="student")


@pytest.mark.parametrize(("tau", "thousands"), [(1, 9.2), (2, 27.3), (3, 54.2), (6, 188), (8, 321)])
def test_bc_resnet_has_the_papers_sizes(tau, thousands):
    parameters = _build("bc_resnet", (1, 40, 101), width=tau).parameters
    assert float(f"{parameters / 1000:.3g}" if thousands > 100 else f"{parameters / 1000:.1f}") == thousands


def test_ds_cnn_has_mlperf_tinys_size_less_the_biases_that_batch_norm_cancels():
    assert _build("ds_cnn", (1, 10, 49)).parameters == 23_756 - 9 * 64


def test_ds_cnn_halves_both_axes_once_as_mlperf_tiny_does():
    stem = _build("ds_cnn", (1, 10, 49)).module.stem
    assert stem(torch.zeros(1, 1, 10, 49)).shape == (1, 64, 5, 25)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 7), (1, 40, 61), (4, 28, 28), (2, 64, 13), (3, 130, 96)])
def test_map_networks_take_any_sensible_shape(name, shape):
    model = _build(name, shape, 5)
    model.module.eval()
    x = torch.randn(2, *shape)
    assert model({"x": x}).shape == (2, 5)
    assert model.module.embed(x).shape == (2, model.module.embedding_dim)


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("shape", [(1, 1), (6, 5), (3, 64), (9, 301)])
def test_sequence_networks_take_any_length(name, shape):
    model = _build(name, shape, 5)
    model.module.eval()
    x = torch.randn(2, *shape)
    assert model({"x": x}).shape == (2, 5)
    assert model.module.embed(x).shape == (2, model.module.embedding_dim)


@pytest.mark.parametrize("name", [*MAPS, *SEQUENCES, "clip_cnn"])
def test_width_scales_a_student(name):
    shape = {"clip_cnn": (3, 12, 24, 24)}.get(name, (6, 50) if name in SEQUENCES else (1, 40, 61))
    narrow, usual = (_build(name, shape, width=width).parameters for width in (0.5, 1.0))
    assert 1.5 < usual / narrow < 4.5


@pytest.mark.parametrize("name", [*MAPS, *SEQUENCES, "clip_cnn"])
def test_a_student_learns_through_every_weight_it_has(name):
    torch.manual_seed(0)
    shape = {"clip_cnn": (3, 12, 24, 24)}.get(name, (6, 50) if name in SEQUENCES else (1, 40, 61))
    model = _build(name, shape, 5)
    # In eval mode: no unit is dropped by chance, and no batch norm of one value per channel stops a gradient.
    model.module.eval()
    torch.nn.functional.cross_entropy(model({"x": torch.randn(4, *shape)}), torch.arange(4)).backward()
    without = [key for key, weight in model.module.named_parameters() if weight.grad is None]
    assert not without


def test_every_sub_band_has_statistics_of_its_own():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 2, 10, 7)).astype(np.float32) * np.linspace(1, 9, 10)[:, None].astype(np.float32)
    y = SubSpectralNorm(2, 10).train()(torch.from_numpy(x)).detach().numpy()
    bands = x.reshape(6, 2, 5, 2, 7)
    mean, variance = bands.mean(axis=(0, 3, 4), keepdims=True), bands.var(axis=(0, 3, 4), keepdims=True)
    assert np.allclose(y.reshape(bands.shape), (bands - mean) / np.sqrt(variance + 1e-5), atol=1e-5)


@pytest.mark.parametrize(("mels", "bands"), [(40, 5), (20, 5), (64, 4), (14, 2), (7, 1), (1, 1)])
def test_sub_bands_divide_the_mels(mels, bands):
    assert SubSpectralNorm(3, mels).norm.num_features == 3 * bands


def test_bc_resnet_broadcasts_what_it_finds_along_time_to_every_mel():
    block = _build("bc_resnet", (1, 40, 30)).module.stages[1].eval()  # one with an identity path
    x = torch.randn(2, 8, 20, 30)
    frequency = block.along_mels(x)
    along_time = block.along_time(frequency.mean(dim=2, keepdim=True))
    assert along_time.shape == (2, 8, 1, 30)
    assert torch.allclose(block(x), torch.relu(x + frequency + along_time.expand_as(x)), atol=1e-6)


@pytest.mark.parametrize(
    ("side", "last"), [(28, 4), (32, 4), (64, 4), (96, 6), (97, 4), (112, 4), (224, 7), (5, 5), (1, 1)]
)
def test_mobilenet_keeps_four_positions_of_small_maps(side, last):
    module = _build("mobilenet_v3_small", (1, side, side + 3), 5).module.eval()
    assert module.trunk.forward_features(torch.zeros(1, 1, side, side + 3)).shape[2] == last


def test_mobilenet_at_full_size_is_the_published_network():
    strides = [m.stride for m in _build("mobilenet_v3_small", (3, 224, 224)).module.modules() if hasattr(m, "stride")]
    assert strides.count((2, 2)) == 5


@pytest.mark.parametrize(("side", "last"), [(28, 4), (40, 5), (48, 6), (49, 4), (96, 6), (97, 4), (224, 7)])
def test_resnet_keeps_four_positions_of_small_maps(side, last):
    module = _build("resnet18", (1, side, side + 3), 5, width=0.25).module.eval()
    assert module.trunk.forward_features(torch.zeros(1, 1, side, side + 3)).shape[2] == last


def test_resnet_at_full_size_is_the_published_network():
    """11 689 512 parameters with 1000 classes (He and others; torchvision's count)."""
    assert _build("resnet18", (3, 224, 224), 1000).parameters == 11_689_512


def test_mobilenet_knows_three_widths():
    with pytest.raises(UserError, match="width must be one of 0.5, 0.75, 1.0, received 2"):
        _build("mobilenet_v3_small", (1, 28, 28), width=2)


def test_a_missing_timm_is_told_with_its_extra(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "timm" else found(name, *a))
    with pytest.raises(UserError, match=r"needs timm.*pip install 'mst-edge\[networks\]'"):
        _build("mobilenet_v3_small", (1, 28, 28))


def test_positions_are_sines_and_cosines_of_falling_rates():
    table = position_table(7, 6).numpy()
    for time in range(7):
        for pair in range(3):
            angle = time / 10_000 ** (2 * pair / 6)
            assert table[time, 2 * pair : 2 * pair + 2] == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("visible", [None, [True, True, False, True, False]])
def test_a_block_is_normed_attention_and_a_normed_perceptron(visible):
    torch.manual_seed(0)
    block = EncoderBlock(dim=8, heads=2, hidden=12).eval()
    x = torch.randn(3, 5, 8)
    said = None if visible is None else torch.tensor([visible] * 3)
    w = {key: value.detach().numpy() for key, value in block.state_dict().items()}

    def norm(v):
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)

    def linear(v, name):
        return v @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    y = x.numpy()
    queries, keys, values = np.split(linear(norm(y), "queries_keys_values"), 3, axis=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = queries[..., head] @ keys[..., head].swapaxes(1, 2) / 2.0  # the root of four values a head
        if visible is not None:
            scores[..., ~np.array(visible)] = -np.inf
        heads.append(_softmax(scores) @ values[..., head])
    y = y + linear(np.concatenate(heads, axis=-1), "project")
    y = y + linear(np.maximum(0, linear(norm(y), "widen")), "narrow")
    assert np.allclose(block(x, said).detach().numpy(), y, atol=1e-5)


def test_hidden_tokens_change_nothing():
    block = EncoderBlock(dim=8, heads=2, hidden=12).eval()
    x, other = torch.randn(2, 5, 8), torch.randn(2, 2, 8)
    visible = torch.tensor([[True, True, True, False, False]] * 2)
    changed = torch.cat([x[:, :3], other], dim=1)
    assert torch.allclose(block(x, visible)[:, :3], block(changed, visible)[:, :3], atol=1e-6)


def test_a_transformer_tells_order_apart():
    module = _build("transformer", (3, 40)).module.eval()
    x = torch.randn(1, 3, 40)
    assert not torch.allclose(module(x), module(x.flip(2)), atol=1e-4)


@pytest.mark.parametrize(("time", "tokens"), [(1, 1), (64, 64), (65, 33), (1000, 63)])
def test_a_transformer_has_at_most_64_tokens(time, tokens):
    assert _build("transformer", (3, time)).module.positions.shape[0] == tokens


@pytest.mark.parametrize(("shape", "patch"), [((1, 28, 28), 4), ((3, 224, 224), 28), ((1, 40, 61), 7), ((1, 1, 1), 1)])
def test_a_vit_takes_patches_for_at_most_64_tokens(shape, patch):
    module = _build("vit", shape).module
    assert module.patches.stride == (patch, patch)
    assert module.positions.shape[0] == math.ceil(shape[1] / patch) * math.ceil(shape[2] / patch) <= 64


def test_a_clip_is_read_frame_by_frame_and_then_along_time():
    module = _build("clip_cnn", (3, 12, 20, 24)).module.eval()
    clip = torch.randn(2, 3, 12, 20, 24)
    frames = torch.stack([module.stages(clip[:, :, t]).mean(dim=(2, 3)) for t in range(12)], dim=2)
    expected = torch.relu(module.squeeze(module.blocks(frames).mean(dim=2)))
    assert torch.allclose(module.embed(clip), expected, atol=1e-5)


def test_a_large_map_is_halved_by_the_first_convolution():
    def first_stride(side: int) -> tuple[int, ...]:
        return _build("small_cnn", (3, side, side)).module.stages[0][0].stride

    assert first_stride(127) == (1, 1)
    assert first_stride(128) == (2, 2)
