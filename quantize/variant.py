"""A variant: one precision scheme of the exported student, as an ONNX file with a sidecar. Value types only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from mst_edge.core.files import read_json, sha256_file, write_json
from mst_edge.core.scoring import OutputSpec

MODEL, SIDECAR, PROGRAM = "model.onnx", "variant.json", "model.pt2"
STEP_MODEL, STEP_ABOUT = "stream.onnx", "stream.json"
OUTPUTS = "torch_outputs.npy"
# What a torch program is made for, see ``Variant.program``.
FLOAT, X86, XNNPACK = "float", "x86", "xnnpack"
# The optimizer with which ONNX Runtime rounds float weights between int8 layers to 8 bits per tensor, unasked
# (microsoft/onnxruntime#22969).
ROUNDS_WEIGHTS = "WeightBiasQuantization"


def is_float(precision: str) -> bool:
    """Whether no weight or activation is an integer."""
    return not precision.startswith(("int", "w"))


@dataclass(frozen=True)
class InputSpec:
    """The graph's one input, as a device delivers it.

    Attributes:
        shape: without the batch; None for an axis of free size (time, say).
        example: where axes are free, the shape of the samples that stand for all of them in measurements.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...]
    dtype: str
    sample_rate_hz: int | None = None
    example: tuple[int, ...] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a sample, without the batch: ``shape``, or ``example`` where axes are free."""
        fixed = tuple(size for size in self.shape if size is not None)
        if len(fixed) == len(self.shape):
            return fixed
        if self.example is None:
            raise ValueError(f"input {self.name} has free axes and no example")
        return self.example


@dataclass(frozen=True)
class Variant:
    """One precision scheme of one student.

    Attributes:
        name: folder name, unique in a run.
        scheme: ``fp32``, or the name of the scheme that made it.
        precision: what the network's arithmetic is done in: fp32, fp16, int8; w8 or w4 where weights alone are
            integers.
        backend: the library that made it.
        folder: holds ``model.onnx`` and ``variant.json``.
        output: what the graph's one output means.
        float_nodes: names of the nodes that stay in float32: the front end, and ``answer_nodes``.
        answer_nodes: names of those of them that read what the network has in eight bits: the nodes after the network,
            which bring numbers to their own units; in a model from elsewhere, masks with infinity.
        in_float: names of the nodes with weights that stay in float between int8 ones.
        target: the only target that it is for; empty where it is for all.
        modules: node name to dotted path of the torch module that it comes from, where that is known.
        program: whose int8 kernels the torch program beside the model is rounded for, or ``float``; empty where there
            is no such program.
        facts: how it was made (options, calibration).
    """

    name: str
    scheme: str
    precision: str
    backend: str
    folder: Path
    input: InputSpec
    output: OutputSpec
    opset: int
    float_nodes: tuple[str, ...] = ()
    answer_nodes: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    target: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    program: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL

    @property
    def program_file(self) -> Path:
        """The torch program: of a student of ours, for runtimes that compile torch."""
        return self.folder / PROGRAM

    @property
    def torch_outputs(self) -> Path | None:
        """What the torch model that was trained as this variant says of the run's first test samples; None for a
        variant that was made of the fp32 student and is compared with that."""
        file = self.folder / OUTPUTS
        return file if file.is_file() else None

    @property
    def is_float(self) -> bool:
        """Whether no weight or activation is an integer."""
        return is_float(self.precision)

    def save(self) -> None:
        """Writes the sidecar beside the model."""
        record = asdict(self)
        del record["folder"]
        hashes = {"model_sha256": sha256_file(self.model)}
        if self.program:
            hashes["program_sha256"] = sha256_file(self.program_file)
        write_json(self.folder / SIDECAR, {**record, **hashes})


def _tuple(said: list[int] | None) -> tuple[int, ...] | None:
    return None if said is None else tuple(said)


def load_variant(folder: Path) -> Variant:
    """Reads a variant back.

    Raises:
        UserError: a file is missing, or the model is not the one described.
    """
    sidecar = folder / SIDECAR
    if not sidecar.is_file():
        raise UserError(f"needs {MODEL} and {SIDECAR}", where=folder)
    record = read_json(sidecar)
    for file, key in ((MODEL, "model_sha256"), (PROGRAM, "program_sha256")):
        wanted = record.pop(key, None)
        if wanted is not None and not (folder / file).is_file():
            raise UserError(f"needs {file} and {SIDECAR}", where=folder)
        if wanted is not None and sha256_file(folder / file) != wanted:
            raise UserError(f"the model differs from the one that {SIDECAR} describes", where=folder / file)
    said = record.pop("input")
    return Variant(
        **{
            **record,
            "folder": folder,
            "input": InputSpec(**{**said, "shape": tuple(said["shape"]), "example": _tuple(said["example"])}),
            "output": OutputSpec.from_dict(record["output"]),
            "float_nodes": tuple(record["float_nodes"]),
            "answer_nodes": tuple(record["answer_nodes"]),
            "in_float": tuple(record["in_float"]),
        }
    )


@dataclass(frozen=True)
class StepSpec:
    """A student as a model of one frame after another, see ``quantize/step.py``.

    Attributes:
        frame: shape of a frame as a device records it, without the batch.
        state: numbers that are kept from one frame to the next.
        steps: frames after which it has said what the student says of a clip.
        taken: which frames of a clip those are.
        rate_hz: frames per second that it was trained on; None where nobody said.
        difference: from the student's answers, the largest found.
    """

    input: str
    frame: tuple[int, ...]
    dtype: str
    state: int
    steps: int
    taken: tuple[int, ...]
    rate_hz: float | None
    difference: float = 0.0


def step_tolerance(answers: NDArray[np.floating[Any]]) -> float:
    """How far a stream's last answer may be from the clip's: a thousandth of how the ``(samples, outputs)`` answers
    spread, and float32's rounding."""
    return 1e-3 * float(answers.std(axis=0).max()) + 1e-5 * float(np.abs(answers).max())


def load_step(folder: Path) -> StepSpec | None:
    """The model of one frame that lies in ``folder``; None where there is none."""
    file = folder / STEP_ABOUT
    if not file.is_file():
        return None
    said = read_json(file)
    return StepSpec(**{**said, "frame": tuple(said["frame"]), "taken": tuple(said["taken"])})
