"""A student of clips that follows a stream of frames, in memory that does not grow."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import Answer, answer_of
from .bundle import Bundle
from .engines import requirement_of
from .errors import BundleError
from .manifest import StreamEntry, inside

_PROVED = 2  # clips that the model of one frame answers before any other


class Follower:
    """Takes frames one by one, ``(height, width, channels)`` of the input's dtype.

    Attributes:
        build: what answers.
        rate_hz: frames per second that are expected; None where nobody said.
        steps: frames that an answer is about.
        seen: how many were taken since the last ``reset``.
    """

    build: str
    rate_hz: float | None
    steps: int
    seen = 0

    def push(self, frame: NDArray[Any]) -> Answer | None:
        """The answer after one more frame; None where there were too few for one."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets all frames."""
        raise NotImplementedError


class StepFollower(Follower):
    """By the bundle's model of one frame: each costs one frame. Answers from the first frame on; after ``steps`` it
    says what the fp32 student says of that clip.

    Raises:
        BundleError: the bundle has no such model, ONNX Runtime is not installed, or it computes something else here.
    """

    def __init__(self, bundle: Bundle) -> None:
        entry = bundle.manifest.stream
        if entry is None:
            raise BundleError("its student does not stream", where=bundle.folder, fix="read windows of frames instead")
        self._bundle, self._entry = bundle, entry
        self.build, self.rate_hz, self.steps = entry.model, entry.rate_hz, len(entry.taken)
        self._session = _session(bundle, entry)
        self._name = bundle.manifest.input.name
        self.reset()
        self.difference = self._prove()

    def push(self, frame: NDArray[Any]) -> Answer:
        start = time.perf_counter_ns()
        output = self._step(frame)
        latency_ms = (time.perf_counter_ns() - start) / 1e6
        self.seen += 1
        if not np.isfinite(output).all():
            raise BundleError("the model gives NaN or infinity for this frame", where=self.build)
        return answer_of(output, self._bundle.manifest, latency_ms)

    def reset(self) -> None:
        self.seen = 0
        self._state = np.zeros((1, self._entry.state), np.float32)

    def _step(self, frame: NDArray[Any]) -> NDArray[np.float32]:
        outputs = self._session.run(None, {self._name: np.ascontiguousarray(frame[None]), "state": self._state})
        self._state = outputs[1]
        said: NDArray[np.float32] = outputs[0][0]
        return said

    def _prove(self) -> float:
        """The largest difference from what the fp32 model says of reference clips."""
        apart = 0.0
        wanted = self._bundle.fp32_outputs()
        for clip, expected in zip(self._bundle.reference_inputs()[:_PROVED], wanted[:_PROVED], strict=True):
            said = np.zeros(0, np.float32)
            for number in self._entry.taken:
                said = self._step(clip[number])
            apart = max(apart, float(np.abs(said - expected).max()))
            self.reset()
        if not apart <= self._entry.tolerance:
            raise BundleError(
                f"{self.build} is off by {apart:.3g} on the reference inputs, allowed {self._entry.tolerance:.3g}",
                where=self._bundle.folder,
                fix="build the bundle for this machine",
            )
        return apart


class WindowFollower(Follower):
    """By any of the bundle's builds, over the last frames that make a clip: each answer costs a whole clip.

    Args:
        every: frames from one answer to the next.
    """

    def __init__(self, bundle: Bundle, every: int = 1) -> None:
        bundle.load()
        spec = bundle.manifest.input
        self._bundle, self._every = bundle, every
        self.build, self.steps = bundle.build.id, spec.sizes[0]
        self.rate_hz = None if spec.sample_rate_hz is None else float(spec.sample_rate_hz)
        self.reset()

    def push(self, frame: NDArray[Any]) -> Answer | None:
        self._last.append(frame)
        self.seen += 1
        if len(self._last) < self.steps or (self.seen - self.steps) % self._every:
            return None
        return self._bundle.answer(np.stack(self._last))

    def reset(self) -> None:
        self.seen = 0
        self._last: deque[NDArray[Any]] = deque(maxlen=self.steps)


def _session(bundle: Bundle, entry: StreamEntry) -> Any:
    try:
        import onnxruntime
    except ImportError:
        fix = f"pip install {requirement_of('onnxruntime')}"
        raise BundleError("following a stream needs ONNX Runtime", where=bundle.folder, fix=fix) from None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(inside(bundle.folder, entry.model)), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises a class of its own per failure
        raise BundleError(f"ONNX Runtime cannot load the model ({error})", where=entry.model) from error
