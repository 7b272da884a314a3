"""What a runtime is: public methods check and time, a subclass writes ``_probe``, ``_build``, ``_load``,
``_run`` and ``_close`` only."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path, sha256_file
from mst_edge.core.machine import this_machine
from quantize.variant import Variant
from targets.spec import Build, Probe


class NotBuiltError(Exception):
    """A compiler did not take a model, or did not manage it; the message is what it says."""


class Runtime(ABC):
    """One inference engine on one target.

    Attributes:
        deployable: whether what it builds runs without torch, as everything in a bundle does.
        programs: which torch programs it compiles, see ``Variant.program``; empty: it takes ONNX, which all variants
            are.
        supports: the precisions that it runs on some machine, each with the features of the device of which it takes
            one; no features: any machine.
        also: by a file's precision, others that it may be run in: bf16 is no file of its own for a CPU, it is a way to
            run what is float in a file.
        device: what ``supports`` asks features of.
    """

    name: ClassVar[str]
    deployable: ClassVar[bool] = True
    programs: ClassVar[tuple[str, ...]] = ()
    supports: ClassVar[Mapping[str, tuple[str, ...]]]
    also: ClassVar[Mapping[str, tuple[str, ...]]] = {"fp32": ("bf16",), "int8": ("int8-bf16",)}
    device: ClassVar[str] = "CPU"

    def __init__(self, target: str) -> None:
        self.target = target

    def probe(self) -> Probe:
        """Whether it can be used here, and in which precisions."""
        return self._probe()

    def precisions(self, variant: Variant) -> tuple[str, ...]:
        """In which precisions this runtime can run ``variant`` here; empty if in none."""
        probe = self.probe()
        if not probe.available or not self.takes(variant):
            return ()
        return tuple(p for p in self.ways(variant.precision) if p in probe.precisions)

    def takes(self, variant: Variant) -> bool:
        """Whether what it compiles is there."""
        return not self.programs or (variant.program in self.programs and variant.program_file.is_file())

    @classmethod
    def ways(cls, precision: str) -> tuple[str, ...]:
        """In which precisions it can run a variant of ``precision``, on some machine; empty if in none."""
        return tuple(p for p in (precision, *cls.also.get(precision, ())) if p in cls.supports)

    @classmethod
    def features(cls) -> frozenset[str]:
        """What of ``supports``' features this machine's device has."""
        return frozenset(this_machine().isa)

    @classmethod
    def supported_here(cls) -> tuple[str, ...]:
        """Those of ``supports`` that this machine's device has what they take for."""
        has = cls.features()
        return tuple(p for p, takes in cls.supports.items() if not takes or has & set(takes))

    def unfit(self, variant: Variant) -> str:
        """Why it takes this variant in no precision, as far as is known before building; empty where nothing is."""
        return ""

    def knobs(self, cores: int, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        """Options that change how fast a build runs and not what it computes, with the values that they may have; the
        first is how a build is opened that does not name the option.

        Args:
            cores: of this machine, for threads.
            options: what it is opened with so far.
        """
        return {}

    def write_proof(self, folder: Path, precision: str) -> str:
        """Writes the model of a proof as ``folder`` needs it beside the ONNX file; returns what program that is."""
        return ""

    def label(self, variant: Variant, precision: str) -> str:
        """What tells builds of this runtime apart."""
        if precision == variant.precision:
            return variant.name
        return precision if variant.name == variant.precision else f"{variant.name}-{precision.rpartition('-')[2]}"

    def build_id(self, variant: Variant, precision: str) -> str:
        """What a build is called."""
        return f"{self.name}-{self.label(variant, precision)}"

    def depends_on(self, variant: Variant, precision: str, threads: int) -> dict[str, Any]:
        """All that decides what ``build`` writes, and whether it runs: what equals in all of it is the same build."""
        return {
            "runtime": self.name,
            "runtime_version": self.probe().version,
            "target": self.target,
            "precision": precision,
            "threads": threads,
            "model": sha256_file(variant.program_file if self.programs else variant.model),
            "input": asdict(variant.input),
            "float_nodes": list(variant.float_nodes),
            "answer_nodes": list(variant.answer_nodes),
            "in_float": list(variant.in_float),
            "hardware": self.hardware(),
            # Not a version number that someone may forget to raise: the code itself.
            "code": {name: sha256_file(Path(str(sys.modules[name].__file__))) for name in sorted(self._code())},
        }

    def hardware(self) -> dict[str, Any]:
        """What of this machine a build depends on."""
        machine = this_machine()
        return {"arch": machine.arch, "cpu": machine.cpu, "isa": list(machine.isa)}

    def _code(self) -> set[str]:
        """Names of the modules that the runtime is written in."""
        return {cls.__module__ for cls in type(self).__mro__} - {"abc", "builtins"}

    def build(self, variant: Variant, precision: str, threads: int, folder: Path) -> Build:
        """Compiles ``variant`` into ``folder``.

        Raises:
            UserError: the runtime cannot run the variant in that precision.
            NotBuiltError: its compiler gave up.
        """
        if precision not in self.precisions(variant):
            raise UserError(f"{self.name} cannot run variant {variant.name} in {precision} here")
        start = time.perf_counter_ns()
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            model, options = self._build(variant, precision, temporary)
            build = Build(
                id=self.build_id(variant, precision),
                target=self.target,
                runtime=self.name,
                precision=precision,
                variant=variant.name,
                folder=temporary,
                model=model,
                options={"threads": threads, **options},
                deployable=self.deployable,
                facts={
                    "build_ms": (time.perf_counter_ns() - start) / 1e6,
                    "runtime_version": self.probe().version,
                    "input": {
                        "shape": list(variant.input.shape),
                        "sizes": list(variant.input.sizes),
                        "dtype": variant.input.dtype,
                    },
                },
            )
            build.facts.update(self._facts(build))
            build.save()
        return replace(build, folder=folder)

    def load(self, build: Build) -> Runner:
        """A runner for ``build``: use it as a context manager."""
        return Runner(self, build)

    @abstractmethod
    def _probe(self) -> Probe: ...

    @abstractmethod
    def _build(self, variant: Variant, precision: str, folder: Path) -> tuple[str, Mapping[str, Any]]:
        """Writes model files into ``folder``; returns the one to open and the options to open it with."""

    def _facts(self, build: Build) -> Mapping[str, Any]:
        """What is known of a build once it is there: of the device, say, or which parts of it run where.

        Under ``notes``: what a person must know of it.
        """
        return {}

    def device_ms(self, handle: Any) -> float | None:
        """Time of the latest run on the device alone, by its own clock; None where the engine does not tell."""
        return None

    @abstractmethod
    def _load(self, build: Build) -> Any: ...

    @abstractmethod
    def _run(self, handle: Any, batch: NDArray[Any]) -> NDArray[np.float32]: ...

    @abstractmethod
    def _close(self, handle: Any) -> None: ...


class Runner:
    """A loaded build.

    Attributes:
        device: what it runs on, CPU or GPU.
        load_ms: time that loading took.
        last_ms: time of the latest ``run``, host arrays in and out.
        device_ms: that of the device alone, by its own clock; None where the engine does not tell.
    """

    def __init__(self, runtime: Runtime, build: Build) -> None:
        self._runtime, self.build = runtime, build
        self._shape = tuple(build.facts["input"]["shape"])
        self._dtype = np.dtype(build.facts["input"]["dtype"])
        self.device = runtime.device
        self._handle: Any = None
        self.load_ms = 0.0
        self.last_ms = 0.0
        self.device_ms: float | None = None

    def __enter__(self) -> Runner:
        start = time.perf_counter_ns()
        self._handle = self._runtime._load(self.build)
        self.load_ms = (time.perf_counter_ns() - start) / 1e6
        return self

    def __exit__(self, *_: object) -> None:
        self._runtime._close(self._handle)
        self._handle = None

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """``(batch, *input)`` to ``(batch, outputs)``.

        Raises:
            ValueError: wrong shape or dtype, or a runner that is not open.
        """
        fits = len(batch.shape) == 1 + len(self._shape) and all(
            size in (None, given) for size, given in zip(self._shape, batch.shape[1:], strict=True)
        )
        if not fits or batch.dtype != self._dtype or self._handle is None:
            state = "closed runner" if self._handle is None else f"{batch.shape} {batch.dtype}"
            raise ValueError(f"expected (batch, *{self._shape}) {self._dtype}. Received: {state}")
        start = time.perf_counter_ns()
        output = self._runtime._run(self._handle, batch)
        self.last_ms = (time.perf_counter_ns() - start) / 1e6
        self.device_ms = self._runtime.device_ms(self._handle)
        return output


def thread_counts(cores: int) -> tuple[int, ...]:
    """1, 2, 4 ... and all cores."""
    return tuple(sorted({*(1 << power for power in range(cores.bit_length())), cores}))
