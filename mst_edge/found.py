"""What a board says that it found, parsed strictly: it came from another machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from apps.runtime.board.results import RESULT, read_result
from apps.runtime.manifest import Manifest
from mst_edge.core.errors import UserError

_COPY = "copy it from the board again, or delete it there and start again"
_Positive = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Build(_Part):
    command: list[str]
    seconds: _Positive
    problem: str
    size_bytes: int | None
    plan_sha256: str | None

    @model_validator(mode="after")
    def _whole(self) -> _Build:
        if not self.problem and None in (self.size_bytes, self.plan_sha256):
            raise ValueError("says neither a problem nor an engine")
        return self


class _Check(_Part):
    passed: bool
    problem: str
    outputs_sha256: str | None = None
    difference: _Positive | None = None
    tolerance: _Positive | None = None
    samples: int | None = None
    agreement: _Positive | None = None
    metric: str | None = None
    value: float | None = None
    fp32_value: float | None = None

    @model_validator(mode="after")
    def _whole(self) -> _Check:
        if not self.problem and None in (self.outputs_sha256, self.difference, self.tolerance):
            raise ValueError("says neither a problem nor outputs")
        return self


class _Latency(_Part):
    p50_ms: _Positive
    p90_ms: _Positive
    p99_ms: _Positive
    mean_ms: _Positive
    runs: int
    what: str = ""


class _Energy(_Part):
    total_mj: float
    above_idle_mj: float
    busy_mw: float
    idle_mw: float
    rails: list[str]


class _Bench(_Part):
    latency: _Latency
    gpu_compute: dict[str, float | int | str]
    load_and_first_ms: _Positive
    peak_memory_mb: _Positive | None
    energy: _Energy | None
    hottest_c: float | None
    throttled: list[str]
    watch_problem: str
    valid: bool
    under: dict[str, Any]


class _Builds(_Part):
    build: _Build | None = None
    check: _Check | None = None
    bench: _Bench | None = None


class _Found(_Part):
    format: str
    version: int
    name: str
    target: str
    manifest_sha256: str
    board: dict[str, Any] | None
    tensorrt: str | None
    builds: dict[str, _Builds]
    chosen: str | None


def read_found(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """``result.json`` of a bundle that was on a board.

    Raises:
        UserError: it is no such file: not JSON, with NaN or a key twice, with parts missing or of another type, or
            about builds that the bundle has not.
        BundleError: it is of another bundle.
    """
    path = folder / RESULT
    try:
        json.loads(path.read_bytes(), parse_constant=_no_number, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not what a board writes ({error})", where=path, fix=_COPY) from None
    found = read_result(folder, manifest)
    try:
        _Found.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"is not what a board writes ({place}: {first['msg']})", where=path, fix=_COPY) from None
    unknown = {*found["builds"], found["chosen"]} - {build.id for build in manifest.builds} - {None}
    if unknown:
        raise UserError(f"tells of builds that the bundle has not: {', '.join(unknown)}", where=path, fix=_COPY)
    return found


def read_outputs(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """What a build said of the samples that judge, ``shape`` as the fp32 model's.

    Raises:
        UserError: the file holds something else.
    """
    try:
        outputs = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"is not readable ({error})", where=path, fix=_COPY) from None
    if not isinstance(outputs, np.ndarray) or outputs.shape != shape or outputs.dtype != np.float32:
        raise UserError(f"does not hold float32 of shape {shape}", where=path, fix=_COPY)
    return outputs


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} twice")
        found[key] = value
    return found
