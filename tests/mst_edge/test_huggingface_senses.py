"""Models of Hugging Face that see and hear, end to end and offline: from a teacher to a bundle that reads files."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from apps.runtime import Bundle
from apps.runtime.inputs import read_sample
from distill.student import load_student
from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from tests.conftest import mst_edge
from tests.huggingface_models import PICTURES, RESNET, SOUNDS, VIT, WAV2VEC2, write_model
from tests.mst_edge.test_huggingface_run import checked

pytest.importorskip("transformers")
CLASSES = np.arange(90) % 3


def _photos():
    """A bright stripe in the colour and at the place of its class."""
    x = np.random.default_rng(0).integers(0, 80, (90, 32, 32, 3)).astype(np.uint8)
    for photo, number in zip(x, CLASSES, strict=True):
        photo[4 + 8 * number : 12 + 8 * number, 4:28, number] += 150
    return x


def _tones():
    """A tone of its class's pitch, at 16 kHz."""
    rng = np.random.default_rng(0)
    angles = 2 * np.pi * np.array([300, 900, 2500])[CLASSES][:, None] * np.arange(1600) / 16000
    return (0.2 * np.sin(angles + rng.uniform(0, 6, (90, 1))) + rng.normal(0, 0.02, (90, 1600))).astype(np.float32)


def _recipe(folder, kind):
    """Data, two models and a recipe: a ResNet teaches a ViT, a wav2vec 2 a smaller one."""
    (folder / "data").mkdir()
    np.save(folder / "data" / "target.npy", CLASSES)
    if kind == "image":
        np.save(folder / "data" / "x.npy", _photos())
        write_model(folder / "student", VIT, processor=PICTURES)
        write_model(folder / "teacher", RESNET, processor={**PICTURES, "image_mean": [0.5] * 3})
        modality, options = {}, {}
    else:
        np.save(folder / "data" / "x.npy", _tones())
        (folder / "data" / "dataset.yaml").write_text("modalities: {x: {kind: audio, sample_rate_hz: 16000}}")
        write_model(folder / "student", WAV2VEC2, processor=SOUNDS)
        write_model(folder / "teacher", {**WAV2VEC2, "num_hidden_layers": 2}, processor=SOUNDS)
        modality, options = {"features": "raw"}, {"checkpointing": True}
    recipe = {
        "name": "senses",
        "dataset": {"path": "data"},
        "modalities": {"x": modality},
        "student": {"modality": "x", "network": "hf:student", "options": options},
        "teachers": {"unimodal": {"network": "hf:teacher"}},
        "distill": {
            "method": "kd",
            "compare": [],
            "epochs": {"collaborate": 2, "distill": 3},
            "batch_size": 8,
            "optimizer": {"lr": 0.003},
        },
        "quantize": {"schemes": ["int8-dynamic"], "sensitivity": False},
        "goals": {"accuracy": {"max_relative_drop_percent": 90}, "min_int8_speedup": 0},
        "measure": {"runtimes": ["onnxruntime"], "min_runs": 20, "min_seconds": 0.05},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_bundle_reads_files_as_the_student_does(kind, tmp_path):
    folder = _recipe(tmp_path, kind)
    done = mst_edge("run", folder / "r.yaml", "--out", folder / "out")
    assert done.code == 0, done.err
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["distill"]["models"][-1]["test"]["accuracy"] > 0.9
    raw = np.load(folder / "data" / "x.npy")[:3]
    for number, sample in enumerate(raw):
        if kind == "image":
            Image.fromarray(sample).save(folder / f"{number}.png")
            continue
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes((sample * 32767).astype("<i2").tobytes())
    with torch.no_grad():
        said = load_student(folder / "out" / "distill")(torch.from_numpy(raw)).argmax(dim=1).tolist()
    names = result["data"]["classes"]
    with Bundle.open(folder / "out" / "bundles" / "cpu") as bundle:
        ending = "png" if kind == "image" else "wav"
        samples = [read_sample(folder / f"{number}.{ending}", bundle.manifest.input) for number in range(3)]
        assert [names.index(bundle.predict(sample.array).label) for sample in samples] == said == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "file", "change", "says"),
    [
        ("image", "student", {"size": 64}, "student.network: pictures of 32 x 32, but * was trained on 64 x 64"),
        ("image", "teacher", {"size": 64}, "teachers.unimodal.network: pictures of 32 x 32, but * was trained on 64 x"),
        (
            "audio",
            "student",
            {"sampling_rate": 8000},
            "student.network: sounds at 16000 Hz, but * was trained at 8000 H",
        ),
        (
            "audio",
            "teacher",
            {"sampling_rate": 8000},
            "teachers.unimodal.network: sounds at 16000 Hz, but * was trained",
        ),
    ],
)
def test_processors_that_do_not_fit_are_told_before_training(tmp_path, kind, file, change, says):
    folder = _recipe(tmp_path, kind)
    about = folder / file / "preprocessor_config.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **change}))
    with pytest.raises(UserError) as raised:
        checked(load_recipe(folder / "r.yaml"), folder / "out")
    first, _, second = says.partition(" * ")
    assert first in str(raised.value)
    assert second in str(raised.value)
    assert not (folder / "out").exists()


def test_options_of_a_spectrogram_are_none_of_a_raw_waveform(tmp_path):
    folder = _recipe(tmp_path, "audio")
    with pytest.raises(UserError, match=r"modalities\.x: unknown option 'mels'"):
        checked(load_recipe(folder / "r.yaml", ["modalities.x.mels=20"]), folder / "out")
    with pytest.raises(UserError, match="wav2vec2|a waveform has one channel; of sounds, set features: raw"):
        checked(load_recipe(folder / "r.yaml", ["modalities.x={}"]), folder / "out")
