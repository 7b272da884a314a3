"""How long students take on a target: predicted from a table of measured blocks, and measured whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from distill.student import Student
from mst_edge.core.cache import cache_root, entry_folder, look_up, new_entry
from mst_edge.core.errors import UserError
from mst_edge.core.files import read_json, write_json
from mst_edge.recipe import Recipe
from mst_edge.search.blocks import UNREAD, Block, cut, export_blocks, overhead
from mst_edge.stages.goals import goals_of
from quantize.export import export_student
from targets.gate import Goals
from targets.measure import Measurement, Protocol, measure
from targets.runtimes.base import Runtime
from targets.spec import Build
from targets.target import get_target

T = TypeVar("T")
KIND = "blocks"
# A process each, all loaded at once: as many as a small machine has memory for.
_AT_ONCE = 8
_BLOCKS = Protocol("blocks", min_runs=60, min_seconds=0.12, max_seconds=3.0, idle_seconds=0.0)
_WHOLE = Protocol("search", min_runs=120, min_seconds=0.5, max_seconds=6.0, idle_seconds=0.0)
_COST = "cost.json"
_FP32 = "fp32"


@dataclass(frozen=True)
class Bench:
    """Where students of a search are timed: one runtime of one target, in fp32."""

    target: str
    runtime: Runtime
    threads: int
    goals: Goals

    def build(self, variant: Any, folder: Path) -> Build:
        """The variant as the runtime runs it."""
        return self.runtime.build(variant, _FP32, self.threads, folder)


def benches(recipe: Recipe) -> list[Bench]:
    """A bench for each of the recipe's targets that is this machine: its first runtime that works here.

    Raises:
        UserError: none is, or none of a target's runtimes takes an ONNX file in fp32 here.
    """
    found = []
    for name in recipe.targets:
        target = get_target(name)
        if not target.spec.on_host:
            continue
        runtimes = [target.runtime(one) for one in target.chosen_runtimes(recipe.measure.runtimes)]
        fit = next((one for one in runtimes if not one.programs and _FP32 in one.probe().precisions), None)
        if fit is None:
            raise UserError(
                f"no runtime of {name} takes ONNX files in fp32 here, which students of a search are timed as",
                where="measure.runtimes",
                fix=f"name one of {', '.join(target.spec.runtimes)}; `mst-edge doctor --target {name}` says which work",
            )
        found.append(Bench(name, fit, recipe.measure.threads, goals_of(recipe, name)))
    if not found:
        raise UserError(
            f"a search measures on a target, and none of {', '.join(recipe.targets)} is this machine",
            where="search",
            fix="add cpu to targets",
        )
    return found


def excess(goals: Goals, mb: float, p50_ms: float, p90_ms: float | None = None, p99_ms: float | None = None) -> float:
    """How far latency and size miss the goals: a share of each, summed; 0 where all are met.

    A percentile that is not known is at least the one below it.
    """
    p90_ms = max(p50_ms, p90_ms or 0.0)
    limits = (
        (p50_ms, goals.latency.p50_ms),
        (p90_ms, goals.latency.p90_ms),
        (max(p90_ms, p99_ms or 0.0), goals.latency.p99_ms),
        (mb, goals.max_size_mb),
    )
    return sum(max(0.0, value / limit - 1) for value, limit in limits if limit is not None)


@dataclass
class BlockTable:
    """Measured costs of blocks on a bench, from which latencies are predicted.

    A block's cost is its p50 latency less that of a block that does nothing, measured in turns with it; a student
    takes what its blocks cost, and once what that one takes. The cache keeps costs, by block, runtime and machine.
    """

    bench: Bench
    progress: Callable[[str], None]
    costs_ms: dict[str, float] = field(default_factory=dict)

    def predict(self, students: Sequence[Student]) -> list[float]:
        """p50 latency of each student in ms; blocks that were never measured are measured now."""
        parts = [[overhead(), *cut(student)] for student in students]
        self._learn({block.signature: block for blocks in parts for block in blocks})
        return [sum(self.costs_ms[block.signature] for block in blocks) for blocks in parts]

    def _learn(self, blocks: Mapping[str, Block]) -> None:
        unknown = []
        for block in blocks.values():
            if block.signature not in self.costs_ms:
                folder, about = self._entry(block)
                if look_up(folder, self._what, about):
                    self.costs_ms[block.signature] = read_json(folder / _COST)["cost_ms"]
                else:
                    unknown.append(block)
        done, total = 0, len(unknown)
        for some in _portions(unknown):
            self.progress(f"timing blocks on {self.bench.target}: {done} of {total}")
            for block, cost_ms in zip(some, self._costs(some), strict=True):
                folder, about = self._entry(block)
                with new_entry(folder, self._what, about) as temporary:
                    write_json(temporary / _COST, {"cost_ms": cost_ms})
                self.costs_ms[block.signature] = cost_ms
            done += len(some)

    @property
    def _what(self) -> str:
        return f"a block on {self.bench.target} by {self.bench.runtime.name}"

    def _entry(self, block: Block) -> tuple[Path, dict[str, Any]]:
        runtime = self.bench.runtime
        about = {
            "block": block.signature,
            "target": self.bench.target,
            "runtime": runtime.name,
            "runtime_version": runtime.probe().version,
            "threads": self.bench.threads,
            "hardware": runtime.hardware(),
            "torch": torch.__version__,
            "protocol": asdict(_BLOCKS),
        }
        return entry_folder(cache_root(), KIND, about), about

    def _costs(self, blocks: Sequence[Block]) -> list[float]:
        nothing = overhead()
        with tempfile.TemporaryDirectory(prefix="mst-edge-") as name:
            place = Path(name)
            every, builds, samples = [nothing, *blocks], [], {}
            for block, variant in zip(every, export_blocks(every, place), strict=True):
                build = self.bench.build(variant, place / f"built-{variant.name}")
                samples[build.id] = place / f"{variant.name}.npy"
                np.save(samples[build.id], _values(block.inputs[0]), allow_pickle=False)
                builds.append(build)
            found = measure(builds, samples[builds[0].id], UNREAD, _BLOCKS, own=samples)
        p50_ms = [found[build.id][0].latency.p50_ms for build in builds]
        return [
            p50_ms[0] if block.signature == nothing.signature else max(0.0, each - p50_ms[0])
            for block, each in zip(blocks, p50_ms[1:], strict=True)
        ]


def _values(like: torch.Tensor) -> NDArray[Any]:
    """Numbers of usual size for a float input; zeros, which are always token ids or pixels, for others."""
    array = like.numpy()
    if array.dtype.kind != "f":
        return np.zeros_like(array)
    return np.random.default_rng(0).normal(size=array.shape).astype(array.dtype)


def measured_whole(
    bench: Bench, students: Mapping[str, tuple[Student, NDArray[Any]]], progress: Callable[[str], None]
) -> dict[str, Measurement]:
    """Whole students, exported, built and measured in turns.

    Args:
        students: by key, each with samples as its graph takes them.
    """
    found: dict[str, Measurement] = {}
    for keys in _portions(list(students)):
        found |= _together(bench, {key: students[key] for key in keys}, progress)
    return found


def _together(
    bench: Bench, students: Mapping[str, tuple[Student, NDArray[Any]]], progress: Callable[[str], None]
) -> dict[str, Measurement]:
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as name:
        place = Path(name)

        def made() -> Iterator[tuple[str, Build, Path]]:
            for number, (key, (student, inputs)) in enumerate(students.items()):
                progress(f"building candidate {number + 1} of {len(students)} for {bench.target}")
                variant = replace(export_student(student, place / "variants" / key), name=key)
                build = bench.build(variant, place / "built" / key)
                np.save(place / f"{key}.npy", inputs, allow_pickle=False)
                yield key, build, place / f"{key}.npy"

        rows = list(made())
        own = {build.id: file for _, build, file in rows}
        output = next(iter(students.values()))[0].spec.output
        taken = measure([build for _, build, _ in rows], rows[0][2], output, _WHOLE, progress, own=own)
    return {key: taken[build.id][0] for key, build, _ in rows}


def _portions(every: Sequence[T]) -> Iterator[Sequence[T]]:
    return (every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE))
