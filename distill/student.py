"""The deployable student: front end and network as one module, and its form on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import frontend_options, make_frontend
from distill.networks.registry import NetworkChoice, build_model
from distill.training.checkpoint import copy_state, load_tensors, save_tensors
from mst_edge.core.border import read_yaml
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_file, write_text

WEIGHTS, DESCRIPTION = "student.safetensors", "student.yaml"


@dataclass(frozen=True)
class StudentSpec:
    """What is needed to build the student again: everything but its weights."""

    modality: ModalitySpec
    frontend: Any
    network: NetworkChoice
    classes: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)


class Student(nn.Module):
    """``(batch, *modality.shape)`` as a device records it to logits ``(batch, classes)``."""

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.frontend = make_frontend(spec.modality, spec.frontend)
        shapes = {spec.modality.name: self.frontend.feature_shape}
        model = build_model("student", spec.network, shapes, len(spec.classes), where="student")
        self.network = model.module

    def forward(self, raw: Tensor) -> Tensor:
        return self.network(self.frontend(raw))


def save_student(folder: Path, student: Student) -> None:
    """Writes ``student.safetensors`` and ``student.yaml``."""
    spec = student.spec
    description = {
        "modality": {**asdict(spec.modality), "kind": spec.modality.kind.value, "shape": list(spec.modality.shape)},
        "frontend": asdict(spec.frontend),
        "network": {"network": spec.network.network, "options": dict(spec.network.options)},
        "classes": list(spec.classes),
        "facts": spec.facts,
    }
    save_tensors(folder / WEIGHTS, {"student": copy_state(student)}, {})
    description["weights_sha256"] = sha256_file(folder / WEIGHTS)
    write_text(folder / DESCRIPTION, yaml.safe_dump(description, sort_keys=False))


def load_student(folder: Path) -> Student:
    """The student that ``save_student`` wrote, in eval mode, on the CPU.

    Raises:
        UserError: a file is missing, or the weights are not those described.
    """
    about, weights = read_yaml(folder / DESCRIPTION), folder / WEIGHTS
    if not weights.is_file():
        raise UserError("no such file", where=weights)
    if sha256_file(weights) != about["weights_sha256"]:
        raise UserError(f"weights differ from those that {DESCRIPTION} describes", where=weights)
    said = about["modality"]
    kind = Kind(said["kind"])
    student = Student(
        StudentSpec(
            modality=ModalitySpec(said["name"], kind, tuple(said["shape"]), said["dtype"], said["sample_rate_hz"]),
            frontend=frontend_options(kind)(**about["frontend"]),
            network=NetworkChoice(**about["network"]),
            classes=tuple(about["classes"]),
            facts=about["facts"],
        )
    )
    groups, _ = load_tensors(weights)
    student.load_state_dict(groups["student"])
    return student.eval()


@torch.inference_mode()
def student_logits(student: Student, raw: Tensor, batch: int = 256) -> Tensor:
    """``(samples, classes)`` from raw samples, in float32."""
    return torch.cat([student(raw[start : start + batch]) for start in range(0, len(raw), batch)])
