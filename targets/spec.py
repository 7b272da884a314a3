"""Value types of this package: targets, builds, probes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from apps.runtime.machine import settings_here
from mst_edge.core.errors import UserError
from mst_edge.core.files import read_json, write_json
from quantize.variant import is_float

BUILD_FILE = "build.json"
WHOLE_BF16 = "bf16-whole"


@dataclass(frozen=True)
class TargetSpec:
    """One kind of hardware.

    Attributes:
        runtimes: names of the inference runtimes that serve it unless others are asked for.
        on_host: whether builds can run on this machine.
    """

    name: str
    summary: str
    runtimes: tuple[str, ...]
    on_host: bool


@dataclass(frozen=True)
class Probe:
    """What a runtime found out about itself here. ``reason`` says why it is not available."""

    available: bool
    version: str = ""
    precisions: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Build:
    """A variant compiled for a target by one of its runtimes.

    Attributes:
        id: ``<runtime>-<label>``: the variant's name, or what it is run in where the runtime changes that.
        precision: what the network's arithmetic is done in: fp32, fp16, bf16, int8, bf16-whole (also the front end,
            which is fp32 elsewhere), int8-bf16 (what is not int8 is bf16); w8 or w4 where weights alone are integers.
        folder: holds the model file and ``build.json``.
        model: file name inside ``folder``.
        options: what the runtime is opened with, unless it was tuned for this machine.
        tuned: what tuning found: ``options`` for a ``machine``; empty where it was not tuned, or nothing was faster.
        deployable: whether a bundle can carry it: it runs without torch.
    """

    id: str
    target: str
    runtime: str
    precision: str
    variant: str
    folder: Path
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    deployable: bool = True

    @property
    def is_float(self) -> bool:
        """Whether no weight or activation is an integer."""
        return is_float(self.precision)

    @property
    def settings(self) -> dict[str, Any]:
        """What the runtime is opened with on this machine."""
        return settings_here(self.options, self.tuned)

    @property
    def model_path(self) -> Path:
        """The file that the runtime opens."""
        return self.folder / self.model

    @property
    def size_bytes(self) -> int:
        """Bytes of all model files."""
        return sum(file.stat().st_size for file in self.model_files())

    def model_files(self) -> list[Path]:
        """Every file that belongs to the model, sorted."""
        return sorted(file for file in self.folder.iterdir() if file.name != BUILD_FILE)

    def save(self) -> None:
        """Writes ``build.json`` beside the model."""
        record = asdict(self)
        del record["folder"]
        write_json(self.folder / BUILD_FILE, record)


def load_build(folder: Path) -> Build:
    """Reads a build back.

    Raises:
        UserError: the folder holds no build.
    """
    path = folder / BUILD_FILE
    if not path.is_file():
        raise UserError("holds no build", where=folder)
    return Build(**read_json(path), folder=folder)
