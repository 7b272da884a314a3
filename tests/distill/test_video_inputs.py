"""Input strategies: what each makes of a clip, told by numpy; in the exported graph, and streamed."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from distill.augment import VideoAugmentation
from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import VideoOptions, make_frontend
from distill.networks.registry import NetworkChoice
from distill.student import Student, StudentSpec, load_student, save_student, student_outputs
from distill.video_inputs.base import VIDEO_INPUTS, equal_parts
from mst_edge.core.errors import UserError
from mst_edge.core.scoring import OutputSpec
from quantize.export import export_student

TIME, HEIGHT, WIDTH, CHANNELS = 12, 8, 12, 3
SPEC = ModalitySpec("clip", Kind.VIDEO, (TIME, HEIGHT, WIDTH, CHANNELS), "uint8", 6)
CLIPS = np.random.default_rng(0).integers(0, 256, (5, *SPEC.shape)).astype(np.uint8)


class Flat(nn.Module):
    """Reads features of any shape, and is exported in no time."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(int(np.prod(input_shape)), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def means(picture: np.ndarray, factor: int) -> np.ndarray:
    """``(H, W, C)`` shrunk, pixel by pixel."""
    rows, columns = picture.shape[0] // factor, picture.shape[1] // factor
    small = np.zeros((rows, columns, picture.shape[2]))
    for row in range(rows):
        for column in range(columns):
            small[row, column] = picture[row * factor :, column * factor :][:factor, :factor].mean(axis=(0, 1))
    return small


def tiles(frames: list[np.ndarray], columns: int) -> np.ndarray:
    """Frames side by side, row by row."""
    rows = [np.concatenate(frames[start : start + columns], axis=1) for start in range(0, len(frames), columns)]
    return np.concatenate(rows, axis=0)


def frames(clip):
    return clip.transpose(3, 0, 1, 2)


def six_frames(clip):
    return clip[[1, 3, 5, 7, 9, 11]].transpose(3, 0, 1, 2)


def grid(clip):
    return tiles(list(clip), 3).transpose(2, 0, 1)


def small_grid(clip):
    return tiles([means(clip[number], 2) for number in (0, 2, 3, 5, 6, 8, 9, 11)], 4).transpose(2, 0, 1)


def thumbnail(clip):
    overview = tiles([means(clip[number], 2) for number in (1, 4, 7, 10)], 2)
    return np.stack([overview, clip[3], clip[9]]).transpose(3, 0, 1, 2)


def pooled(clip):
    squares = np.stack([means(frame, 4).transpose(2, 0, 1).reshape(-1) for frame in clip])
    return squares.reshape(4, 3, -1).mean(axis=1).T


STRATEGIES = [
    (VideoOptions(), frames),
    (VideoOptions("frames", {"frames": 6}), six_frames),
    (VideoOptions("grid"), grid),
    (VideoOptions("grid", {"frames": 8, "columns": 4, "shrink": 2}), small_grid),
    (VideoOptions("thumbnail"), thumbnail),
    (VideoOptions("pooled", {"square": 4, "stretch": 3}), pooled),
]


def student_of(options: VideoOptions) -> Student:
    torch.manual_seed(0)
    output = OutputSpec("classification", ("a", "b", "c"))
    student = Student(StudentSpec(SPEC, options, NetworkChoice(f"{__name__}:Flat"), output))
    student.frontend.fit(torch.from_numpy(CLIPS).split(2))
    return student.eval()


def test_all_strategies_are_tried_here():
    assert {options.input for options, _ in STRATEGIES} == set(VIDEO_INPUTS.names())


@pytest.mark.parametrize(("options", "expected"), STRATEGIES, ids=lambda p: getattr(p, "__name__", None))
def test_a_strategy_is_what_numpy_says_in_training_and_on_the_device(options, expected, tmp_path):
    student = student_of(options)
    front = student.frontend
    wanted = np.stack([expected(clip.astype(np.float64)) for clip in CLIPS])
    assert wanted.shape[1:] == front.feature_shape
    with torch.no_grad():
        assert np.abs(front.transform(torch.from_numpy(CLIPS)).numpy() - wanted).max() < 1e-3
        features = front(torch.from_numpy(CLIPS))
    axes = (0, *(axis + 1 for axis, size in enumerate(front.scale.shape) if size == 1))
    standard = (wanted - wanted.mean(axis=axes, keepdims=True)) / wanted.std(axis=axes, keepdims=True)
    assert np.abs(features.numpy() - standard).max() < 1e-3
    if expected in (frames, grid):
        return  # exported are those that hold all that these do
    variant = export_student(student, tmp_path / "fp32")
    assert variant.input.shape == SPEC.shape
    session = onnxruntime.InferenceSession(str(variant.model), providers=["CPUExecutionProvider"])
    said = session.run(None, {"clip": CLIPS})[0]
    assert np.abs(said - np.concatenate(list(student_outputs(student, CLIPS)))).max() < 1e-4


def test_a_student_keeps_its_strategy_on_disk(tmp_path):
    student = student_of(VideoOptions("grid", {"frames": 6}))
    tmp_path.joinpath("s").mkdir()
    save_student(tmp_path / "s", student)
    again = load_student(tmp_path / "s")
    assert again.spec.frontend == student.spec.frontend
    assert again.frontend.feature_shape == (CHANNELS, 3 * HEIGHT, 2 * WIDTH)


def test_equal_parts_are_their_middles():
    assert equal_parts(4, 8) == (1, 3, 5, 7)
    assert equal_parts(3, 8) == (1, 4, 6)
    assert equal_parts(8, 8) == tuple(range(8))
    assert equal_parts(1, 5) == (2,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (VideoOptions("gird"), r"modalities\.clip\.input: unknown video input 'gird'; did you mean 'grid'\?"),
        (
            VideoOptions("grid", {"colums": 2}),
            r"clip\.options: unknown option of grid 'colums'; did you mean 'columns'",
        ),
        (VideoOptions("grid", {"columns": "many"}), r"clip\.options\.columns: .*valid integer.*'many'"),
        (VideoOptions("frames", {"frames": 13}), r"clip\.options\.frames: a clip has 12 frames.*received 13"),
        (VideoOptions("grid", {"columns": 13}), r"options\.columns: expected 1 to 12, received 13"),
        (VideoOptions("grid", {"frames": 7, "columns": 2}), r"options\.columns: 7 frames do not fill rows of 2"),
        (VideoOptions("grid", {"shrink": 3}), r"options\.shrink: 3 does not divide frames of 8 x 12"),
        (VideoOptions("thumbnail", {"side": 4}), r"options\.side: a clip of 12 frames does not fill 4 x 4 tiles"),
        (VideoOptions("thumbnail", {"samples": 0}), r"options\.samples: .*expected 1 to 12, received 0"),
        (VideoOptions("pooled", {"square": 5}), r"options\.square: 5 does not divide frames of 8 x 12"),
        (VideoOptions("pooled", {"stretch": 5}), r"options\.stretch: 5 does not divide clips of 12 frames"),
    ],
)
def test_options_that_do_not_fit_are_told(options, says):
    with pytest.raises(UserError, match=says):
        make_frontend(SPEC, options)


def test_what_is_tiled_is_not_moved_by_augmentation_but_may_be_noisy():
    grid = make_frontend(SPEC, VideoOptions("grid"))
    with pytest.raises(UserError, match=r"x\.flip: moves pixels from one frame to another"):
        VideoAugmentation(flip=True).check(grid.feature_shape, "x", tiled=not grid.moves)
    noisy = VideoAugmentation(noise=0.5)
    noisy.check(grid.feature_shape, "x", tiled=not grid.moves)
    draws = torch.rand(2, noisy.draws, generator=torch.Generator().manual_seed(0))
    for options in (VideoOptions("grid"), VideoOptions("pooled"), VideoOptions()):
        features = torch.zeros(2, *make_frontend(SPEC, options).feature_shape)
        assert noisy(features, draws).shape == features.shape
        assert noisy(features, draws).std() > 0.01
