"""A target: the runtimes that serve one kind of hardware, and what they build for it."""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError, unknown_name
from quantize.variant import Variant
from targets.kept import Kept
from targets.measure import Worker
from targets.runtimes.base import NotBuiltError, Runner, Runtime
from targets.spec import Build, Probe, TargetSpec

_BUILT_IN = {
    "cpu": "targets.cpu:CpuTarget",
    "cuda": "targets.cuda:CudaTarget",
    "jetson-orin-nano": "targets.jetson:OrinNano",
    "jetson-orin-nx": "targets.jetson:OrinNx",
    "jetson-agx-orin": "targets.jetson:AgxOrin",
    "jetson-thor": "targets.jetson:Thor",
}
_ENTRY_POINTS = "mst_edge.targets"


@dataclass(frozen=True)
class Skipped:
    """A build that was not made, and why."""

    id: str
    reason: str


class Target:
    """One kind of hardware; subclasses give ``spec`` and ``runtime_classes``.

    Attributes:
        schemes: quantizations that the hardware wants; made for it where nobody asked for them.
    """

    spec: ClassVar[TargetSpec]
    runtime_classes: ClassVar[dict[str, str]]
    schemes: ClassVar[tuple[str, ...]] = ()

    def runtime(self, name: str) -> Runtime:
        """The runtime called ``name`` on this target, imported on use.

        Raises:
            UserError: this target has no such runtime.
        """
        if name not in self.runtime_classes:
            raise unknown_name(f"runtime of target {self.spec.name}", name, self.runtime_classes)
        cls: type[Runtime] = _load(self.runtime_classes[name])
        return cls(self.spec.name)

    def require_host(self) -> None:
        """Makes sure that builds can run on this machine.

        Raises:
            UserError: it is a device of its own.
        """
        if not self.spec.on_host:
            raise UserError(
                f"is {self.spec.summary}, not this machine",
                where=self.spec.name,
                fix=f"`mst-edge deploy ... --target {self.spec.name}` packs a bundle that is built and measured there",
            )

    def require_here(self) -> None:
        """Of a target that is this machine, makes sure that a runtime works; what is built elsewhere needs none.

        Raises:
            UserError: none does; says what the first one lacks.
        """
        probes = self.probe()
        if self.spec.on_host and not any(probe.available for probe in probes.values()):
            name, probe = next(iter(probes.items()))
            raise UserError(
                f"nothing here runs it ({name}: {probe.reason.partition(' (')[0]})",
                where=f"target {self.spec.name}",
                fix=f"`mst-edge doctor --target {self.spec.name}` says what mends it",
            )

    def probe(self) -> dict[str, Probe]:
        """What every runtime that bundles run with found out about itself here."""
        return {name: self.runtime(name).probe() for name in self.spec.runtimes}

    def chosen_runtimes(self, names: Collection[str]) -> tuple[str, ...]:
        """Its runtimes among ``names``, which may be of several targets; where there are no names, those that bundles
        run with."""
        return tuple(name for name in self.runtime_classes if name in names) if names else self.spec.runtimes

    def build_all(
        self,
        variants: list[Variant],
        threads: int,
        folder: Path,
        *,
        ours: bool = True,
        keep: bool = False,
        runtimes: Collection[str] = (),
    ) -> Iterator[Build | Skipped]:
        """Compiles every variant with every runtime, in every precision that works here.

        Args:
            runtimes: see ``chosen_runtimes``.
            ours: of a student of ours, a float build that a runtime does not take is our own mistake; with a model
                from elsewhere it is skipped like any other.
            keep: take builds from the cache that were made before, and put new ones there.
        """
        own = [one for one in variants if one.target in ("", self.spec.name)]
        for name in self.chosen_runtimes(runtimes):
            runtime = self.runtime(name)
            probe = runtime.probe()
            if not probe.available:
                yield Skipped(name, probe.reason)
                continue
            if not any(runtime.takes(variant) for variant in own):
                yield Skipped(name, "not applicable: compiles the torch program of a run's student, and there is none")
            for variant in own:
                unfit = runtime.unfit(variant)
                for precision in runtime.precisions(variant):
                    place = folder / runtime.build_id(variant, precision)
                    if unfit:
                        yield Skipped(place.name, unfit)
                        continue
                    kept = Kept(runtime, variant, precision, threads) if keep else None
                    made: Build | Skipped | None = kept.take(place) if kept else None
                    if made is None:
                        make = functools.partial(runtime.build, variant, precision, threads, place)
                        made = self._made(make, place, ours=ours and runtime.deployable)
                        if kept and isinstance(made, Build):
                            kept.put(made)
                    yield made

    def _made(self, build: Callable[[], Build], place: Path, *, ours: bool) -> Build | Skipped:
        """A build that ran, or why there is none."""
        try:
            made = build()
        except NotBuiltError as error:
            return Skipped(place.name, " ".join(str(error).split()))
        except Exception as error:
            if ours or isinstance(error, UserError):  # a full disk, say
                raise
            return Skipped(place.name, _does_not_run(error))
        problem = self._problem(made, ours=ours)
        return Skipped(made.id, problem) if problem else made

    def _problem(self, build: Build, *, ours: bool) -> str:
        """Why a build does not run here, found by running it once; empty if it does.

        Runtimes accept files that they then have no kernel for, and some crash. So whatever is not simply our own
        float network is tried in a process of its own.
        """
        about = build.facts["input"]
        zeros = np.zeros((1, *about["sizes"]), about["dtype"])
        try:
            if ours and build.precision == "fp32":
                with self.load(build) as runner:
                    runner.run(zeros)
            else:
                _run_apart(build, zeros)
        except Exception as error:
            if build.is_float and ours:
                raise
            return _does_not_run(error)
        return ""

    def load(self, build: Build) -> Runner:
        """A runner for one of this target's builds."""
        if build.target != self.spec.name:
            raise UserError(f"build {build.id} is for target {build.target}, not {self.spec.name}")
        return self.runtime(build.runtime).load(build)


def gather(
    made: Iterable[Build | Skipped], target: str, where: object, tell: Callable[[Build], None] = lambda _: None
) -> tuple[list[Build], list[Skipped]]:
    """The builds of something, and what was not built of it.

    Args:
        where: what it is, for the error.
        tell: hears of each build when it is made.

    Raises:
        UserError: there is no build; the message gives the reasons.
    """
    builds: list[Build] = []
    skipped: list[Skipped] = []
    for one in made:
        if isinstance(one, Build):
            tell(one)
            builds.append(one)
        else:
            skipped.append(one)
    if not builds:
        reasons = "; ".join(f"{entry.id}: {entry.reason}" for entry in skipped)
        raise UserError(f"has no build for {target} ({reasons})", where=where)
    return builds, skipped


def _run_apart(build: Build, sample: NDArray[Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as folder:
        np.save(Path(folder) / "sample.npy", sample, allow_pickle=False)
        with Worker(build, Path(folder) / "sample.npy"):  # loads it and runs the sample
            pass


def _does_not_run(error: Exception) -> str:
    return f"the runtime does not run it: {' '.join(str(error).split())}"


def get_target(name: str) -> Target:
    """The target called ``name``: built in, or from an installed package's entry point.

    Raises:
        UserError: unknown name.
    """
    paths = dict(_BUILT_IN)
    for point in metadata.entry_points(group=_ENTRY_POINTS):
        paths.setdefault(point.name, point.value)
    if name not in paths:
        raise unknown_name("target", name, paths, where="targets")
    target: Target = _load(paths[name])()
    return target


def require_runtimes(targets: Iterable[str], names: Sequence[str], where: str) -> None:
    """Makes sure that targets have the runtimes that someone asks for.

    Raises:
        UserError: an unknown target; a runtime that none of them has; or a target that has none of the runtimes.
    """
    found = [get_target(name) for name in targets]
    known = {runtime for target in found for runtime in target.runtime_classes}
    for name in names:
        if name not in known:
            raise unknown_name("runtime", name, sorted(known), where=where)
    for target in found:
        if target.spec.on_host and not target.chosen_runtimes(names):
            raise UserError(
                f"has none of the runtimes that {where} names",
                where=target.spec.name,
                fix=f"name one of {', '.join(target.runtime_classes)}",
            )


def target_names() -> list[str]:
    """All known targets, sorted."""
    return sorted({*_BUILT_IN, *(point.name for point in metadata.entry_points(group=_ENTRY_POINTS))})


def _load(path: str):  # type: ignore[no-untyped-def]
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
