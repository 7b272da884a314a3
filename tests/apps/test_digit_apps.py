"""The digit apps on bundles of really trained (if hardly trained) students."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from apps.runtime.audio import Waveform
from apps.spoken_digits import find_words
from tests.conftest import mst_edge

RECIPE = {
    "name": "digits",
    "dataset": {"name": "av_digits", "options": {"pairs": 300, "snr_db": [10, 20], "image_noise": 0.1}},
    "distill": {"method": "lone", "compare": [], "epochs": {"collaborate": 2, "distill": 6}},
    "quantize": {"schemes": []},
    "measure": {"min_runs": 20, "min_seconds": 0.05},
}


def _trained(folder, modality):
    recipe = {**RECIPE, "student": {"modality": modality, "options": {"width": 0.5}}}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = mst_edge("run", folder / "r.yaml", "--out", folder / "out")
    assert done.code == 0, done.err
    return folder / "out" / "bundles" / "cpu"


@pytest.fixture(scope="module")
def ear(tmp_path_factory):
    return _trained(tmp_path_factory.mktemp("ear"), "audio")


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    return _trained(tmp_path_factory.mktemp("eye"), "image")


def _tone(seconds: float, rate: int, level: float = 0.3) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return level * np.sin(2 * np.pi * 440 * time) * np.sin(np.pi * time / seconds)


@pytest.mark.parametrize(
    ("rate", "channels", "seconds"),
    [(8000, 1, 0.3), (8000, 1, 1.0), (44100, 2, 0.6), (48000, 1, 4.0), (16000, 2, 0.02)],
)
def test_any_rate_channel_count_and_length_is_recognised(ear, tmp_path, rate, channels, seconds):
    sound = np.repeat(_tone(seconds, rate)[:, None], channels, axis=1)
    soundfile.write(tmp_path / "x.wav", sound, rate)
    done = mst_edge("app", "spoken-digits", ear, tmp_path / "x.wav", "--json")
    assert done.code == 0, done.err
    (line,) = done.out.splitlines()
    heard = json.loads(line)
    assert heard["label"] in "0123456789"
    assert 0 < heard["confidence"] <= 1
    assert heard["latency_ms"] > 0
    assert 0 <= heard["start_s"] < heard["end_s"] <= seconds + 0.01
    said = mst_edge("predict", ear, tmp_path / "x.wav", "--json")
    assert said.code == 0, said.err


def test_every_word_of_a_long_recording_is_found(ear, tmp_path):
    rng = np.random.default_rng(0)
    track = rng.normal(0, 0.001, 8000 * 6)
    for start in (0.5, 2.0, 3.9):
        track[int(start * 8000) : int(start * 8000) + 3200] += _tone(0.4, 8000)
    soundfile.write(tmp_path / "x.wav", track, 8000)
    done = mst_edge("app", "spoken-digits", ear, tmp_path / "x.wav", "--json")
    heard = [json.loads(line) for line in done.out.splitlines()]
    assert len(heard) == 3
    for word, start in zip(heard, (0.5, 2.0, 3.9), strict=True):
        assert word["start_s"] <= start + 0.1
        assert word["end_s"] >= start + 0.3


def test_silence_is_no_word(ear, tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(20000), 8000)
    done = mst_edge("app", "spoken-digits", ear, tmp_path / "x.wav")
    assert (done.code, done.out) == (0, "")
    assert "x.wav is silent" in done.err


def test_unsure_words_are_marked(ear, tmp_path):
    soundfile.write(tmp_path / "x.wav", _tone(0.5, 8000), 8000)
    done = mst_edge("app", "spoken-digits", ear, tmp_path / "x.wav", "--min-confidence", "1.01")
    assert "  ?  " in done.out


def test_pictures_are_recognised(eye, tmp_path):
    page = np.full((90, 70), 220, np.uint8)
    page[20:70, 30:38] = 20
    Image.fromarray(page).save(tmp_path / "one.png")
    for more in ((), ("--as-is",)):
        done = mst_edge("app", "digits-camera", eye, tmp_path / "one.png", "--json", *more)
        assert done.code == 0, done.err
        assert json.loads(done.out)["label"] in "0123456789"


@pytest.mark.parametrize(("app", "bundle"), [("spoken-digits", "ear"), ("digits-camera", "eye")])
def test_files_that_are_not_there_are_told(app, bundle, request, tmp_path):
    done = mst_edge("app", app, request.getfixturevalue(bundle), tmp_path / "none.wav")
    assert done.code == 2
    assert "none.wav: no such file" in done.err


@pytest.mark.parametrize(("app", "bundle"), [("spoken_digits", "ear"), ("digits_camera", "eye")])
def test_the_apps_never_import_torch(app, bundle, request, tmp_path):
    folder = request.getfixturevalue(bundle)
    if bundle == "ear":
        soundfile.write(tmp_path / "x.wav", _tone(0.5, 8000), 8000)
    else:
        Image.new("L", (20, 20), 200).save(tmp_path / "x.wav", format="png")
    code = (
        f"import sys; from apps.{app} import main\n"
        f"assert main([{str(folder)!r}, {str(tmp_path / 'x.wav')!r}]) == 0\n"
        "assert not {'torch', 'sklearn', 'scipy', 'pydantic', 'typer'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_words_closer_than_a_breath_are_one():
    rate = 8000
    track = np.random.default_rng(0).normal(0, 1e-3, 3 * rate).astype(np.float32)
    for start in (0.5, 0.9, 2.0):
        track[int(start * rate) : int((start + 0.2) * rate)] += 0.3
    assert [(round(a / rate, 1), round(b / rate, 1)) for a, b in find_words(Waveform(track, rate), rate)] == [
        (0.5, 1.1),
        (2.0, 2.2),
    ]
