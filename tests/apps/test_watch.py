"""Watching videos frame by frame: what a stream says, at which frames, in how much memory, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from apps import predict
from apps.frames import Frame
from apps.runtime import Bundle, BundleError
from apps.runtime.clips import read_clip
from apps.runtime.follow import StepFollower, WindowFollower
from apps.watch import at_rate, main
from mst_edge.core.files import sha256_file, write_json
from quantize.variant import STEP_ABOUT, STEP_MODEL, InputSpec, StepSpec
from tests.apps.bundles import model_of, packed
from tests.videos import grey_steps, write_video

SHAPE = (6, 16, 24, 3)
LABELS = ("up", "down", "still")
CLIPS = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.uint8)
WEIGHTS = np.random.default_rng(1).normal(0, 0.001, (16 * 24 * 3, 3)).astype(np.float32)


def mean_of_frames() -> onnx.ModelProto:
    """Logits of a clip: the mean of what a linear model says of each frame."""
    nodes = [
        helper.make_node("Cast", ["clip"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["cast", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], ["each"]),
        helper.make_node("ReduceMean", ["each", "time"], ["logits"], keepdims=0),
    ]
    given = ("clip", list(SHAPE), TensorProto.UINT8)
    return model_of(nodes, given, 3, weights=WEIGHTS, flat=np.array([-1, 6, len(WEIGHTS)]), time=np.array([1]))


def mean_so_far() -> onnx.ModelProto:
    """The same of a stream: the state holds the sum, and how many frames there were."""
    nodes = [
        helper.make_node("Cast", ["clip"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["cast", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["sums"]),
        helper.make_node("Concat", ["sums", "one"], ["more"], axis=1),
        helper.make_node("Add", ["state", "more"], ["next_state"]),
        helper.make_node("Split", ["next_state", "parts"], ["sum", "count"], axis=1),
        helper.make_node("Div", ["sum", "count"], ["logits"]),
    ]
    tensors = {"weights": WEIGHTS, "flat": np.array([1, len(WEIGHTS)]), "parts": np.array([3, 1])}
    graph = helper.make_graph(
        nodes,
        "on_paper",
        [
            helper.make_tensor_value_info("clip", TensorProto.UINT8, [1, *SHAPE[1:]]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 4]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in OUTPUTS.items()],
        [
            numpy_helper.from_array(array, key)
            for key, array in (*tensors.items(), ("one", np.ones((1, 1), np.float32)))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


OUTPUTS = {"logits": 3, "next_state": 4}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Packed as a run packs it, of two models on paper."""
    folder = tmp_path_factory.mktemp("watch")
    spec = StepSpec("clip", SHAPE[1:], "uint8", 4, 6, tuple(range(6)), 10.0)
    (folder / "stream").mkdir()
    onnx.save(mean_so_far(), folder / "stream" / STEP_MODEL)
    write_json(folder / "stream" / STEP_ABOUT, asdict(spec))
    given = InputSpec("clip", "video", SHAPE, "uint8", 10)
    return packed(folder / "bundle", mean_of_frames(), given, CLIPS, LABELS, stream=folder / "stream")


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_bundle_lists_the_step_model_and_refuses_a_changed_one(bundle, tmp_path):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["files"]["models/stream.onnx"] == sha256_file(bundle / "models" / "stream.onnx")
    assert manifest["stream"]["taken"] == list(range(6))
    copy = shutil.copytree(bundle, tmp_path / "b")
    (copy / "models" / "stream.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"models/stream\.onnx was changed"):
        Bundle.open(copy)
    del manifest["files"]["models/stream.onnx"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"models/stream\.onnx has no checksum"):
        Bundle.open(copy)
    manifest["stream"]["model"] = "../stream.onnx"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.open(copy)


def test_after_a_clips_frames_the_bundle_says_what_it_says_of_the_clip(bundle):
    with Bundle.open(bundle) as opened:
        steps, windows = StepFollower(opened), WindowFollower(opened)
        assert steps.difference < 1e-4
        for clip in CLIPS:
            steps.reset()
            windows.reset()
            said = [(steps.push(frame), windows.push(frame)) for frame in clip]
            assert [window for _, window in said[:-1]] == [None] * 5
            streamed, windowed = said[-1]
            whole = opened.predict(clip)
            assert streamed.probabilities == pytest.approx(whole.probabilities, abs=1e-5)
            assert windowed.probabilities == pytest.approx(whole.probabilities, abs=1e-6)


def test_a_step_model_that_computes_something_else_is_not_followed(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "b")
    manifest = json.loads((copy / "manifest.json").read_text())
    outputs = copy / manifest["fp32_outputs"]
    np.save(outputs, np.load(outputs) + 1)
    manifest["files"][manifest["fp32_outputs"]] = sha256_file(outputs)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with Bundle.open(copy) as opened, pytest.raises(BundleError, match=r"stream\.onnx is off by 1 on the reference"):
        StepFollower(opened)


def test_a_video_file_streamed_says_what_its_clip_says(bundle, tmp_path, capsys):
    """Frames are taken as for training: of 30 a second those at the middles of 10 parts of a second."""
    film = write_video(tmp_path / "film.mp4", grey_steps(18, step=12), rate=30)
    assert main([str(bundle), str(film), "--json"]) == 0
    said = lines(capsys)
    assert [one["frame"] for one in said] == [1, 4, 7, 10, 13, 16]
    assert [one["seen"] for one in said] == [1, 2, 3, 4, 5, 6]
    assert said[-1]["build"] == "models/stream.onnx"
    assert said[-1]["latency_ms"] > 0
    assert set(said[-1]["memory_mb"]) <= {"now", "peak"}
    with Bundle.open(bundle) as opened:
        sample = opened.read(film)
        assert np.array_equal(sample.array, read_clip(film, SHAPE)[0])
        assert said[-1]["probabilities"] == pytest.approx(opened.predict(sample.array).probabilities, abs=1e-4)


def test_windows_answer_with_the_bundles_own_build(bundle, tmp_path, capsys):
    film = write_video(tmp_path / "film.mp4", grey_steps(12), rate=10)
    assert main([str(bundle), str(film), "--json", "--window", "--every", "3"]) == 0
    said = lines(capsys)
    assert [one["seen"] for one in said] == [6, 9, 12]
    assert {one["build"] for one in said} == {"onnxruntime-fp32"}


def test_folders_of_pictures_and_arrays_are_streams(bundle, tmp_path, capsys):
    np.save(tmp_path / "clip.npy", CLIPS[0])
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, frame in enumerate(CLIPS[0]):
        Image.fromarray(frame).save(folder / f"{number:03}.png")
    assert main([str(bundle), str(tmp_path / "clip.npy"), str(folder), "--json"]) == 0
    said = lines(capsys)
    assert len(said) == 12
    assert said[5]["probabilities"] == said[11]["probabilities"]
    assert main([str(bundle), str(folder), "--frames", "2", "--min-confidence", "1.1"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[2] for line in printed.out.splitlines()] == ["?", "?"]
    assert "has 2 of the 6 frames of a clip" not in printed.err  # it was told to stop


def test_a_stream_begins_anew_after_the_frames_of_a_clip_unless_it_runs_on(bundle, tmp_path, capsys):
    np.save(tmp_path / "two.npy", np.concatenate([CLIPS[0], CLIPS[1]]))
    np.save(tmp_path / "one.npy", CLIPS[1])
    assert main([str(bundle), str(tmp_path / "two.npy"), str(tmp_path / "one.npy"), "--json"]) == 0
    said = lines(capsys)
    assert [one["seen"] for one in said] == [1, 2, 3, 4, 5, 6] * 3
    assert [one["probabilities"] for one in said[6:12]] == [one["probabilities"] for one in said[12:]]
    assert main([str(bundle), str(tmp_path / "two.npy"), "--json", "--run-on"]) == 0
    on = lines(capsys)
    assert [one["seen"] for one in on] == list(range(1, 13))
    assert on[-1]["probabilities"] != said[11]["probabilities"]


def test_memory_does_not_grow_with_the_stream(bundle):
    """What a follower keeps has one size after any number of frames."""
    with Bundle.open(bundle) as opened:
        follower = StepFollower(opened)
        sizes = set()
        for number in range(50):
            follower.push(CLIPS[number % 4][number % 6])
            sizes.add(follower._state.nbytes)
        assert sizes == {4 * opened.manifest.stream.state}


def test_what_cannot_be_read_is_told_and_the_others_go_on(bundle, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    np.save(tmp_path / "clip.npy", CLIPS[0][:3])
    np.save(tmp_path / "odd.npy", np.zeros((3, 4)))
    asked = [str(tmp_path / name) for name in ("bad.mp4", "odd.npy", "clip.npy", "absent.mp4")]
    assert main([str(bundle), *asked, "--json"]) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    for says in ("bad.mp4: not a video", "odd.npy: holds (3, 4) float64", "absent.mp4: no such file"):
        assert says in printed.err
    assert "clip.npy has 3 of the 6 frames of a clip" in printed.err
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="holds no picture and no video"):
        main([str(bundle), str(tmp_path / "empty")])


def test_frames_without_times_are_all_taken_and_others_at_the_rate():
    pixels = np.zeros((1, 1, 3), np.uint8)
    untimed = [Frame(pixels, number) for number in range(5)]
    assert [frame.number for frame in at_rate(iter(untimed), 2.0)] == [0, 1, 2, 3, 4]
    timed = [Frame(pixels, number, number / 8) for number in range(16)]  # two seconds
    assert [frame.number for frame in at_rate(iter(timed), 2.0)] == [2, 6, 10, 14]
    assert [frame.number for frame in at_rate(iter(timed[:4]), 16.0)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [frame.number for frame in at_rate(iter(timed[:1]), 2.0)] == [0]
    assert len(list(at_rate(iter(timed), None))) == 16


def test_predict_takes_videos_and_says_where_frames_repeat(bundle, tmp_path, capsys):
    write_video(tmp_path / "short.mkv", grey_steps(3))
    assert predict.main([str(bundle), str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    assert "note: short.mkv has 3 frames: some are seen more than once" in printed.err
    assert json.loads(printed.out)["label"] in LABELS
    (tmp_path / "short.mkv").write_bytes(b"")
    assert predict.main([str(bundle), str(tmp_path / "short.mkv")]) == 2
    assert "short.mkv: not a whole video" in capsys.readouterr().err
