"""The benchmark's networks: published sizes, the layers that are masked, and what sets each apart."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from distill.masks import probe_layer
from distill.networks.fusenet import pool_with_cells, unpool
from distill.networks.registry import Model, NetworkChoice, build_model
from distill.suffix import split_at
from mst_edge.core.errors import UserError

IMAGE, SPECTROGRAM = (1, 28, 28), (1, 112, 112)
FACES, CEPSTRA = (3, 15, 224, 224), (15, 156)
SCENES, SOUNDS = (512, 10, 7, 7), (10, 128)
PHOTO, TWEET = (2048,), (768,)
COLOUR, DEPTH = (3, 480, 640), (1, 480, 640)
NETWORKS = [
    ("lenet5", {"image": IMAGE}, 10, 61_706),
    ("avmnist_audio_cnn", {"audio": SPECTROGRAM}, 10, 343_562),
    ("avmnist_teacher", {"image": IMAGE, "audio": SPECTROGRAM}, 10, 1_809_752),
    ("ravdess_visual", {"video": FACES}, 8, 6_084_420),
    ("ravdess_audio", {"audio": CEPSTRA}, 8, 575_848),
    ("ravdess_teacher", {"video": FACES, "audio": CEPSTRA}, 8, 6_607_300),
    ("vggsound_visual", {"video": SCENES}, 141, 4_761_549),
    ("vggsound_audio", {"audio": SOUNDS}, 141, 164_797),
    ("vggsound_teacher", {"video": SCENES, "audio": SOUNDS}, 141, 4_851_965),
    ("crisismmd_mlp", {"image": PHOTO}, 8, 2_627_080),
    ("crisismmd_mlp", {"text": TWEET}, 8, 1_316_360),
    ("crisismmd_teacher", {"image": PHOTO, "text": TWEET}, 8, 4_593_416),
    ("segnet", {"colour": COLOUR}, 41, 29_466_665),
    ("segnet", {"depth": DEPTH}, 41, 29_465_513),
    ("fusenet", {"colour": COLOUR, "depth": DEPTH}, 41, 44_188_649),
]


def _without_weights(network: str, shapes: dict[str, tuple[int, ...]], outputs: int) -> Model:
    """On the meta device: shapes and sizes at full scale, in no time and no memory."""
    dense = (480, 640) if network in ("segnet", "fusenet") else None
    with torch.device("meta"):
        choice = NetworkChoice(network)
        return build_model("m", choice, shapes, outputs, where="teachers.multimodal", map_size=dense)


@pytest.mark.parametrize(("network", "shapes", "outputs", "parameters"), NETWORKS)
def test_a_network_has_the_published_size_and_the_tasks_output(network, shapes, outputs, parameters):
    model = _without_weights(network, shapes, outputs)
    assert model.parameters == parameters
    model.module.eval()
    logits = model({name: torch.zeros(2, *shape, device="meta") for name, shape in shapes.items()})
    dense = (480, 640) if network in ("segnet", "fusenet") else ()
    assert logits.shape == (2, outputs, *dense)


@pytest.mark.parametrize(
    ("network", "shapes", "masked"),
    [
        ("lenet5", {"image": IMAGE}, [(120, 1, 1), (84,)]),
        ("avmnist_audio_cnn", {"audio": SPECTROGRAM}, [(64, 56, 56), (128, 28, 28)]),
        ("avmnist_teacher", {"image": IMAGE, "audio": SPECTROGRAM}, [(596,), (298,)]),
        ("ravdess_visual", {"video": FACES}, [(320,), (160,)]),
        ("ravdess_audio", {"audio": CEPSTRA}, [(320,), (160,)]),
        ("ravdess_teacher", {"video": FACES, "audio": CEPSTRA}, [(320,), (160,)]),
        ("vggsound_visual", {"video": SCENES}, [(320,), (160,)]),
        ("vggsound_audio", {"audio": SOUNDS}, [(320,), (160,)]),
        ("vggsound_teacher", {"video": SCENES, "audio": SOUNDS}, [(320,), (160,)]),
        ("crisismmd_mlp", {"image": PHOTO}, [(1024,), (512,)]),
        ("crisismmd_teacher", {"image": PHOTO, "text": TWEET}, [(512,), (256,)]),
        ("segnet", {"depth": DEPTH}, [(512, 30, 40), (512, 30, 40)]),
        ("fusenet", {"colour": COLOUR, "depth": DEPTH}, [(512, 15, 20), (512, 30, 40)]),
    ],
)
def test_the_published_layers_are_masked_by_default(network, shapes, masked):
    model = _without_weights(network, shapes, 8)
    with torch.device("meta"):
        assert [tuple(probe_layer(model, layer, shapes, "x").shape[1:]) for layer in model.maskable] == masked


@pytest.mark.parametrize("name", ["ravdess", "vggsound"])
def test_sound_and_clip_are_told_apart_by_their_axes(name):
    shapes = {"a": (4, 27), "b": (2, 8, 9, 10)}
    there = build_model("m", NetworkChoice(f"{name}_teacher"), shapes, 3, where="t")
    assert there.module.state_dict().keys() == (
        build_model("m", NetworkChoice(f"{name}_teacher"), dict(reversed(shapes.items())), 3, where="t")
        .module.state_dict()
        .keys()
    )
    with pytest.raises(UserError, match="expected sound .* and a clip"):
        build_model("m", NetworkChoice(f"{name}_teacher"), {"a": (4, 27), "b": (4, 27)}, 3, where="t")


def test_the_sound_comes_first_in_what_the_head_reads():
    torch.manual_seed(0)
    model = build_model("m", NetworkChoice("ravdess_teacher"), {"v": (2, 8, 9, 10), "a": (4, 27)}, 3, where="t")
    model.module.eval()
    seen = []
    model.module.hidden1.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    sound = torch.randn(1, 4, 27)
    for clip in torch.randn(2, 1, 2, 8, 9, 10):
        model({"v": clip, "a": sound})
    same = (seen[0] == seen[1]).squeeze()
    assert len(same) == 256 + 24
    assert same[:256].all()
    assert not same[256:].all()


def test_pooling_and_unpooling_are_torchs_own():
    x = torch.relu(torch.randn(3, 5, 6, 8))  # many windows of zeros alone: the first cell of equals counts
    pooled, cells = pool_with_cells(x)
    expected, places = functional.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(pooled, expected)
    values = torch.randn_like(pooled)
    assert torch.equal(unpool(values, cells), functional.max_unpool2d(values, places, 2))


def _small_fusenet() -> Model:
    torch.manual_seed(0)
    shapes = {"photo": (3, 32, 64), "depth": (1, 32, 64)}
    model = build_model("m", NetworkChoice("fusenet", {"width": 0.02}), shapes, 5, where="t", map_size=(32, 64))
    model.module.eval()
    return model


def test_fusenet_takes_the_mean_of_both_streams_and_leaves_depth_alone():
    model = _small_fusenet()
    module = model.module
    photo, depth = torch.randn(2, 3, 32, 64), torch.randn(2, 1, 32, 64)
    seen = {}
    for name in ("colour", "depth"):
        getattr(module, name)[1].register_forward_pre_hook(lambda _m, i, name=name: seen.update({name: i[0]}))
    model({"photo": photo, "depth": depth})
    from_colour, from_depth = module.colour[0](photo), module.depth[0](depth)
    assert torch.allclose(seen["colour"], functional.max_pool2d((from_colour + from_depth) / 2, 2))
    assert torch.allclose(seen["depth"], functional.max_pool2d(from_depth, 2))


def test_fusenet_is_split_at_a_masked_layer_for_cached_prefixes():
    model = _small_fusenet()
    inputs = {"photo": torch.randn(2, 3, 32, 64), "depth": torch.randn(2, 1, 32, 64)}
    for layer in model.maskable:
        split = split_at(model, layer)
        assert split is not None
        _, kept = split.before(inputs)
        assert torch.allclose(split.after(split.part(kept)), model(inputs), atol=1e-6)


def test_dense_networks_start_with_signals_of_one_size_through_all_stages():
    torch.manual_seed(0)
    choice, shapes = NetworkChoice("segnet", {"width": 0.1}), {"x": (3, 32, 32)}
    module = build_model("m", choice, shapes, 41, where="t", map_size=(32, 32)).module
    spread = module.decoder.logits.weight.std().item()
    assert spread == pytest.approx((2 / (9 * 8 + 9 * 41)) ** 0.5, rel=0.1)  # Xavier, not the reference's 0.02 of it
    deep = module.encoder[4][0]
    assert deep.weight.std().item() == pytest.approx((2 / (9 * deep.in_channels)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("network", "shapes", "says"),
    [
        ("segnet", {"x": (3, 48, 64)}, "multiples of 32, received 48 x 64"),
        ("fusenet", {"x": (3, 32, 32), "y": (3, 32, 32)}, "a depth map of one channel"),
        ("fusenet", {"x": (3, 32, 32), "y": (1, 32, 64)}, "of the same height and width"),
        ("ravdess_visual", {"x": (3, 4, 64, 64)}, "its poolings leave nothing"),
        ("crisismmd_mlp", {"x": (3, 40)}, "crisismmd_mlp cannot read"),
    ],
)
def test_what_does_not_fit_is_told(network, shapes, says):
    with pytest.raises(UserError, match=says):
        build_model("m", NetworkChoice(network), shapes, 5, where="student")
