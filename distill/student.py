"""The deployable student: front end and network as one module, and its form on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.runtime.tokenizer import TOKENIZER, AnyTokenizer, read_tokenizer
from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import frontend_options, make_frontend
from distill.networks.registry import NetworkChoice, build_model
from distill.training.checkpoint import copy_state, load_tensors, save_tensors
from mst_edge.core.border import read_yaml
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_file, write_text
from mst_edge.core.scoring import OutputSpec

WEIGHTS, DESCRIPTION = "student.safetensors", "student.yaml"


@dataclass(frozen=True)
class StudentSpec:
    """What is needed to build the student again: everything but its weights.

    Attributes:
        tokenizer: the front end's host part, for a student that reads text.
    """

    modality: ModalitySpec
    frontend: Any
    network: NetworkChoice
    output: OutputSpec
    map_size: tuple[int, int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    tokenizer: AnyTokenizer | None = None


class InUnits(nn.Module):
    """Standardised numbers ``(batch, outputs)`` to numbers in their own units."""

    scale: Tensor
    shift: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(outputs))
        self.register_buffer("shift", torch.zeros(outputs))

    def forward(self, standardised: Tensor) -> Tensor:
        return standardised * self.scale + self.shift


class Student(nn.Module):
    """``(batch, *frontend.graph_shape)``, as the front end's host part returns it (without one, as a device records
    it), to what the task answers with: logits ``(batch, classes)`` or ``(batch, classes, H, W)``, or numbers
    ``(batch, outputs)`` in their own units.

    Attributes:
        answer: from the network's logits to that.
    """

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.frontend = make_frontend(spec.modality, spec.frontend, spec.tokenizer)
        shapes = {spec.modality.name: self.frontend.feature_shape}
        outputs = len(spec.output.names)
        model = build_model("student", spec.network, shapes, outputs, where="student", map_size=spec.map_size)
        self.network = model.module
        self.answer = InUnits(outputs) if spec.output.scale else nn.Identity()

    @property
    def prepares(self) -> tuple[str, ...]:
        """Dotted paths of what makes the network's numbers of recorded ones: the front end, and what ``prepares`` in
        the network."""
        return ("frontend", *(f"network.{path}" for path in getattr(self.network, "prepares", ())))

    def forward(self, raw: Tensor) -> Tensor:
        return self.answer(self.network(self.frontend(raw)))


def save_student(folder: Path, student: Student) -> None:
    """Writes ``student.safetensors``, ``student.yaml`` and, where the student reads text, ``tokenizer.json``."""
    spec = student.spec
    description: dict[str, Any] = {
        "modality": {**asdict(spec.modality), "kind": spec.modality.kind.value, "shape": list(spec.modality.shape)},
        "frontend": asdict(spec.frontend),
        "network": {"network": spec.network.network, "options": dict(spec.network.options)},
        "output": {key: list(said) if isinstance(said, tuple) else said for key, said in asdict(spec.output).items()},
        "map_size": None if spec.map_size is None else list(spec.map_size),
        "facts": spec.facts,
    }
    save_tensors(folder / WEIGHTS, {"student": copy_state(student)}, {})
    description["weights_sha256"] = sha256_file(folder / WEIGHTS)
    if spec.tokenizer is not None:
        write_text(folder / TOKENIZER, spec.tokenizer.to_json())
        description["tokenizer_sha256"] = sha256_file(folder / TOKENIZER)
    write_text(folder / DESCRIPTION, yaml.safe_dump(description, sort_keys=False))


def load_student(folder: Path) -> Student:
    """The student that ``save_student`` wrote, in eval mode, on the CPU.

    Raises:
        UserError: a file is missing, or not the one described.
    """
    about, weights = read_yaml(folder / DESCRIPTION), folder / WEIGHTS
    _require_file(weights, about["weights_sha256"])
    reads_text = "tokenizer_sha256" in about
    if reads_text:
        _require_file(folder / TOKENIZER, about["tokenizer_sha256"])
    said = about["modality"]
    kind = Kind(said["kind"])
    student = Student(
        StudentSpec(
            modality=ModalitySpec(said["name"], kind, tuple(said["shape"]), said["dtype"], said["sample_rate_hz"]),
            frontend=frontend_options(kind, about["frontend"])(**about["frontend"]),
            network=NetworkChoice(**about["network"]),
            output=OutputSpec.from_dict(about["output"]),
            map_size=None if about["map_size"] is None else tuple(about["map_size"]),
            facts=about["facts"],
            tokenizer=read_tokenizer(folder / TOKENIZER) if reads_text else None,
        )
    )
    groups, _ = load_tensors(weights)
    student.load_state_dict(groups["student"])
    return student.eval()


def _require_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise UserError("no such file", where=path)
    if sha256_file(path) != sha256:
        raise UserError(f"differs from the file that {DESCRIPTION} describes", where=path)


@torch.inference_mode()
def student_outputs(student: Student, raw: NDArray[Any], batch: int = 256) -> Iterator[NDArray[np.float32]]:
    """What the student answers, ``batch`` samples at a time, as the graph takes them."""
    for start in range(0, len(raw), batch):
        yield student(torch.from_numpy(np.array(raw[start : start + batch]))).numpy()
