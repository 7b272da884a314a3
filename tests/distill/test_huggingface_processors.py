"""What a model's processor decides: the numbers in which pictures and sounds reach own weights, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import frontend_options, make_frontend
from distill.huggingface.processor import own_constants
from distill.networks.registry import NetworkChoice, build_model
from mst_edge.core.errors import UserError
from tests.huggingface_models import MOBILEVIT, PICTURES, REVERSED, SOUNDS, VIT, WAV2VEC2, write_model

pytest.importorskip("transformers")
MEAN, STD = np.array(PICTURES["image_mean"]), np.array(PICTURES["image_std"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "vit", VIT, processor=PICTURES)
    write_model(folder / "mobilevit", MOBILEVIT, processor=REVERSED)
    write_model(folder / "wav2vec2", WAV2VEC2, processor=SOUNDS)
    return folder


def _photo(dtype="uint8", side=32):
    return ModalitySpec("x", Kind.IMAGE, (side, side, 3), dtype)


def _sound(rate=16000):
    return ModalitySpec("x", Kind.AUDIO, (1600,), "float32", rate)


def _front(spec):
    front = make_frontend(spec, frontend_options(spec.kind, {"features": "raw"} if spec.kind is Kind.AUDIO else {})())
    rng = np.random.default_rng(0)
    bytes_ = spec.dtype == "uint8"
    raw = rng.integers(0, 256, (6, *spec.shape)) if bytes_ else rng.uniform(0.1, 0.9, (6, *spec.shape))
    return front, torch.from_numpy(raw.astype(spec.dtype))


def _build(folder, shape, **options):
    return build_model("teacher", NetworkChoice(f"hf:{folder}", options), {"x": shape}, 3, where="teacher").module


def _seen(front, raw, model):
    """What the model's body is given."""
    (value,) = model.reader(front(raw)).values()
    return value.numpy()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("student", [False, True])
def test_pictures_reach_a_model_as_its_processor_makes_them(folders, dtype, student):
    """Whether the front end learned from data, as for a teacher, or took the processor's constants, for a student."""
    front, raw = _front(_photo(dtype))
    if student:
        front.pin(own_constants(front, f"hf:{folders / 'vit'}", {}, "student"))
    front.fit([raw])
    numbers = raw.numpy() / (255 if dtype == "uint8" else 1)
    seen = _seen(front, raw, _build(folders / "vit", front.feature_shape))
    np.testing.assert_allclose(seen, ((numbers - MEAN) / STD).transpose(0, 3, 1, 2), atol=1e-5)
    assert np.array_equal(seen, front(raw).numpy()) == student  # then nothing is left to do inside the network
    reversed_ = _seen(front, raw, _build(folders / "mobilevit", front.feature_shape))
    np.testing.assert_allclose(reversed_, numbers[..., ::-1].transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("normalises", [True, False])
def test_sounds_reach_a_model_as_its_feature_extractor_makes_them(tmp_path, normalises):
    folder = write_model(tmp_path / "m", WAV2VEC2, processor={**SOUNDS, "do_normalize": normalises})
    front, raw = _front(_sound())
    raw = 0.01 * raw  # so soft that the library's epsilon shows
    front.fit([raw])
    seen = _seen(front, raw, _build(folder, front.feature_shape))
    wave = raw.numpy()
    loud = (wave - wave.mean(1, keepdims=True)) / np.sqrt(wave.var(1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(seen, loud if normalises else wave, atol=2e-5)


def test_a_run_keeps_what_the_processor_does(folders):
    front, raw = _front(_photo())
    front.fit([raw])
    model = _build(folders / "vit", front.feature_shape)
    again = _build("gone", (3, 32, 32), **json.loads(json.dumps(model.rebuilt_by)))
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(front(raw)), again.eval()(front(raw)))


def test_a_processor_of_a_joint_file_is_found(folders, tmp_path):
    folder = write_model(tmp_path / "m", VIT)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": PICTURES}))
    front, raw = _front(_photo())
    front.fit([raw])
    seen, wanted = (_seen(front, raw, _build(at, front.feature_shape)) for at in (folder, folders / "vit"))
    assert np.array_equal(seen, wanted)


@pytest.mark.parametrize(
    ("config", "processor", "spec", "options", "says"),
    [
        (VIT, None, _photo(), {}, r"the processor of .* \(preprocessor_config.json\) is missing; write it with save_p"),
        (
            VIT,
            {**PICTURES, "size": 224},
            _photo(),
            {},
            r"pictures of 32 x 32, but .* was trained on 224 x 224; prepare",
        ),
        (MOBILEVIT, REVERSED, _photo(side=64), {}, r"pictures of 64 x 64, but .* was trained on 32 x 32; prepare the"),
        (VIT, PICTURES, _photo(side=64), {}, "pictures of 3 x 64 x 64, but the vit model reads 3 x 32 x 32; prepare"),
        (VIT, {**PICTURES, "do_thumbnail": True}, _photo(), {}, "has the step do_thumbnail, which is not done here"),
        (
            WAV2VEC2,
            SOUNDS,
            _sound(8000),
            {},
            "sounds at 8000 Hz, but .* was trained at 16000 Hz; prepare the sounds at",
        ),
        (WAV2VEC2, {"do_normalize": True}, _sound(), {}, "names no sampling_rate"),
        (VIT, PICTURES, _photo(), {"processor": "mine"}, r"teacher\.options\.processor: unknown processor 'mine'"),
    ],
)
def test_what_a_processor_does_not_fit_is_told(tmp_path, config, processor, spec, options, says):
    folder = write_model(tmp_path / "m", config, processor=processor)
    front, raw = _front(spec)
    front.fit([raw])
    with pytest.raises(UserError, match=says):
        _build(folder, front.feature_shape, **options)


def test_without_a_processor_features_are_read_as_they_are(tmp_path):
    folder = write_model(tmp_path / "m", VIT)
    front, raw = _front(_photo())
    front.fit([raw])
    assert own_constants(front, f"hf:{folder}", {"processor": "none"}, "student") is None
    model = _build(folder, front.feature_shape, processor="none")
    assert np.array_equal(_seen(front, raw, model), front(raw).numpy())


def test_a_log_mel_spectrogram_is_no_picture_of_a_processor(tmp_path):
    folder = write_model(tmp_path / "m", {**VIT, "num_channels": 1, "image_size": [20, 24]}, processor=PICTURES)
    spec = ModalitySpec("x", Kind.AUDIO, (3200,), "float32", 16000)
    front = make_frontend(spec, frontend_options(Kind.AUDIO)(mels=20))
    front.fit([torch.randn(4, 3200)])
    with pytest.raises(UserError, match="a processor's numbers are those of pictures and waveforms"):
        _build(folder, front.feature_shape)
    assert _build(folder, front.feature_shape, processor="none")(front(torch.randn(2, 3200))).shape == (2, 3)
