"""Frames out of video files, and RAVDESS with frames for a face, on small mp4 files made on the spot."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import soundfile

from distill.datasets.builder import DATASETS, build_dataset
from distill.datasets.library.ravdess import RavdessOptions
from distill.datasets.raw import ravdess
from distill.datasets.spec import Kind
from distill.datasets.splits import SplitRule
from distill.datasets.video import Box, frame_times, read_frames
from mst_edge.core.errors import UserError
from tests.conftest import mst_edge

av = pytest.importorskip("av")
FPS = 20
CLIPS = ravdess.clips_of([7])
OPTIONS = RavdessOptions(seconds=0.5, actors=(7,), face="frames", frames=5, frame_size=16)


def encode(frames):
    """An mp4 of ``(time, height, width, 3)`` RGB frames, 20 per second."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width = frames.shape[1:3] if len(frames) else (32, 48)
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def ramp(count=20, height=32, width=48):
    """Frame ``n`` is red 10 n, green 0, blue 60, with a bright block in the upper left corner."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = 10 * np.arange(count)[:, None, None]
    frames[..., 2] = 60
    frames[:, :8, :16] = 250
    return frames


def number(picture):
    return round(float(picture[-4:, -4:, 0].mean()) / 10)


def test_frames_nearest_to_the_times_are_taken_in_rgb():
    times = np.array([-1.0, 0.0, 0.26, 0.51, 0.69, 5.0])
    pictures, seconds = read_frames(encode(ramp()), times, 16, None, "x")
    assert pictures.shape == (6, 16, 16, 3)
    assert [number(picture) for picture in pictures] == [0, 0, 5, 10, 14, 19]
    assert seconds == pytest.approx(1.0, abs=0.01)
    assert pictures[3, -4:, -4:].reshape(-1, 3).mean(axis=0) == pytest.approx([100, 0, 60], abs=12)


def test_times_are_the_middles_of_equal_parts():
    assert frame_times(1.0, 3.0, 3).tolist() == [1.5, 2.5, 3.5]


def test_without_a_box_the_central_square_is_cut_and_with_one_its_part_inside_the_picture():
    content, time = encode(ramp()), np.zeros(1)
    (centre,), _ = read_frames(content, time, 32, None, "x")
    assert (centre[:6, :, 0] > 200).sum() == pytest.approx(6 * 8, abs=8)  # columns 8..40 hold half of the block
    (corner,), _ = read_frames(content, time, 8, Box(-20, -5.2, 14, 6), "x")
    assert corner.min() > 200
    with pytest.raises(UserError, match=r"x: Box.* lies outside a picture of 48 x 32 pixels"):
        read_frames(content, time, 8, Box(60, 0, 90, 20), "x")


def test_damaged_and_empty_videos_are_told():
    with pytest.raises(UserError, match="clip: cannot be decoded"):
        read_frames(encode(ramp())[:900], np.zeros(1), 8, None, "clip")
    with pytest.raises(UserError, match="clip: (cannot be decoded|holds no video frame)"):
        read_frames(encode(ramp()[:0]), np.zeros(1), 8, None, "clip")
    with pytest.raises(UserError, match="clip: cannot be decoded"):
        read_frames(b"", np.zeros(1), 8, None, "clip")


def test_without_pyav_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs av.*mst-edge\[video\]"):
        read_frames(b"", np.zeros(1), 8, None, "x")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """One actor; the sound of clip n is loud from (n mod 3) * 0.2 s on, for half a second of one."""
    root = tmp_path_factory.mktemp("ravdess")
    folder = root / "ravdess" / "Audio_Speech_Actors_01-24"
    folder.mkdir(parents=True)
    content = encode(ramp())
    with zipfile.ZipFile(root / "ravdess" / "Video_Speech_Actor_07.zip", "w") as archive:
        for index, clip in enumerate(CLIPS):
            wave = np.zeros(16000)
            wave[(index % 3) * 3200 :][:8000] = 0.3 * np.sin(np.arange(8000) / 5)
            soundfile.write(folder / f"{clip.audio}.wav", wave, 16000, subtype="PCM_16")
            archive.writestr(f"Actor_07/{clip.video}.mp4", content)
            archive.writestr(f"Actor_07/02{clip.video[2:]}.mp4", b"video without sound is not read")
    return root


@pytest.fixture
def raw(template, tmp_path):
    for file in template.rglob("*.*"):
        target = tmp_path / file.relative_to(template)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return tmp_path


def test_faces_are_taken_over_the_stretch_that_the_sound_was_cut_to(raw):
    dataset = build_dataset("ravdess", OPTIONS, SplitRule(by="random"), raw)
    assert dataset.modalities["face"].kind is Kind.VIDEO
    assert dataset.read("face", np.arange(2)).dtype == np.uint8
    for index in range(3):
        shown = [number(picture) for picture in dataset.arrays["face"][index]]
        expected = frame_times(0.2 * index, 0.5, 5) * FPS
        assert np.abs(np.array(shown) - expected).max() <= 0.6


def test_boxes_cut_the_face(raw):
    options = RavdessOptions(seconds=0.5, actors=(7,), face="frames", frames=1, frame_size=8, crop="boxes")
    with pytest.raises(UserError, match=r"face_boxes\.csv: RAVDESS face boxes is missing; put it there"):
        build_dataset("ravdess", options, SplitRule(by="random"), raw)
    rows = "".join(f"{clip.video},-3,-2,14,6\n" for clip in CLIPS)
    (raw / "ravdess" / "face_boxes.csv").write_text("clip,left,top,right,bottom\n" + rows, encoding="utf-8")
    dataset = build_dataset("ravdess", options, SplitRule(by="random"), raw)
    assert np.asarray(dataset.arrays["face"]).min() > 200


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("clip,left,top,right\n", "has no column bottom"),
        ("clip,left,top,right,bottom\nx,1,2,3,a\n", "csv:2: not a box"),
        ("clip,left,top,right,bottom\nx,1,2,1,9\n", "csv:2: an empty box"),
        ("clip,left,top,right,bottom\nx,1,2,3,4\n", r"lacks 60 clips \(01-01-01-01-01-01-07, "),
    ],
)
def test_malformed_boxes_are_told(raw, rows, says):
    (raw / "ravdess" / "face_boxes.csv").write_text(rows, encoding="utf-8")
    options = RavdessOptions(seconds=0.5, actors=(7,), face="frames", frames=1, frame_size=8, crop="boxes")
    with pytest.raises(UserError, match=says):
        build_dataset("ravdess", options, SplitRule(by="random"), raw)


def _replace(raw, content):
    """Puts ``content`` in the place of the fifth clip's video; None takes it away."""
    archive = raw / "ravdess" / "Video_Speech_Actor_07.zip"
    folder = raw / "ravdess" / "Video_Speech_Actor_07"
    with zipfile.ZipFile(archive) as held:
        held.extractall(folder)
    archive.unlink()
    file = folder / "Actor_07" / f"{CLIPS[5].video}.mp4"
    file.unlink() if content is None else file.write_bytes(content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, rf"lacks 1 clips \({CLIPS[5].video}\)"),
        (encode(ramp()[:0]), rf"{CLIPS[5].video}\.mp4: (cannot be decoded|holds no video frame)"),
        (encode(ramp())[:900], rf"{CLIPS[5].video}\.mp4: cannot be decoded"),
        (encode(ramp()[:4]), rf"{CLIPS[5].video}\.mp4: lasts 0.20 s, its sound 1.00 s"),
    ],
)
def test_a_missing_empty_or_short_video_is_named(raw, content, says):
    _replace(raw, content)
    with pytest.raises(UserError, match=says):
        build_dataset("ravdess", OPTIONS, SplitRule(by="random"), raw)


def test_verify_looks_at_what_the_options_need(raw):
    asked = ("data", "verify", "ravdess", "--data-root", raw, "--set", "face=frames", "--set", "actors=[7]")
    done = mst_edge(*asked)
    assert "ok   RAVDESS video of actor 7" in done.out
    _replace(raw, b"")
    done = mst_edge(*asked)
    assert done.code == 2
    assert f"{CLIPS[5].video}.mp4: cannot be decoded" in done.out
    assert "2 of 2 files are missing or malformed" in done.err  # the sound of one actor is not the published file


def test_data_is_fetched_for_the_options():
    builder = DATASETS.get("ravdess")()
    assert [source.name for source in builder.needs(OPTIONS)] == ["RAVDESS speech", "RAVDESS video of actor 7"]
