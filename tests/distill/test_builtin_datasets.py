"""The built-in datasets: what they hold, that splits share nothing, and that raw files are read right."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import zipfile

import numpy as np
import pytest

from distill.datasets.arrays import open_arrays
from distill.datasets.assets import synthesize_spoken_digits as script
from distill.datasets.builder import DATASETS, build_dataset
from distill.datasets.library.av_digits import AvDigitsOptions, _speech
from distill.datasets.library.avmnist import AvMnistOptions
from distill.datasets.pairing import mix_at_snr, pair_within_class, place, to_pcm16
from distill.datasets.raw import esc10, fsdd, mnist
from distill.datasets.readers import AudioFiles, read_idx
from distill.datasets.splits import SplitRule, assign, split_dataset
from mst_edge.core.errors import UserError


@pytest.fixture(scope="module")
def av_digits():
    return build_dataset("av_digits", AvDigitsOptions(pairs=1000), SplitRule(seed=3), None)


@pytest.fixture(scope="module")
def avmnist(real_data):
    return build_dataset("avmnist", AvMnistOptions(pairs=600), SplitRule(seed=1), real_data)


def _shared(dataset, grouping):
    ids = split_dataset(dataset, SplitRule())
    owners = [set(dataset.groups[grouping][part].tolist()) for part in ids.values()]
    return (owners[0] & owners[1]) | (owners[0] & owners[2]) | (owners[1] & owners[2])


def test_av_digits_needs_no_download_and_is_balanced(av_digits):
    assert av_digits.modalities["image"].shape == (8, 8)
    assert av_digits.modalities["audio"].shape == (8000,)
    assert av_digits.modalities["audio"].sample_rate_hz == 8000
    ids = split_dataset(av_digits, SplitRule())
    assert {name: len(part) for name, part in ids.items()} == {"train": 600, "val": 200, "test": 200}
    assert av_digits.class_counts(ids["test"]).tolist() == [20] * 10


@pytest.mark.parametrize("grouping", ["image_recording", "audio_recording"])
def test_av_digits_splits_share_no_recording(av_digits, grouping):
    assert not _shared(av_digits, grouping)


def test_av_digits_split_by_speaker_shares_no_speaker():
    dataset = build_dataset("av_digits", AvDigitsOptions(pairs=500), SplitRule(seed=0, by="speaker"), None)
    _, _, speakers = _speech()
    ids = split_dataset(dataset, SplitRule())
    owners = [set(speakers[dataset.groups["audio_recording"][part]].tolist()) for part in ids.values()]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]


def test_a_pair_shares_its_class(av_digits):
    _, digits, _ = _speech()
    assert np.array_equal(digits[av_digits.groups["audio_recording"]], av_digits.target)


def test_the_shipped_speech_is_what_was_promised():
    clips, digits, speakers = _speech()
    assert len(clips) >= 1000
    assert np.bincount(digits).tolist() == [len(clips) // 10] * 10
    assert len(set(speakers.tolist())) >= 100
    assert max(map(len, clips)) <= 8000
    assert (script.Path(script.__file__).parent / "spoken_digits.flac").stat().st_size <= 6_000_000


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_the_script_that_made_the_speech_still_makes_it():
    clips, _, _ = _speech()
    version = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True).stdout
    made = script.synthesize("en-gb+Andy", 169, 80, "zero")
    assert made.max() == 16 * 1843 or made.min() == -16 * 1843
    assert not np.any(made % 16)
    if "1.51" in version:
        assert np.array_equal(made / 32768.0, clips[0])


def test_builds_are_repeatable_and_kept(av_digits, tmp_path):
    again = build_dataset("av_digits", AvDigitsOptions(pairs=1000), SplitRule(seed=3), None)
    assert again.root == av_digits.root
    DATASETS.get("av_digits")().build(
        AvDigitsOptions(pairs=1000), SplitRule(seed=3, by="recording"), None, tmp_path / "x"
    )
    assert open_arrays(tmp_path / "x").fingerprint == av_digits.fingerprint


def test_unknown_groupings_list_the_known():
    with pytest.raises(UserError, match="cannot be split by 'actor'; one of: recording, speaker"):
        build_dataset("av_digits", AvDigitsOptions(), SplitRule(by="actor"), None)


def test_avmnist_has_the_benchmarks_form(avmnist):
    assert avmnist.modalities["image"].shape == (28, 28)
    assert avmnist.modalities["audio"].shape == (8000,)
    ids = split_dataset(avmnist, SplitRule())
    assert avmnist.class_counts(ids["train"]).tolist() == [36] * 10


@pytest.mark.parametrize("grouping", ["image_recording", "audio_recording"])
def test_avmnist_splits_share_no_recording(avmnist, grouping):
    assert not _shared(avmnist, grouping)


def test_avmnist_images_keep_a_quarter_of_the_energy_fitted_on_training_images(avmnist, real_data):
    images, _ = mnist.read_mnist(real_data, "")
    ids = split_dataset(avmnist, SplitRule())
    raw = images[avmnist.groups["image_recording"][ids["train"]]].reshape(len(ids["train"]), -1).astype(float)
    kept = np.asarray(avmnist.arrays["image"][ids["train"]]).reshape(len(raw), -1).astype(float)
    variance = np.linalg.eigvalsh(np.cov(raw.T))[::-1]
    components = int(np.searchsorted(np.cumsum(variance) / variance.sum(), 0.25)) + 1
    # Rounding and clipping to bytes leave a little beyond those components.
    spectrum = np.linalg.eigvalsh(np.cov(kept.T))[::-1]
    assert spectrum[:components].sum() / spectrum.sum() > 0.9
    assert 0.15 < spectrum.sum() / variance.sum() < 0.35


def test_avmnist_by_speaker_shares_no_speaker(real_data):
    dataset = build_dataset("avmnist", AvMnistOptions(pairs=200), SplitRule(by="speaker"), real_data)
    assert not _shared(dataset, "speaker")


def test_avmnist_without_a_data_folder_says_how_to_get_one():
    with pytest.raises(UserError, match="mst-edge data fetch avmnist"):
        build_dataset("avmnist", AvMnistOptions(), SplitRule(), None)


def test_avmnist_names_the_missing_file(tmp_path):
    with pytest.raises(
        UserError, match="train-images-idx3-ubyte.gz: MNIST .* is missing; run `mst-edge data fetch avmnist`"
    ):
        build_dataset("avmnist", AvMnistOptions(), SplitRule(), tmp_path)


def test_real_raw_files_verify(real_data):
    for source in (*mnist.SOURCES, fsdd.SOURCE, esc10.SOURCE):
        source.verify(source.locate(real_data, ""), source.files[0])


def test_options_out_of_range_are_told():
    for make in (
        lambda: AvDigitsOptions(pairs=3),
        lambda: AvMnistOptions(image_energy=0),
        lambda: AvMnistOptions(snr_db=(3, -3)),
    ):
        with pytest.raises(UserError, match=r"dataset\.options"):
            make()


def test_pairs_use_every_recording_about_equally_often():
    target = np.arange(100) % 10
    split = assign(target, None, SplitRule())
    pairs = pair_within_class(target, split, target, split, SplitRule(), 1000)
    counts = np.bincount(pairs.first[pairs.split == 0], minlength=100)[split == 0]
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(target[pairs.first], pairs.target)
    assert np.array_equal(target[pairs.second], pairs.target)
    assert np.array_equal(split[pairs.first], pairs.split)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
def test_noise_is_mixed_at_the_ratio_asked_for(snr_db):
    rng = np.random.default_rng(0)
    speech = np.concatenate([np.zeros(500), rng.normal(0, 0.1, 500)])
    noise = rng.normal(0, 3, 1000)
    added = mix_at_snr(speech, noise, snr_db) - speech
    measured = 10 * np.log10(np.mean(speech[500:] ** 2) / np.mean(added**2))
    assert measured == pytest.approx(snr_db, abs=1e-6)


def test_silence_is_mixed_without_dividing_by_zero():
    assert np.array_equal(mix_at_snr(np.zeros(10), np.ones(10), 0.0), np.zeros(10))
    assert np.array_equal(mix_at_snr(np.ones(10), np.zeros(10), 0.0), np.ones(10))


def test_place_keeps_the_whole_clip_or_cuts_it():
    rng = np.random.default_rng(0)
    out = place(np.ones(30), 100, rng)
    assert (len(out), out.sum()) == (100, 30)
    assert len(place(np.ones(300), 100, rng)) == 100


def test_pcm_is_scaled_down_only_where_it_would_clip():
    assert np.abs(to_pcm16(np.array([0.5, -0.5]))).max() == 16384
    assert np.abs(to_pcm16(np.array([3.0, -1.5]))).max() == round(0.9 * 32767)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not gzip", "not a whole gzip file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"), "header says shape .5.*holds 3"),
        (gzip.compress(b"hello"), "does not start like an idx file"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abcde")[:-6], "not a whole gzip file"),
    ],
)
def test_damaged_idx_files_are_told(tmp_path, content, says):
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_idx(path)


def test_damaged_audio_archives_are_told(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a whole zip"):
        AudioFiles(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.flac", b"not flac")
    with pytest.raises(UserError, match=r"x\.zip:a\.flac: cannot be decoded"):
        AudioFiles(path).read("a")
