"""The apps on streams, from the command line: what they print, for whom, and how they end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import yaml
from rich.console import Console

from apps import activity, emotion, spoken_digits
from apps.runtime import Bundle
from apps.streaming import Block, GateRule, Rule, Stream
from apps.streaming.view import LiveView
from mst_edge.cli.apps import app_names
from tests.conftest import ROOT, mst_edge

SOUND_APPS = pytest.mark.parametrize("app", [spoken_digits, emotion], ids=["spoken-digits", "emotion"])


def _burst(seconds, rate):
    """A tone between two halves of near silence."""
    rng = np.random.default_rng(0)
    quiet = rng.normal(0, 1e-4, rate // 2)
    return np.concatenate([quiet, 0.3 * np.sin(np.arange(int(seconds * rate)) * 3000 / rate), quiet, quiet, quiet])


@pytest.fixture
def wav(tmp_path):
    soundfile.write(tmp_path / "x.wav", _burst(2.0, 16000), 16000)
    return tmp_path / "x.wav"


def _json(text):
    return [json.loads(line) for line in text.splitlines()]


def test_packages_beside_the_apps_are_no_apps():
    names = app_names()
    assert {"spoken-digits", "emotion", "activity"} <= set(names)
    assert not {"streaming", "runtime"} & set(names)


@SOUND_APPS
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2)])
def test_sound_of_any_rate_makes_events_and_a_summary(app, listener, tmp_path, capsys, rate, channels):
    soundfile.write(tmp_path / "x.wav", np.repeat(_burst(2.0, rate)[:, None], channels, axis=1), rate)
    assert app.main([str(listener.bundle), str(tmp_path / "x.wav"), "--json", "--threshold", "0.2"]) == 0
    *events, summary = _json(capsys.readouterr().out)
    assert events
    for event in events:
        assert event["type"] == "event"
        assert event["label"] in "0123456789"
        assert 0.2 <= event["confidence"] <= 1
        assert 0.4 <= event["start_s"] < event["end_s"] <= 2.6
        assert event["latency_ms"] >= 0
    assert summary["type"] == "summary"
    assert summary["seconds"] == pytest.approx(4.0, abs=0.01)
    assert 0 < summary["inferred"] < summary["windows"]
    assert summary["inferred"] + summary["gated"] == summary["windows"]
    assert summary["memory_mb"]["peak"] > 0


@SOUND_APPS
def test_a_threshold_of_one_class_leaves_the_others(app, listener, wav, capsys):
    asked = [str(listener.bundle), str(wav), "--json"]
    assert app.main([*asked, "--threshold", "0.2"]) == 0
    told = {record["label"] for record in _json(capsys.readouterr().out)[:-1]}
    raised = [word for label in told for word in ("--threshold", f"{label}=1")]
    assert app.main([*asked, "--threshold", "0.2", *raised]) == 0
    assert not told & {record["label"] for record in _json(capsys.readouterr().out)[:-1]}


def test_people_get_lines_and_notes_apart_from_them(listener, wav):
    done = mst_edge("app", "spoken-digits", listener.bundle, wav, "--threshold", "1")
    assert done.code == 0, done.err
    (line,) = done.out.splitlines()
    assert line.startswith(str(wav))
    assert " ? " in line
    assert "0 events, 1 unknown" in done.err


def test_raw_sound_comes_through_standard_input(listener, capsys, monkeypatch):
    pcm = (_burst(2.0, 16000) * 32767).astype("<i2").tobytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(pcm)))
    arguments = [str(listener.bundle), "-", "--rate", "16000", "--format", "s16", "--json", "--threshold", "1"]
    assert spoken_digits.main(arguments) == 0
    (event, summary) = _json(capsys.readouterr().out)
    assert (event["label"], event["file"]) == ("?", "-")
    assert event["start_s"] == pytest.approx(0.5, abs=0.05)
    assert summary["seconds"] == pytest.approx(4.0, abs=0.01)


def test_a_source_that_fails_is_told_and_the_others_go_on(listener, wav, tmp_path, capsys):
    (tmp_path / "y.wav").write_bytes(b"RIFFnothing")
    assert (
        spoken_digits.main([str(listener.bundle), str(tmp_path / "none.wav"), str(tmp_path / "y.wav"), str(wav)]) == 2
    )
    said = capsys.readouterr()
    assert "none.wav: no such file" in said.err
    assert "y.wav: not a RIFF wave file" in said.err
    assert str(wav) in said.out


def test_an_interrupt_ends_the_stream_with_its_summary(listener, wav, capsys, monkeypatch):
    class Interrupted(io.BytesIO):
        def read1(self, size=-1):
            if self.tell() > 20000:
                raise KeyboardInterrupt
            return super().read1(size)

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Interrupted(bytes(100_000))))
    assert spoken_digits.main([str(listener.bundle), "-", str(wav), "--json"]) == 0
    (summary,) = _json(capsys.readouterr().out)
    assert 0 < summary["seconds"] < 1


def test_silence_says_so_and_costs_nothing(listener, tmp_path, capsys):
    soundfile.write(tmp_path / "x.wav", np.zeros(24000), 8000)
    assert spoken_digits.main([str(listener.bundle), str(tmp_path / "x.wav")]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "x.wav is silent" in said.err
    assert "0 of " in said.err


def test_clipping_and_samples_that_are_no_numbers_are_told_once(listener, tmp_path, capsys):
    sound = (4 * _burst(2.0, 8000)).astype(np.float32)
    sound[9000] = np.nan
    soundfile.write(tmp_path / "x.wav", np.clip(sound, -1, 1), 8000, "FLOAT")
    assert spoken_digits.main([str(listener.bundle), str(tmp_path / "x.wav")]) == 0
    said = capsys.readouterr().err
    assert said.count("lower the gain where it is recorded") == 1
    assert "x.wav: 1 samples were no numbers" in said


def test_a_bundle_that_does_not_listen_is_refused(finished_run, listener, wav, tmp_path, capsys):
    done = mst_edge("app", "emotion", finished_run / "bundles" / "cpu", wav)
    assert (done.code, done.out) == (2, "")
    assert "its student reads sequence, not sound" in done.err
    done = mst_edge("app", "spoken-digits", listener.bundle, wav, "--threshold", "ten=0.5")
    assert done.code == 2
    assert "--threshold: no class 'ten'" in done.err


def test_the_apps_import_neither_torch_nor_anything_of_training(listener, wav):
    code = (
        "import sys; from apps import activity, emotion, spoken_digits\n"
        f"assert spoken_digits.main([{str(listener.bundle)!r}, {str(wav)!r}, '--threshold', '0.2']) == 0\n"
        "assert not {'torch', 'sklearn', 'scipy', 'pydantic', 'typer', 'rich', 'soundfile'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_the_live_view_shows_level_probabilities_and_events(listener):
    console = Console(file=io.StringIO(), width=100, force_terminal=True, legacy_windows=False)
    with Bundle.open(listener.bundle) as bundle, LiveView(console) as view:
        stream = Stream(bundle, rule=Rule(threshold=0.2), gate=GateRule())
        view.begin("paper", stream)
        for step in stream.push(Block(_burst(2.0, 8000).astype(np.float32))):
            view.show(step, stream)
        console.print(view.picture(step, stream))
    said = console.file.getvalue()
    assert "dBFS" in said
    assert "% " in said
    assert "ms later" in said
    assert "windows inferred" in said


@pytest.fixture(scope="module")
def sensors(tmp_path_factory):
    """A student trained on rows of six values at 50 Hz: synthetic still, walking and shaking; through plain arrays."""
    folder = tmp_path_factory.mktemp("sensors")
    data = folder / "data"
    data.mkdir()
    target = np.arange(180) % 3
    rng = np.random.default_rng(0)
    np.save(data / "motion.npy", np.stack([_moved(label, 50, rng) for label in target]))
    np.save(data / "target.npy", target)
    about = {"classes": list(MOVES), "modalities": {"motion": {"kind": "sequence", "sample_rate_hz": 50}}}
    (data / "dataset.yaml").write_text(yaml.safe_dump(about))
    recipe = {
        "name": "activity",
        "dataset": {"path": str(data)},
        "student": {"modality": "motion", "network": "tcn", "options": {"width": 0.25}, "hop": 10},
        "distill": {"method": "lone", "compare": [], "batch_size": 16, "epochs": {"collaborate": 1, "distill": 14}},
        "quantize": {"schemes": []},
        "measure": {"runtimes": ["onnxruntime"], "min_runs": 20, "min_seconds": 0.05},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = mst_edge("run", folder / "r.yaml", "--out", folder / "out")
    assert done.code == 0, done.err
    return folder / "out" / "bundles" / "cpu"


MOVES = {"still": (0.0, 0.0), "walking": (2.0, 0.5), "shaking": (6.0, 2.0)}  # Hz and g


def _moved(label, rows, rng):
    hertz, strength = list(MOVES.values())[label]
    time = np.arange(rows)[:, None] / 50 + rng.uniform()
    swing = strength * np.sin(2 * np.pi * hertz * time + np.arange(6))
    return (swing + np.eye(6)[2] + rng.normal(0, 0.05, (rows, 6))).astype(np.float32)


def _csv(*labels):
    rng = np.random.default_rng(1)
    rows = np.concatenate([_moved(label, 250, rng) for label in labels])
    lines = [f"{number / 50},{','.join(f'{value:.4f}' for value in row)}" for number, row in enumerate(rows)]
    return "\n".join(["time,ax,ay,az,gx,gy,gz", *lines]) + "\n"


def test_activities_are_told_when_they_change(sensors, tmp_path, capsys):
    (tmp_path / "x.csv").write_text(_csv(0, 1, 2, 1))
    with Bundle.open(sensors) as bundle:
        assert (bundle.manifest.input.hop, bundle.manifest.input.sample_rate_hz) == (10, 50)
    assert activity.main([str(sensors), str(tmp_path / "x.csv"), "--skip-columns", "1", "--json"]) == 0
    *events, summary = _json(capsys.readouterr().out)
    assert [event["label"] for event in events] == ["still", "walking", "shaking", "walking"]
    for event, change in zip(events, (0, 5, 10, 15), strict=True):
        assert change <= event["end_s"] <= change + 2.5
    assert (summary["windows"], summary["inferred"]) == (96, 96)
    assert summary["seconds"] == pytest.approx(20)


def test_rows_come_through_standard_input_and_odd_ones_are_told(sensors, capsys, monkeypatch):
    text = _csv(1).replace("\n", "\n?,?\n", 5)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert activity.main([str(sensors), "-", "--skip-columns", "1"]) == 0
    said = capsys.readouterr()
    assert "walking" in said.out
    assert "5 lines were no rows of numbers" in said.err


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("1,2,3\n", [], "line 1 has 3 values, the student reads 6"),
        (None, [], "no such file"),
        ("", ["--rate", "100"], "the student reads 50 rows per second, not 100"),
    ],
)
def test_rows_that_do_not_fit_are_told(sensors, tmp_path, text, more, says):
    if text is not None:
        (tmp_path / "x.csv").write_text(text)
    done = mst_edge("app", "activity", sensors, tmp_path / "x.csv", *more)
    assert done.code == 2
    assert says in done.err


@pytest.mark.parametrize(
    ("student", "says"),
    [
        ({"modality": "signal", "hop": 41}, "student.hop: 41 is more than a window, 40"),
        ({"modality": "facts", "hop": 4}, "student.hop: no windows are cut from vector facts"),
        ({"modality": "signal", "hop": 0}, "student.hop: Input should be greater than or equal to 1"),
    ],
)
def test_a_hop_that_does_not_fit_is_told_before_anything_runs(finished_run, tmp_path, student, says):
    recipe = {"name": "x", "dataset": {"path": str(finished_run.parent / "data")}, "student": student}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = mst_edge("run", tmp_path / "r.yaml", "--out", tmp_path / "out", "--dry-run")
    assert done.code == 2
    assert says in done.err
