"""The student as a model of one frame after another: what it says of a clip, it says of a stream, in constant memory.

The graph takes a frame ``(batch, height, width, channels)`` and a state ``(batch, n)``, zeros before the first frame,
and gives an answer and the next state. It is the fp32 student's; int8 is not made of it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.frontends import VideoScale
from distill.networks.registry import Streaming
from distill.student import Student, student_outputs
from mst_edge.core.files import atomic_path, write_json
from quantize.export import OPSET, strip
from quantize.program import quiet
from quantize.variant import STEP_ABOUT, STEP_MODEL, StepSpec, step_tolerance

_STATE, _NEXT = "state", "next_state"


class StepStudent(nn.Module):
    """One frame and the state before it to the answer and the state after it."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        assert isinstance(student.frontend, VideoScale)
        self.frontend, self.network, self.answer = student.frontend, student.network, student.answer

    def forward(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.network, Streaming)
        features = self.frontend.of_frame(frame)
        assert features is not None
        logits, state = self.network.step(features, state)
        return self.answer(logits), state


def is_streaming(student: Student) -> bool:
    """Whether the student can be given a clip frame by frame: its network streams, its input looks at single frames."""
    frontend = student.frontend
    return isinstance(student.network, Streaming) and isinstance(frontend, VideoScale) and bool(frontend.taken)


def export_step(student: Student, folder: Path, clips: NDArray[Any]) -> StepSpec:
    """Writes ``stream.onnx`` and ``stream.json`` to ``folder``.

    Args:
        clips: ``(samples, time, height, width, channels)``, on which the file is compared with the student.

    Raises:
        RuntimeError: the file says something else of a clip, given frame by frame, than the student.
    """
    spec = _spec(student)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        onnx.save(_to_onnx(student, spec), temporary / STEP_MODEL)
        wanted = np.concatenate(list(student_outputs(student, clips)))
        apart = float(np.abs(run_stream(temporary / STEP_MODEL, spec, clips) - wanted).max())
        if not apart <= step_tolerance(wanted):
            raise RuntimeError(f"streamed, clips are answered differently: {apart:.3g} apart")
        spec = StepSpec(**{**asdict(spec), "difference": apart})
        write_json(temporary / STEP_ABOUT, asdict(spec))
    return spec


def run_stream(model: Path, spec: StepSpec, clips: NDArray[Any]) -> NDArray[np.float32]:
    """What the file says after the last frame of each of ``clips``, by ONNX Runtime on one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    state = np.zeros((len(clips), spec.state), np.float32)
    said = np.zeros(0, np.float32)
    for number in spec.taken:
        frame = np.ascontiguousarray(clips[:, number])
        said, state = session.run(None, {spec.input: frame, _STATE: state})
    return said


def _spec(student: Student) -> StepSpec:
    frontend, network, modality = student.frontend, student.network, student.spec.modality
    assert isinstance(frontend, VideoScale)
    assert isinstance(network, Streaming)
    time, taken = modality.shape[0], frontend.taken
    rate = modality.sample_rate_hz
    rate_hz = None if rate is None else rate * len(taken) / time
    return StepSpec(
        modality.name, modality.shape[1:], frontend.graph_dtype, network.state_size, len(taken), taken, rate_hz
    )


def _to_onnx(student: Student, spec: StepSpec) -> onnx.ModelProto:
    # Two samples: torch.export takes a batch of one for a constant.
    example = (torch.zeros(2, *spec.frame, dtype=getattr(torch, spec.dtype)), torch.zeros(2, spec.state))
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with quiet():
        program = torch.onnx.export(
            StepStudent(student).eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.input, _STATE],
            output_names=[student.spec.output.graph_output, _NEXT],
            dynamic_shapes={"frame": {0: batch}, "state": {0: batch}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model
