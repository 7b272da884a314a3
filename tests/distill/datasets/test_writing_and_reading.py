"""Folders of arrays written row by row, and collections of raw files in archives and folders."""

from __future__ import annotations

import errno
import tracemalloc
import zipfile

import numpy as np
import pytest
import soundfile

from distill.datasets.arrays import DatasetFile, arrays_folder, open_arrays, save_arrays
from distill.datasets.builder import DATASETS
from distill.datasets.readers import AudioFiles, NpzFile, RawFiles
from distill.datasets.sources import Source, fetch
from mst_edge.core.errors import UserError


def test_rows_make_the_same_folder_as_whole_arrays(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"facts": rng.normal(size=(30, 4)).astype(np.float32), "target": np.arange(30) % 3}
    about = DatasetFile(name="x")
    save_arrays(tmp_path / "whole", arrays, about)
    with arrays_folder(tmp_path / "rows", about) as writer:
        writer.stream("facts", (30, 4), np.float32, iter(arrays["facts"].astype(np.float64)))
        writer.save("target", arrays["target"])
    assert (tmp_path / "rows" / "facts.npy").read_bytes() == (tmp_path / "whole" / "facts.npy").read_bytes()
    assert open_arrays(tmp_path / "rows").fingerprint == open_arrays(tmp_path / "whole").fingerprint


def test_only_one_row_is_in_memory(tmp_path):
    row_bytes = 1 << 20
    tracemalloc.start()
    with arrays_folder(tmp_path / "x", DatasetFile()) as writer:
        writer.stream("face", (64, row_bytes), np.uint8, (np.full(row_bytes, k, np.uint8) for k in range(64)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * row_bytes
    assert np.load(tmp_path / "x" / "face.npy", mmap_mode="r")[63, -1] == 63


@pytest.mark.parametrize(
    ("rows", "says"), [([np.zeros(3)] * 2, "got 2 rows, not 3"), ([np.zeros(2)] * 3, "row 0 of x has shape")]
)
def test_other_rows_than_promised_are_our_mistake_and_leave_nothing(tmp_path, rows, says):
    with pytest.raises(ValueError, match=says), arrays_folder(tmp_path / "d", DatasetFile()) as writer:
        writer.stream("x", (3, 3), np.float32, rows)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    def rows():
        yield np.zeros(3)
        raise OSError(errno.ENOSPC, "No space left on device")

    full = pytest.raises(UserError, match=r"d: the disk is full; free some space")
    with full, arrays_folder(tmp_path / "d", DatasetFile()) as writer:
        writer.stream("x", (3, 3), np.float32, rows())
    assert list(tmp_path.iterdir()) == []


def test_two_different_files_of_one_name_are_refused_and_equal_ones_are_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/clip.csv", "1")
        archive.writestr("copy/clip.csv", "1")
    assert RawFiles(tmp_path / "x.zip", (".csv",)).stems() == ["clip"]
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
        archive.writestr("b/clip.csv", "22")
    with pytest.raises(UserError, match="holds two different files called clip"):
        RawFiles(tmp_path / "x.zip", (".csv",))


def test_an_archive_that_claims_to_unpack_to_gigabytes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.wav", bytes(80 << 20))
    with pytest.raises(UserError, match=r"x\.zip:bomb\.wav: claims to hold"):
        AudioFiles(tmp_path / "x.zip").read("bomb")


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([np.full(9, 0.5), np.zeros(9)], axis=1), 16000, subtype="PCM_16")
    pcm, rate = AudioFiles(tmp_path).read("a")
    assert (rate, set(pcm.tolist())) == (16000, {8192})


def test_npz_rows_are_the_arrays_rows(tmp_path):
    held = {"x": np.random.default_rng(0).normal(size=(5, 2, 3)), "names": np.array(["a", "bc"]), "none": np.zeros(0)}
    np.savez_compressed(tmp_path / "x.npz", **held)
    with NpzFile(tmp_path / "x.npz") as file:
        assert np.array_equal(list(file.rows("x")), held["x"])
        assert file.whole("names").tolist() == ["a", "bc"]
        assert file.whole("none").shape == (0,)
        assert "y" not in file


@pytest.mark.parametrize("array", [np.array([{}], dtype=object), np.zeros((4, 3), order="F"), np.float64(1)])
def test_arrays_that_cannot_be_read_by_rows_are_told(tmp_path, array):
    np.savez(tmp_path / "x.npz", x=array)
    with pytest.raises(UserError, match=r"x\.npz: x must be an array of numbers or names in C order"):
        list(NpzFile(tmp_path / "x.npz").rows("x"))


@pytest.mark.parametrize("name", ["ravdess", "crisismmd"])
def test_files_are_known_by_content_while_they_are_being_fetched(real_data, tmp_path, name):
    """A file on its way is called x.part, and is checked before it gets its own name."""
    for source in DATASETS.get(name).sources:
        if not source.homes or not (real_data / source.files[0]).is_file():
            continue
        (tmp_path / "x.part").symlink_to(real_data / source.files[0])
        source.check(tmp_path / "x.part")
        (tmp_path / "x.part").unlink()


def test_what_has_no_public_address_says_where_it_belongs(tmp_path):
    source = Source("my features", ("d/features.npz",), (), lambda path: None)
    with pytest.raises(UserError, match=r"d/features\.npz: my features has no public address; make it"):
        fetch(source, tmp_path)
