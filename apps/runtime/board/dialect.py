"""How to ask a board's TensorRT for a build: the flags differ between its versions, what they mean does not.

The precision lies in the ONNX file. TensorRT up to 10.11 types layers weakly and wants to be told which precisions it
may take; from 10.12 on it can be bound to the file's types; from 11 on it always is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError

WORKSPACE_MIB = 1024
_BANNER = re.compile(r"\[TensorRT v(\d{4,7})\]")
_FIRST, _TYPED, _ALWAYS_TYPED = (8, 6), (10, 12), (11, 0)
_WEAK: Mapping[str, tuple[str, ...]] = {"fp32": (), "fp16": ("fp16",), "bf16": ("bf16",), "int8": ("int8", "fp16")}
# The newest opset that each major version's parser says it reads (operators.md of onnx-tensorrt).
_OPSETS = {8: 17, 9: 19, 10: 20, 11: 24}


@dataclass(frozen=True, order=True)
class Version:
    """A version of TensorRT."""

    major: int
    minor: int
    patch: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def key(self) -> tuple[int, int]:
        """What decides how it is asked."""
        return self.major, self.minor


@dataclass(frozen=True)
class Dialect:
    """One way to ask.

    Attributes:
        name: for people: the versions that speak it.
        hints: precisions beside fp32 that layers may take, by the precision of the file.
        asks_typed: whether layers are bound to the file's types only where that is asked for.
    """

    name: str
    hints: Mapping[str, tuple[str, ...]]
    asks_typed: bool = False

    @property
    def flags(self) -> Mapping[str, tuple[str, ...]]:
        """``trtexec``'s for a build, by the precision of the file."""
        typed = ("--stronglyTyped",) if self.asks_typed else ()
        return {name: (*(f"--{hint}" for hint in hints), *typed) for name, hints in self.hints.items()}


WEAK = Dialect("8.6 to 10.11", _WEAK)
TYPED = Dialect("10.12 to 10.16", dict.fromkeys(_WEAK, ()), asks_typed=True)
ALWAYS_TYPED = Dialect("11", dict.fromkeys(_WEAK, ()))


def version_of(text: str) -> Version:
    """The version that the Python binding calls ``10.13.3.9``, say."""
    return Version(*(int(part) for part in text.split(".")[:3]))


def parse_version(banner: str) -> Version:
    """The version that ``trtexec`` prints first: ``v8601`` is 8.6.1, ``v100300`` is 10.3.0.

    Raises:
        BundleError: no such line.
    """
    found = _BANNER.search(banner)
    if found is None:
        raise BundleError("did not say its version", where="trtexec", fix="is this JetPack's trtexec?")
    number = int(found[1])
    step = 1000 if number < 10_000 else 10_000
    return Version(number // step, number % step // 100, number % 100)


def dialect_of(version: Version) -> Dialect:
    """How to ask this version.

    Raises:
        BundleError: older than all that is known.
    """
    if version.key < _FIRST:
        raise BundleError(f"is {version}; 8.6 is the oldest that is known", where="TensorRT", fix="flash JetPack 6.1")
    if version.key < _TYPED:
        return WEAK
    return TYPED if version.key < _ALWAYS_TYPED else ALWAYS_TYPED


def require_opset(version: Version, opset: int) -> None:
    """Makes sure that this version reads models of ``opset``.

    Raises:
        BundleError: it does not; JetPack 6.0 with TensorRT 8.6 reads 17 at most.
    """
    most = _OPSETS.get(version.major, max(_OPSETS.values()))
    if opset > most:
        raise BundleError(
            f"{version} reads ONNX opset {most} at most, the model is of {opset}",
            where="TensorRT",
            fix="TensorRT 10.3 (JetPack 6.1) or newer reads it",
        )


def build_command(
    trtexec: str,
    version: Version,
    precision: str,
    model: Path,
    plan: Path,
    timing_cache: Path,
    shapes: Mapping[str, Sequence[int]],
) -> list[str]:
    """What compiles ``model`` into the engine ``plan``.

    Args:
        shapes: of inputs with free axes, with the batch.

    Raises:
        BundleError: an older TensorRT than is known, or a precision that it is not built in.
    """
    flags = dialect_of(version).flags
    if precision not in flags:
        raise BundleError(f"cannot be built in {precision}", where=model)
    said = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    bounds = [f"--{bound}Shapes={said}" for bound in ("min", "opt", "max")] if said else []
    return [
        trtexec,
        f"--onnx={model}",
        f"--saveEngine={plan}",
        f"--timingCacheFile={timing_cache}",
        f"--memPoolSize=workspace:{WORKSPACE_MIB}",
        "--builderOptimizationLevel=3",
        "--profilingVerbosity=detailed",
        "--skipInference",
        *flags[precision],
        *bounds,
    ]


def time_command(trtexec: str, plan: Path, times: Path, shapes: Mapping[str, Sequence[int]], seconds: int) -> list[str]:
    """What runs an engine for ``seconds`` without Python, and writes the times of its runs to the file ``times``."""
    said = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return [
        trtexec,
        f"--loadEngine={plan}",
        "--warmUp=500",
        f"--duration={seconds}",
        "--percentile=90,95,99",
        f"--exportTimes={times}",
        *([f"--shapes={said}"] if said else []),
    ]
