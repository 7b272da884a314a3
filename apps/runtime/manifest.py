"""``manifest.json``: what a bundle says of itself, parsed and checked once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import BundleError

MANIFEST = "manifest.json"
FORMAT, VERSION = "mst-edge-bundle", 3
STREAMED = ("audio", "sequence")  # kinds of input that windows are cut from


@dataclass(frozen=True)
class InputSpec:
    """The graph's one input.

    Attributes:
        shape: without the batch axis; None for an axis of free size.
        tokenizer: path inside the bundle of what makes token ids of a text; None where the input is no text.
        hop: samples (of a sequence, rows) from one window of a stream to the next; None where the input is not cut
            from a stream.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...]
    dtype: str
    sample_rate_hz: int | None
    tokenizer: str | None = None
    hop: int | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """``shape`` where no axis is free, as it is for sounds and pictures."""
        return tuple(size for size in self.shape if size is not None)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a sample of ``shape`` can be read."""
        same = (size in (None, given) for size, given in zip(self.shape, shape, strict=True))
        return len(shape) == len(self.shape) and all(same)

    def text(self) -> str:
        """Shape and type, for people; ? for a free axis."""
        return f"{self.shape} {self.dtype}".replace("None", "?")


@dataclass(frozen=True)
class BuildEntry:
    """One build in a bundle.

    Attributes:
        model: path of its model file inside the bundle.
        options: what the engine is opened with (threads, precision), unless it was tuned for a machine like this one.
        tuned: what tuning found: ``options`` for a ``machine``; empty where it was not tuned, or nothing was faster.
        reference_outputs: path of the outputs that it gave for the reference inputs.
        tolerance: how far from them another device may be; of numbers, in units of ``scale``.
        expected: accuracy, latency and memory as measured when it was packed.
    """

    id: str
    runtime: str
    precision: str
    model: str
    options: dict[str, Any]
    reference_outputs: str
    tolerance: float
    expected: dict[str, Any]
    tuned: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamEntry:
    """The student as a model of one frame after another (ONNX, fp32).

    Attributes:
        model: path of its file inside the bundle.
        state: numbers that are kept from one frame to the next, zeros before the first.
        taken: the frames of a clip after which it says what the student says of the clip.
        rate_hz: frames per second that it expects; None where nobody said.
        tolerance: how far it may be from the fp32 model's answers for the reference inputs.
    """

    model: str
    state: int
    taken: tuple[int, ...]
    rate_hz: float | None
    tolerance: float


@dataclass(frozen=True)
class Manifest:
    """A whole manifest; ``builds`` in order of preference.

    Attributes:
        task: ``classification``, ``segmentation`` or ``regression``.
        labels: names of the classes, or of the numbers.
        units: of the numbers, one per label; empty for classes.
        scale: standard deviation of each number over the training data; empty for classes.
        ordinal: centres of the ordinal classes that the one number falls into, rising; mostly empty.
        ignore_label: class that stands for pixels without a label.
        fp32_outputs: path of what the fp32 model says of the reference inputs.
        stream: for a student that streams clips.
    """

    name: str
    target: str
    task: str
    labels: tuple[str, ...]
    units: tuple[str, ...]
    scale: tuple[float, ...]
    ordinal: tuple[float, ...]
    ignore_label: int | None
    input: InputSpec
    reference_inputs: str
    fp32_outputs: str
    builds: tuple[BuildEntry, ...]
    gate: dict[str, Any]
    files: dict[str, str]
    provenance: dict[str, Any]
    licence: str
    stream: StreamEntry | None = None


def read_manifest(folder: Path) -> Manifest:
    """Parses a bundle's manifest.

    Raises:
        BundleError: there is none, it is of another format or version, or it names a path outside the
            bundle.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"has no {MANIFEST}", where=folder, fix="give a bundle, as `mst-edge run` packs it") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"not readable JSON ({error})", where=path) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise BundleError(f"not a manifest of format {FORMAT}", where=path)
    if raw.get("version") != VERSION:
        raise BundleError(
            f"is of version {raw.get('version')}, this runtime reads version {VERSION}",
            where=path,
            fix="use the runtime that the bundle carries",
        )
    try:
        manifest = _parse(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"lacks or misstates {error}", where=path) from None
    own = [manifest.input.tokenizer] if manifest.input.tokenizer is not None else []
    own += [manifest.stream.model] if manifest.stream is not None else []
    read = (manifest.reference_inputs, manifest.fp32_outputs)
    for name in (*manifest.files, *read, *own, *(build.model for build in manifest.builds)):
        inside(folder, name)
    return manifest


def _parse(raw: dict[str, Any]) -> Manifest:
    said = raw["input"]
    builds = tuple(
        BuildEntry(
            id=str(build["id"]),
            runtime=str(build["runtime"]),
            precision=str(build["precision"]),
            model=str(build["model"]),
            options=dict(build["options"]),
            reference_outputs=str(build["reference_outputs"]),
            tolerance=float(build["tolerance"]),
            expected=dict(build["expected"]),
            tuned=_tuned(build.get("tuned", {})),
        )
        for build in raw["builds"]
    )
    if not builds:
        raise ValueError("builds (empty)")
    return Manifest(
        name=str(raw["name"]),
        target=str(raw["target"]),
        task=str(raw["task"]),
        labels=tuple(str(label) for label in raw["labels"]),
        units=tuple(str(unit) for unit in raw["units"]),
        scale=tuple(float(scale) for scale in raw["scale"]),
        ordinal=tuple(float(centre) for centre in raw.get("ordinal", ())),
        ignore_label=None if raw["ignore_label"] is None else int(raw["ignore_label"]),
        input=InputSpec(
            name=str(said["name"]),
            kind=str(said["kind"]),
            shape=tuple(None if size is None else int(size) for size in said["shape"]),
            dtype=str(said["dtype"]),
            sample_rate_hz=None if said["sample_rate_hz"] is None else int(said["sample_rate_hz"]),
            tokenizer=str(said["tokenizer"]) if "tokenizer" in said else None,
            hop=_hop(said),
        ),
        reference_inputs=str(raw["reference_inputs"]),
        fp32_outputs=str(raw["fp32_outputs"]),
        builds=builds,
        gate=dict(raw["gate"]),
        files={str(name): str(digest) for name, digest in raw["files"].items()},
        provenance=dict(raw["provenance"]),
        licence=str(raw["licence"]),
        stream=_stream(raw["stream"], said["shape"][0]) if "stream" in raw else None,
    )


def _stream(said: dict[str, Any], time: int) -> StreamEntry:
    taken = tuple(int(number) for number in said["taken"])
    if not taken or not all(0 <= number < time for number in taken) or int(said["state"]) < 1:
        raise ValueError(f"stream ({said})")
    rate = said["rate_hz"]
    return StreamEntry(
        model=str(said["model"]),
        state=int(said["state"]),
        taken=taken,
        rate_hz=None if rate is None else float(rate),
        tolerance=float(said["tolerance"]),
    )


def default_hop(kind: str, shape: Sequence[int | None]) -> int | None:
    """Where nobody said otherwise, a window of sound or of a sequence begins a tenth of its length after the last."""
    if kind not in STREAMED or not shape or shape[0] is None:
        return None
    return max(1, shape[0] // 10)


def _hop(said: dict[str, Any]) -> int | None:
    """Bundles that were packed before there was the key have the default."""
    hop = said["hop"] if "hop" in said else default_hop(str(said["kind"]), said["shape"])
    if hop is not None and not 1 <= hop <= said["shape"][0]:
        raise ValueError(f"input.hop ({hop})")
    return None if hop is None else int(hop)


def _tuned(said: dict[str, Any]) -> dict[str, Any]:
    return {"machine": dict(said["machine"]), "options": dict(said["options"])} if said else {}


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, refused where it would lie outside ``folder``.

    Raises:
        BundleError: an absolute path, a parent step, a backslash, or a link that leads out.
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        raise BundleError(f"names a path outside the bundle: {name!r}", where=folder / MANIFEST)
    path = folder / pure
    if folder.resolve() not in path.resolve().parents:
        raise BundleError(f"{name!r} is a link that leads out of the bundle", where=folder / MANIFEST)
    return path
