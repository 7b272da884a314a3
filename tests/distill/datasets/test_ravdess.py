"""RAVDESS: the real files where they are, and small files of the public layout made on the spot."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.datasets.builder import build_dataset
from distill.datasets.library.ravdess import RavdessOptions
from distill.datasets.raw import ravdess
from distill.datasets.splits import SplitRule, split_dataset
from mst_edge.core.errors import UserError
from tests.conftest import mst_edge

ACTORS = (1, 2, 3)
CLIPS = ravdess.clips_of(ACTORS)
SHORT = RavdessOptions(seconds=0.2, actors=ACTORS)
AUDIO = "ravdess/Audio_Speech_Actors_01-24"
FACE = "ravdess/FacialTracking_Actors_01-24"


def write_raw(root: Path, rate_hz: int = 48000) -> Path:
    """The public layout: 180 short wav files of 3 actors (one in stereo) and OpenFace tables of 4 frames."""
    rng = np.random.default_rng(0)
    (root / FACE).mkdir(parents=True)
    for number, clip in enumerate(CLIPS):
        folder = root / AUDIO / f"Actor_{clip.actor:02}"
        folder.mkdir(parents=True, exist_ok=True)
        wave = np.zeros(rate_hz // 2)
        wave[: rate_hz // 10] = 0.1 * np.sin(2 * np.pi * (300 + 50 * clip.emotion) * np.arange(rate_hz // 10) / rate_hz)
        stereo = np.stack([wave, wave], axis=1)
        soundfile.write(folder / f"{clip.audio}.wav", stereo if number == 0 else wave, rate_hz, subtype="PCM_16")
        write_table(root / FACE / f"{clip.video}.csv", rng.uniform(0, 1, (3, 35)))
    return root


def write_table(path: Path, frames: np.ndarray) -> None:
    """As OpenFace writes it: blanks before names, and a frame without a face at the end."""
    lines = ["frame, face_id, success, " + ", ".join(ravdess.ACTION_UNITS)]
    lines += [f"{number}, 0, 1, " + ", ".join(f"{v:.6f}" for v in row) for number, row in enumerate(frames, 1)]
    path.write_text("\n".join([*lines, "9, 0, 0, " + ", ".join(["5.0"] * 35)]), encoding="utf-8")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("ravdess") / "raw")


@pytest.fixture
def raw(template, tmp_path):
    """A copy that a test may harm."""
    return shutil.copytree(template, tmp_path / "raw")


@pytest.fixture(scope="module")
def real(real_data):
    if not (real_data / "ravdess").is_dir():
        pytest.skip("no RAVDESS: run `mst-edge data fetch ravdess`")
    return build_dataset("ravdess", RavdessOptions(), SplitRule(), real_data)


def test_the_real_clips_are_all_there_and_paired_by_performance(real):
    assert real.modalities["audio"].shape == (48000,)
    assert real.modalities["audio"].sample_rate_hz == 16000
    assert real.modalities["face"].shape == (35,)
    assert real.classes == ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
    assert np.bincount(real.target).tolist() == [96] + [192] * 7
    assert np.bincount(real.groups["actor"]).tolist() == [0] + [60] * 24
    units = np.asarray(real.arrays["face"])
    assert units[:, :17].max() > 1 >= units[:, 17:].max()


def test_the_real_faces_belong_to_the_real_voices(real, real_data):
    with np.load(real_data / "ravdess" / "face_action_units.npz") as held:
        rows = {Path(str(name)).stem: row for name, row in zip(held["audio_file"], held["au"], strict=True)}
    for row, clip in list(enumerate(ravdess.clips_of(ravdess.ACTORS)))[::97]:
        assert np.array_equal(real.arrays["face"][row], rows[clip.audio])
        assert (real.target[row], real.groups["actor"][row]) == (clip.emotion, clip.actor)


def test_the_crop_of_real_clips_keeps_their_speech(real, real_data):
    """At the default length at least 99 % of each clip's energy is inside."""
    clips = ravdess.clips_of(ravdess.ACTORS)
    path = ravdess.AUDIO.locate(real_data, "")
    for row, (pcm, rate) in enumerate(ravdess.read_speech(path, clips, 16000)):
        if row % 9 == 0:
            assert rate == 16000
            kept = np.sum(np.asarray(real.arrays["audio"][row], dtype=np.float64) ** 2)
            assert kept >= 0.99 * np.sum(pcm.astype(np.float64) ** 2)


def test_no_real_actor_is_in_two_splits_but_the_references_protocol_leaks(real, real_data):
    def actors(dataset):
        return [set(dataset.groups["actor"][ids].tolist()) for ids in split_dataset(dataset, SplitRule()).values()]

    train, val, test = actors(real)
    assert not train & val
    assert not train & test
    assert not val & test
    leaking = actors(build_dataset("ravdess", RavdessOptions(), SplitRule(3, by="reference"), real_data))
    assert leaking[0] & leaking[2]


def test_the_real_files_verify(real, real_data):
    done = mst_edge("data", "verify", "ravdess", "--data-root", real_data)
    assert (done.code, done.out.count("ok  ")) == (0, 2), done.err


def test_wav_folders_and_openface_tables_give_the_arrays(raw):
    dataset = build_dataset("ravdess", SHORT, SplitRule(), raw)
    assert dataset.arrays["audio"].shape == (180, 3200)
    assert dataset.arrays["audio"].dtype == np.int16
    # The tone fills the first 0.1 s of 0.5 s; the loudest 0.2 s hold all of it, at its level, at 16 kHz.
    wave = dataset.read("audio", np.array([0, 100]))
    assert np.abs(wave).max() == pytest.approx(0.1, abs=0.01)
    assert np.sum(wave**2, axis=1) == pytest.approx(0.005 * 1600, rel=0.03)
    clip = CLIPS[100]
    spectrum = np.abs(np.fft.rfft(wave[1]))
    assert np.argmax(spectrum) * 5 == pytest.approx(300 + 50 * clip.emotion, abs=10)
    table = (raw / FACE / f"{clip.video}.csv").read_text().splitlines()
    tracked = np.array([[float(value) for value in line.split(",")[3:]] for line in table[1:-1]])
    assert dataset.arrays["face"][100] == pytest.approx(tracked.mean(axis=0), abs=1e-6)


def test_archives_and_folders_give_the_same_arrays_and_no_member_is_unpacked(raw, tmp_path):
    other = tmp_path / "deep" / "root"
    (other / "ravdess").mkdir(parents=True)
    for name in (AUDIO, FACE):
        with zipfile.ZipFile(other / f"{name}.zip", "w") as archive:
            for file in sorted((raw / name).rglob("*.*")):
                # Names that would escape if they were ever used as paths.
                archive.write(file, f"../../escaped/{file.name}")
            archive.writestr("__MACOSX/._03-01-01-01-01-01-01.wav", b"resource fork")
    folders, archives = (build_dataset("ravdess", SHORT, SplitRule(), root) for root in (raw, other))
    assert folders.root != archives.root
    assert folders.fingerprint == archives.fingerprint
    assert not list(tmp_path.rglob("escaped"))


def test_folds_by_actor_test_every_actor_once(raw):
    tested = []
    for seed in range(3):
        dataset = build_dataset("ravdess", SHORT, SplitRule(seed, folds=3), raw)
        ids = split_dataset(dataset, SplitRule())
        tested += sorted(set(dataset.groups["actor"][ids["test"]].tolist()))
        assert {name: len(part) for name, part in ids.items()} == {"train": 60, "val": 60, "test": 60}
    assert sorted(tested) == [1, 2, 3]


def test_a_silent_clip_stays_silent_and_finite(raw):
    file = next((raw / AUDIO).rglob(f"{CLIPS[5].audio}.wav"))
    soundfile.write(file, np.zeros(24000), 48000, subtype="PCM_16")
    dataset = build_dataset("ravdess", SHORT, SplitRule(), raw)
    assert not np.asarray(dataset.arrays["audio"][5]).any()


def _first(raw, suffix="wav"):
    stem = CLIPS[7].audio if suffix == "wav" else CLIPS[7].video
    return next(raw.rglob(f"{stem}.{suffix}"))


def _cut_wav(raw):
    content = _first(raw).read_bytes()
    _first(raw).write_bytes(content[: len(content) // 2])


def _cut_flac(raw):
    soundfile.write(_first(raw).with_suffix(".flac"), np.random.default_rng(0).normal(0, 0.1, 48000), 48000)
    _first(raw).unlink()
    file = next(raw.rglob(f"{CLIPS[7].audio}.flac"))
    file.write_bytes(file.read_bytes()[:20000])


def _scramble_table(raw):
    _first(raw, "csv").write_text(_first(raw, "csv").read_text().replace("\n2, 0, 1", "\n2, 0, x"))


def _no_face(raw):
    write_table(_first(raw, "csv"), np.zeros((0, 35)))


def _out_of_range(raw):
    write_table(_first(raw, "csv"), np.full((2, 35), 1.5))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda raw: _first(raw).unlink(), rf"lacks 1 clips \({CLIPS[7].audio}\)"),
        (lambda raw: _first(raw, "csv").unlink(), rf"lacks 1 tables \({CLIPS[7].video}\)"),
        (_cut_wav, rf"{CLIPS[7].audio}\.wav: is cut off"),
        (_cut_flac, rf"{CLIPS[7].audio}\.flac: (is cut off|cannot be decoded)"),
        (lambda raw: _first(raw).write_bytes(b"noise"), rf"{CLIPS[7].audio}\.wav: cannot be decoded"),
        (lambda raw: soundfile.write(_first(raw), np.zeros(80), 8000), "is sampled at 8000 Hz, at least 16000"),
        (lambda raw: _first(raw, "csv").write_text("frame, success\n1, 1\n"), "lacks 35 columns"),
        (lambda raw: _first(raw, "csv").write_bytes(b""), "lacks 35 columns"),
        (_scramble_table, rf"{CLIPS[7].video}\.csv:3: not a row of numbers"),
        (_no_face, "no frame has a tracked face"),
        (_out_of_range, rf"AU01_c of clip {CLIPS[7].video} is 1.5, expected 0..1"),
    ],
)
def test_what_is_missing_or_malformed_is_named(raw, harm, says):
    harm(raw)
    with pytest.raises(UserError, match=says):
        build_dataset("ravdess", SHORT, SplitRule(), raw)


def _npz(root, **changes):
    rows = {
        "au": np.zeros((180, 35), np.float32),
        "names": np.array(ravdess.ACTION_UNITS),
        "audio_file": np.array([f"{clip.audio}.flac" for clip in CLIPS]),
        "emotion": np.array([clip.emotion for clip in CLIPS]),
    }
    np.savez(root / "ravdess" / "face_action_units.npz", **{**rows, **changes})
    return root


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"emotion": np.zeros(180)}, "row 12 says emotion 0.0 of clip 03-01-02-"),
        ({"names": np.array(["AU99_r"] * 35)}, "lacks 35 action units"),
        ({"au": np.zeros((179, 35), np.float32)}, "au has shape"),
        ({"au": np.full((180, 35), np.nan, np.float32)}, "AU01_r of clip .* is nan, expected 0..5"),
        ({"audio_file": np.array(["x.flac"] * 180)}, "lacks 180 clips .03-.*, ...."),
    ],
)
def test_a_malformed_npz_of_action_units_is_told(raw, changes, says):
    with pytest.raises(UserError, match=says):
        build_dataset("ravdess", SHORT, SplitRule(), _npz(raw, **changes))


def test_verify_names_what_a_small_copy_lacks(raw):
    done = mst_edge("data", "verify", "ravdess", "--data-root", raw)
    assert done.code == 2
    assert "lacks 1260 clips (03-01-01-01-01-01-04, " in done.out
    assert "lacks 1260 tables (01-01-01-01-01-01-04, " in done.out


@pytest.mark.parametrize(("options", "says"), [({"seconds": 0}, "seconds must be"), ({"actors": (25,)}, "no actor 25")])
def test_options_out_of_range_are_told(options, says):
    with pytest.raises(UserError, match=says):
        RavdessOptions(**options)
