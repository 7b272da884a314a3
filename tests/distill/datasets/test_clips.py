"""Videos as a user's own data: files decoded once into a mapped array, and what is wrong with them told by name."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from apps.runtime.clips import clip_info, part_middles, read_clip, shown_at
from distill.datasets.arrays import open_arrays
from distill.datasets.files import FilesOptions, open_any
from distill.datasets.spec import Kind
from mst_edge.core.errors import UserError
from tests.conftest import mst_edge
from tests.videos import grey_steps, numbers, write_video


def class_folders(root, lengths=(8, 8, 8, 8), suffix=".mp4"):
    for number, length in enumerate(lengths):
        write_video(root / "ab"[number % 2] / f"{number}{suffix}", grey_steps(length))
    return root


def test_what_is_shown_is_the_last_frame_whose_time_has_come():
    times = np.array([0.0, 0.1, 0.5])
    assert shown_at(times, np.array([0.0, 0.05, 0.1, 0.49, 0.5, 9.0])).tolist() == [0, 0, 1, 1, 2, 2]
    assert part_middles(4, 2.0).tolist() == [0.25, 0.75, 1.25, 1.75]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_frames_at_equal_parts_are_taken(tmp_path, suffix):
    file = write_video(tmp_path / f"x{suffix}", grey_steps(20))
    info = clip_info(file)
    assert (info.frames, info.height, info.width) == (20, 32, 48)
    assert info.seconds == pytest.approx(2.0, abs=0.02)
    assert numbers(read_clip(file, (5, 16, 24, 3))[0]) == [2, 6, 10, 14, 18]
    assert numbers(read_clip(file, (20, 16, 24, 3))[0]) == list(range(20))


def test_a_short_clip_shows_frames_more_than_once_and_grey_has_one_channel(tmp_path):
    file = write_video(tmp_path / "x.mp4", grey_steps(3))
    clip, _ = read_clip(file, (6, 8, 8, 1))
    assert clip.shape == (6, 8, 8, 1)
    assert numbers(clip) == [0, 0, 1, 1, 2, 2]


def test_class_folders_of_videos_are_a_mapped_array_of_bytes(tmp_path):
    dataset = open_any(class_folders(tmp_path / "d"), FilesOptions())
    spec = dataset.modalities["video"]
    assert (spec.kind, spec.shape, spec.dtype, spec.sample_rate_hz) == (Kind.VIDEO, (8, 32, 48, 3), "uint8", 10)
    assert isinstance(dataset.arrays["video"], np.memmap)
    assert dataset.read("video", slice(2)).dtype == np.uint8
    assert dataset.classes == ("a", "b")
    assert not dataset.notes


def test_clips_of_unequal_lengths_are_sampled_and_each_is_said(tmp_path):
    options = FilesOptions(frames=6, frame_size=(16, 24), frame_channels=1)
    dataset = open_any(class_folders(tmp_path / "d", (12, 6, 4, 8)), options)
    assert dataset.modalities["video"].shape == (6, 16, 24, 1)
    assert numbers(dataset.arrays["video"][0]) == [1, 3, 5, 7, 9, 11]
    assert numbers(dataset.arrays["video"][2]) == list(range(6))  # of class b
    unequal, short = dataset.notes
    assert unequal.startswith("video: of clips of 4 to 12 frames, 6 at equal parts of each were taken; ")
    assert short == "video: frames come more than once in clips with fewer than 6: 2.mp4 (4)"
    with (dataset.root / "video_files.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frames"], row["seconds"]) for row in rows] == [
        ("12", "1.200"),
        ("4", "0.400"),
        ("6", "0.600"),
        ("8", "0.800"),
    ]
    assert unequal.endswith(f"{dataset.root / 'video_files.csv'} lists them")


def test_a_csv_names_videos_beside_other_files_and_init_says_what_it_found(tmp_path):
    for number in range(12):
        write_video(tmp_path / f"{number}.avi", grey_steps(6 + number % 2))
        np.save(tmp_path / f"{number}.npy", np.zeros(4, np.float32))
    rows = "".join(f"{number}.avi,{number}.npy,{'ab'[number % 2]}\n" for number in range(12))
    (tmp_path / "data.csv").write_text(f"clip,facts,target\n{rows}", encoding="utf-8")
    done = mst_edge("init", tmp_path / "data.csv", "--student", "clip", "--out", tmp_path / "r.yaml")
    assert done.code == 0, done.err
    assert "clip: video (6, 32, 48, 3) uint8, 9 Hz" in done.out
    assert "note: clip: of clips of 6 to 7 frames, 6 at equal parts of each were taken" in done.out
    assert "frames: 6" in (tmp_path / "r.yaml").read_text(encoding="utf-8")


def flipped(content: bytes) -> bytes:
    """The middle half with wrong bits here and there."""
    damaged = bytearray(content)
    for place in np.random.default_rng(0).integers(len(content) // 4, 3 * len(content) // 4, 60):
        damaged[place] ^= 0x55
    return bytes(damaged)


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        (".mp4", lambda content: b""),
        (".mp4", lambda content: b"no video at all" * 99),
        (".mp4", lambda content: content[: len(content) // 2]),
        (".mp4", flipped),
        (".mkv", lambda content: content[: len(content) // 2]),
        (".avi", lambda content: content[: len(content) // 2]),
    ],
)
def test_damaged_files_are_told_by_name(tmp_path, suffix, change):
    root = class_folders(tmp_path / "d", (30, 30, 30), suffix)
    file = root / "b" / f"1{suffix}"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=rf"b/1\{suffix}: (not a whole video|is damaged|is cut off|cannot be read)"):
        open_any(root, FilesOptions(frames=4, frame_size=(16, 24)))


def test_two_files_of_one_sample_and_kind_are_told(tmp_path):
    root = class_folders(tmp_path / "d")
    write_video(root / "a" / "0.mkv", grey_steps(3))
    with pytest.raises(UserError, match=r"0\.mp4: is of one kind with 0\.mkv, and of one stem; rename one of them"):
        open_any(root, FilesOptions())


def test_a_video_of_zero_frames_is_told_by_name(tmp_path):
    root = class_folders(tmp_path / "d")
    write_video(root / "a" / "4.mp4", grey_steps(0))
    with pytest.raises(UserError, match=r"4\.mp4: (holds no video|not a whole video)"):
        open_any(root, FilesOptions())
    np.save(tmp_path / "clip.npy", np.zeros((4, 0, 8, 8, 3), np.uint8))
    np.save(tmp_path / "target.npy", np.arange(4) % 2)
    with pytest.raises(UserError, match=r"clip\.npy: a video of zero frames"):
        open_arrays(tmp_path)


def test_arrays_of_unequal_lengths_are_told(tmp_path):
    for label, length in (("a", 5), ("b", 4)):
        (tmp_path / label).mkdir()
        np.save(tmp_path / label / "0.npy", np.zeros((length, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"0\.npy: holds \(4, 8, 8, 3\), the files before it \(5, 8, 8, 3\); bring"):
        open_any(tmp_path, FilesOptions())


def test_options_of_videos_are_checked():
    with pytest.raises(UserError, match=r"frame_size must be \[height, width\], received \[8\]"):
        FilesOptions(frame_size=(8,))
    with pytest.raises(UserError, match="frame_channels must be 1 or 3, received 4"):
        FilesOptions(frame_channels=4)
    with pytest.raises(UserError, match="frames must be positive"):
        FilesOptions(frames=-1)
