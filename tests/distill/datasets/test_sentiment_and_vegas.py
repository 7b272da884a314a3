"""CMU-MOSI, CMU-MOSEI and VEGAS on small files of the published layouts, made on the spot."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from distill.datasets.arrays import open_arrays
from distill.datasets.builder import DATASETS
from distill.datasets.splits import SplitRule, split_dataset
from mst_edge.core.errors import UserError
from tests.conftest import ROOT, mst_edge
from tests.opinions import make_opinions

h5py = pytest.importorskip("h5py")
COUNTS = {"train": 40, "valid": 12, "test": 16}


def write_mosi(root, name="cmu_mosi", lengths=True):
    """Utterances of videos v0, v1, ..., six of each: vision (12, 5), audio (7, 3)."""
    (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    with h5py.File(root / name / f"{name}.h5", "w") as file:
        for number, (part, count) in enumerate(COUNTS.items()):
            texts, video, labels, _ = make_opinions(count, seed=number)
            group = file.create_group(part)
            group.create_dataset("raw_text", data=list(map(str, texts)), dtype=h5py.string_dtype())
            group.create_dataset(
                "id", data=[f"{part}v{k // 6}$_${k % 6}" for k in range(count)], dtype=h5py.string_dtype()
            )
            group["vision"], group["audio"] = video, rng.normal(size=(count, 7, 3)).astype(np.float32)
            group["regression_labels"] = labels
            if lengths:
                group["vision_lengths"], group["audio_lengths"] = np.full(count, 12), np.full(count, 5)
    return root


def write_vegas(root, per_class=(6, 3)):
    (root / "vegas").mkdir(parents=True)
    rng = np.random.default_rng(0)
    means = {"visual": rng.normal(size=(10, 1024)), "audio": rng.normal(size=(10, 128))}
    with h5py.File(root / "vegas" / "vegas_feature.h5", "w") as file:
        for part, count in zip(("train", "test"), per_class, strict=True):
            labels = np.repeat(np.arange(10), count)
            for name, centre in means.items():
                file[f"{name}_{part}"] = centre[labels] + rng.normal(size=(len(labels), centre.shape[1]))
            file[f"lab_{part}"] = labels.astype(np.float64)  # as people find it
    return root


def write_csd(root):
    """As the SDK publishes them: videos a to d, utterances of 2 s each, words of half a second, faces at 4 Hz."""
    folder = root / "cmu_mosi" / "csd"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    counts = {"a": 3, "b": 2, "c": 2, "d": 1}

    def write(name, root_name, rows_of):
        with h5py.File(folder / f"{name}.csd", "w") as file:
            for video, count in counts.items():
                features, step_s = rows_of(video, count)
                starts = np.arange(len(features)) * step_s
                group = file.create_group(f"{root_name}/data/{video}")
                group["features"], group["intervals"] = features, np.stack([starts, starts + step_s], axis=1)

    words = {video: np.array([[b"sp" if k % 4 == 3 else f"{video}{k}".encode()] for k in range(4 * n)], "S8")
             for video, n in counts.items()}  # fmt: skip
    faces = {video: rng.normal(size=(8 * n, 3)).astype(np.float32) for video, n in counts.items()}
    voices = {video: rng.normal(size=(2 * n, 2)).astype(np.float32) for video, n in counts.items()}
    voices["a"][1, 0] = -np.inf
    labels = {video: rng.uniform(-3, 3, (n, 1)).astype(np.float32) for video, n in counts.items()}
    write("CMU_MOSI_Opinion_Labels", "Opinion Segment Labels", lambda v, n: (labels[v], 2.0))
    write("CMU_MOSI_TimestampedWords", "words", lambda v, n: (words[v], 0.5))
    write("CMU_MOSI_Visual_Facet_42", "FACET_4.2", lambda v, n: (faces[v], 0.25))
    write("CMU_MOSI_COVAREP", "COVAREP", lambda v, n: (voices[v], 1.0))
    (folder / "cmu_mosi_std_folds.py").write_text(
        "standard_train_fold = ['a']\nstandard_valid_fold=['b']\nstandard_test_fold = ['c', 'z']\n"
    )
    return root, labels, faces, voices


def build(name, root, out, options=None, **rule):
    builder = DATASETS.get(name)()
    builder.build(builder.Options(**options or {}), SplitRule(**{"by": "official", **rule}), root, out)
    return yaml.safe_load((out / "dataset.yaml").read_text()), {f.stem: np.load(f) for f in out.glob("*.npy")}


def test_utterances_keep_their_split_their_words_and_their_scale(tmp_path):
    about, arrays = build("cmu_mosi", write_mosi(tmp_path / "raw"), tmp_path / "d")
    assert about["ordinal"] == [-3, -2, -1, 0, 1, 2, 3]
    assert np.bincount(arrays["split"]).tolist() == list(COUNTS.values())
    texts, video, labels, _ = make_opinions(16, seed=2)
    assert arrays["text"][-16:].tolist() == texts.tolist()
    assert np.array_equal(arrays["vision"][-16:], video)
    assert np.array_equal(arrays["target"][-16:], labels)
    assert arrays["audio"].shape == (68, 7, 3)
    assert arrays["video"][41] == "validv0"
    dataset = open_arrays(tmp_path / "d")
    assert {name: spec.kind.value for name, spec in dataset.modalities.items()} == {
        "text": "text", "vision": "sequence", "audio": "sequence",
    }  # fmt: skip


def test_videos_are_not_parted_where_the_official_split_is_not_wanted(tmp_path):
    build("cmu_mosei", write_mosi(tmp_path / "raw", "cmu_mosei", lengths=False), tmp_path / "d", by="video", seed=1)
    dataset = open_arrays(tmp_path / "d")
    homes = {name: set(dataset.groups["video"][ids]) for name, ids in split_dataset(dataset, SplitRule()).items()}
    assert all(homes.values())
    assert sum(map(len, homes.values())) == len(set.union(*homes.values()))


def _change(name, change):
    def apply(root):
        with h5py.File(root / "cmu_mosi" / "cmu_mosi.h5", "r+") as file:
            array = file[name][()]
            del file[name]
            file[name] = change(array)

    return apply


def _with(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _change("valid/regression_labels", _with(3, 3.4)),
            r"label 3\.4 of utterance 3 of valid is out of the ordinal range -3\.\.3",
        ),
        (_change("train/regression_labels", _with(0, np.nan)), r"label nan of utterance 0 of train is out of"),
        (_change("test/vision_lengths", _with(2, 0)), r"vision of utterance 2 of test has 0 frames, expected 1\.\.12"),
        (_change("test/audio_lengths", _with(2, 8)), r"audio of utterance 2 of test has 8 frames, expected 1\.\.7"),
        (_change("train/vision", lambda a: a[:, :0]), r"train/vision has frames of shape \(0, 5\)"),
        (_change("train/vision", lambda a: a[:-1]), r"train/vision holds 39 utterances, regression_labels 40"),
        (_change("test/audio", lambda a: a[:, :4]), r"audio of utterance 0 of test has 5 frames, expected 1\.\.4"),
        (_change("test/vision", _with((1, 2, 3), np.inf)), r"test/vision of sample 1 holds NaN or infinity"),
        (_change("train/raw_text", lambda a: np.zeros(40)), r"row 0 of train/raw_text is no string"),
    ],
)
def test_bad_utterances_are_named(tmp_path, spoil, message):
    root = write_mosi(tmp_path / "raw")
    spoil(root)
    with pytest.raises(UserError, match=message):
        build("cmu_mosi", root, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_parts_of_unequal_sequences_are_refused(tmp_path):
    root = write_mosi(tmp_path / "raw", lengths=False)
    _change("test/audio", lambda a: a[:, :4])(root)
    with pytest.raises(UserError, match=r"frames of test are .*'audio': \(4, 3\).*, of train .*'audio': \(7, 3\)"):
        build("cmu_mosi", root, tmp_path / "d")


def test_a_pickle_is_refused_with_the_reason_and_never_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_read"), "w"))

    (tmp_path / "raw" / "cmu_mosi").mkdir(parents=True)
    (tmp_path / "raw" / "cmu_mosi" / "unaligned_50.pkl").write_bytes(pickle.dumps(Trap()))
    done = mst_edge("data", "verify", "cmu_mosi", "--data-root", tmp_path / "raw")
    assert done.code == 2
    assert "is a pickle, which runs whatever code its author put in" in done.out
    assert "docs/data.md" in done.out
    assert not (tmp_path / "was_read").exists()


def test_the_lines_on_the_page_convert_what_people_pass_round(tmp_path):
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import pickle.*?)```", page, re.DOTALL)
    write_mosi(tmp_path / "raw")
    build("cmu_mosi", tmp_path / "raw", tmp_path / "wanted")
    parts = {}
    with h5py.File(tmp_path / "raw" / "cmu_mosi" / "cmu_mosi.h5") as file:
        for part, group in file.items():
            parts[part] = {name: group[name][()] for name in group}
            parts[part] |= {name: [text.decode() for text in group[name]] for name in ("raw_text", "id")}
    parts["train"]["audio"][1, 2, 0] = -np.inf  # COVAREP's logarithm of silence
    (tmp_path / "unaligned_50.pkl").write_bytes(pickle.dumps(parts))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    (tmp_path / "cmu_mosi.h5").replace(tmp_path / "raw" / "cmu_mosi" / "cmu_mosi.h5")
    wanted = {file.stem: np.load(file) for file in (tmp_path / "wanted").glob("*.npy")}
    wanted["audio"][1, 2, 0] = 0
    _, arrays = build("cmu_mosi", tmp_path / "raw", tmp_path / "d")
    assert all(np.array_equal(arrays[name], wanted[name]) for name in wanted)


def test_clips_keep_their_test_part_and_validate_on_a_fifth_of_the_rest(tmp_path):
    about, arrays = build("vegas", write_vegas(tmp_path / "raw", (10, 3)), tmp_path / "d")
    assert (arrays["visual"].shape, arrays["audio"].shape, len(about["classes"])) == ((130, 1024), (130, 128), 10)
    assert (arrays["split"][100:] == 2).all()
    for label in range(10):
        assert np.bincount(arrays["split"][:100][arrays["target"][:100] == label]).tolist() == [8, 2]
    again = build("vegas", tmp_path / "raw", tmp_path / "e", seed=3)[1]["split"]
    assert not np.array_equal(arrays["split"], again)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("lab_test", _with(4, 10), r"label 10 of row 4 of lab_test is none of 0\.\.9"),
        ("audio_train", lambda a: a[:-1], r"audio_train has shape \(59, 128\), expected \(60, 128\), a row per label"),
        ("visual_test", lambda a: a[:, :5], r"visual_test has shape \(30, 5\), expected \(30, 1024\)"),
        ("audio_test", _with((7, 1), np.nan), r"audio_test of sample 7 holds NaN"),
    ],
)
def test_bad_clips_are_named(tmp_path, name, change, message):
    root = write_vegas(tmp_path / "raw")
    with h5py.File(root / "vegas" / "vegas_feature.h5", "r+") as file:
        array = file[name][()]
        del file[name]
        file[name] = change(array)
    with pytest.raises(UserError, match=message):
        build("vegas", root, tmp_path / "d")


def test_utterances_are_cut_out_of_computational_sequences(tmp_path):
    root, labels, faces, voices = write_csd(tmp_path / "raw")
    about, arrays = build("cmu_mosi", root, tmp_path / "d", {"layout": "csd", "frames": 4})
    assert arrays["text"][:2].tolist() == ["a0 a1 a2", "a4 a5 a6"]  # a silence ends each
    assert arrays["video"].tolist() == [*"aaabbcc"]  # d is in no fold
    assert arrays["split"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert "; 1 utterances without words, rows or part left out" in about["source"]
    assert np.array_equal(arrays["target"], np.concatenate([labels[v][:, 0] for v in "abc"]))
    # Eight rows become the means of four stretches of two; two rows have zeros behind them, and infinity is 0.
    assert np.allclose(arrays["vision"][1], faces["a"][8:16].reshape(4, 2, 3).mean(axis=1), atol=1e-6)
    assert np.array_equal(arrays["audio"][6], np.concatenate([voices["c"][2:4], np.zeros((2, 2))]))
    assert arrays["audio"][0, 1, 0] == 0
    _, mixed = build("cmu_mosi", root, tmp_path / "e", {"layout": "csd"}, by="video")
    assert (mixed["vision"].shape, set(mixed["video"])) == ((8, 50, 3), set("abcd"))


def _replace_in(name, key, value):
    def apply(folder):
        with h5py.File(folder / name, "r+") as file:
            del file[key]
            file[key] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "CMU_MOSI_COVAREP.csd").unlink(), r"csd: expected one \.csd file of audio, with covarep or"),
        (
            lambda f: (f / "cmu_mosi_std_folds.py").unlink(),
            r"csd: has no \*_std_folds\.py.*; put the SDK's file there, or",
        ),
        (
            lambda f: (f / "cmu_mosi_std_folds.py").write_text("import os"),
            r"folds\.py: does not hold the lists standard_tr",
        ),
        (
            lambda f: (f / "cmu_mosi_std_folds.py").write_text(
                "standard_train_fold=standard_valid_fold=['a']\nstandard_valid_fold=['a']\nstandard_test_fold=[]"
            ),
            r"video a is in two folds",
        ),
        (
            _replace_in("CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels/data/b/features", [[1.0], [3.5]]),
            r"label 3\.5 of utterance 1 of video b is out of the ordinal range -3\.\.3; drop that utterance",
        ),
        (
            _replace_in("CMU_MOSI_Visual_Facet_42.csd", "FACET_4.2/data/b/intervals", [[0.0, 1.0]]),
            r"intervals of b have shape \(1, 2\), expected \(16, 2\), one per row of its features",
        ),
        (
            _replace_in("CMU_MOSI_COVAREP.csd", "COVAREP/data/c/features", np.zeros((4, 3))),
            r"COVAREP\.csd: c has 3 channels, others another number",
        ),
        (_replace_in("CMU_MOSI_COVAREP.csd", "COVAREP/data", [1]), r"is no computational sequence|holds no video"),
    ],
)
def test_bad_computational_sequences_are_named(tmp_path, spoil, message):
    root, *_ = write_csd(tmp_path / "raw")
    spoil(root / "cmu_mosi" / "csd")
    with pytest.raises(UserError, match=message):
        build("cmu_mosi", root, tmp_path / "d", {"layout": "csd"})
    assert not (tmp_path / "d").exists()
