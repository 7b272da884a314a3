"""A student that streams: frame by frame it says, in constant memory, what it says of the clip."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import VideoOptions
from distill.networks.registry import NetworkChoice, Streaming
from distill.networks.stream import CausalBlock, StreamCnn
from distill.student import Student, StudentSpec, student_outputs
from mst_edge.core.scoring import OutputSpec
from quantize import step
from quantize.step import export_step, is_streaming, run_stream
from quantize.variant import STEP_MODEL, load_step, step_tolerance


def lived_in(network: nn.Module, *shape: int) -> nn.Module:
    """With batch norms that have seen something, in eval mode."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, *shape))
    return network.eval()


@settings(max_examples=15, deadline=None)
@given(time=st.integers(1, 40), seed=st.integers(0, 10_000), channels=st.sampled_from([1, 3]))
def test_after_a_clips_frames_the_stream_says_what_the_clip_says(time, seed, channels):
    torch.manual_seed(seed)
    network = lived_in(StreamCnn((channels, time, 8, 9), 4, width=0.25), channels, time, 8, 9)
    assert isinstance(network, Streaming)
    clips = torch.randn(2, channels, time, 8, 9)
    state = torch.zeros(2, network.state_size)
    with torch.no_grad():
        for number in range(time):
            said, state = network.step(clips[:, :, number], state)
            assert state.shape == (2, network.state_size)
        assert (said - network(clips)).abs().max() < 1e-5


def test_a_causal_block_does_not_look_ahead():
    torch.manual_seed(0)
    block = lived_in(CausalBlock(3, 5, 2), 3, 20)
    before = torch.randn(1, 3, 20)
    after = before.clone()
    after[:, :, 12:] += 1
    with torch.no_grad():
        apart = (block(before) - block(after)).abs().amax(dim=(0, 1))
    assert apart[:12].max() == 0
    assert apart[12:].min() > 0


def test_a_long_stream_forgets_and_stays_finite():
    """The state is bounded: after many frames, those before its reach play no part."""
    torch.manual_seed(0)
    network = lived_in(StreamCnn((1, 6, 8, 8), 3, width=0.25), 1, 6, 8, 8)
    late = torch.randn(40, 1, 1, 8, 8)
    said = []
    with torch.no_grad():
        for first in (torch.zeros(1, 1, 8, 8), 5 * torch.randn(1, 1, 8, 8)):
            state = torch.zeros(1, network.state_size)
            for frame in [*[first] * 10, *late]:
                logits, state = network.step(frame, state)
            said.append(logits)
    assert torch.isfinite(said[0]).all()
    assert (said[0] - said[1]).abs().max() < 1e-5


SPEC = ModalitySpec("clip", Kind.VIDEO, (10, 8, 12, 3), "uint8", 5)
CLIPS = np.random.default_rng(0).integers(0, 256, (6, *SPEC.shape)).astype(np.uint8)


def student_of(options: VideoOptions, network: str = "stream_cnn", task: str = "classification") -> Student:
    torch.manual_seed(0)
    scale = (0.5, 2.0, 9.0) if task == "regression" else ()
    output = OutputSpec(task, ("a", "b", "c"), scale=scale)
    student = Student(StudentSpec(SPEC, options, NetworkChoice(network, {"width": 0.5}), output))
    student.frontend.fit([torch.from_numpy(CLIPS)])
    if scale:
        student.answer.scale.copy_(torch.tensor(scale))
        student.answer.shift.fill_(300)
    return student.eval()


def test_the_exported_step_says_in_onnx_runtime_what_the_clip_says(tmp_path):
    """Of clips of which 4 frames of 10 are looked at, in numbers with units."""
    student = student_of(VideoOptions("frames", {"frames": 4}), task="regression")
    assert is_streaming(student)
    spec = export_step(student, tmp_path / "s", CLIPS[:2])
    assert load_step(tmp_path / "s") == spec
    assert (spec.frame, spec.dtype, spec.rate_hz) == ((8, 12, 3), "uint8", 2.0)
    assert spec.state == student.network.state_size
    wanted = np.concatenate(list(student_outputs(student, CLIPS)))
    apart = np.abs(run_stream(tmp_path / "s" / STEP_MODEL, spec, CLIPS) - wanted)
    assert apart.max() < 1e-5 * np.abs(wanted).max()
    assert apart.max() <= step_tolerance(wanted)


def test_a_step_that_says_something_else_is_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "_to_onnx", lambda *_: onnx.ModelProto())
    monkeypatch.setattr(step, "run_stream", lambda *_: np.zeros((2, 3), np.float32))
    with pytest.raises(RuntimeError, match="streamed, clips are answered differently"):
        export_step(student_of(VideoOptions()), tmp_path / "s", CLIPS[:2])
    assert load_step(tmp_path / "s") is None


def test_what_does_not_see_single_frames_does_not_stream():
    assert not is_streaming(student_of(VideoOptions("grid"), "small_cnn"))
    assert not is_streaming(student_of(VideoOptions(), "clip_cnn"))
    # A thumbnail is no frame, though the network could stream.
    assert not is_streaming(student_of(VideoOptions("thumbnail"), "stream_cnn"))
