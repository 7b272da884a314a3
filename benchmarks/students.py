"""Size and latency of the student networks, at one spectrogram and one image: prints the table of docs/networks.md.

    python -m benchmarks.students

Weights are fresh: they decide neither size nor latency. All builds of all students of a shape are loaded at once and
take turns in every round, in an order drawn anew, so that whatever else the machine does meets all alike. A round's
ratio is a build's median over that of the first student's first build, ``small_cnn`` in fp32.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import frontend_options
from distill.networks.registry import NetworkChoice
from distill.student import Student, StudentSpec
from mst_edge.core.scoring import OutputSpec
from quantize.calibration import save_calibration
from quantize.export import export_student
from quantize.schemes.base import Material
from quantize.schemes.int8_static import Int8Static
from targets.runtimes.base import Runner
from targets.spec import Build
from targets.target import get_target

Key = tuple[str, str]
SPECTROGRAM = ModalitySpec("spectrogram", Kind.IMAGE, (40, 61), "float32")
IMAGE = ModalitySpec("image", Kind.IMAGE, (112, 112, 3), "uint8")
STUDENTS: Sequence[tuple[ModalitySpec, Sequence[NetworkChoice]]] = (
    (
        SPECTROGRAM,
        (
            NetworkChoice("small_cnn"),
            NetworkChoice("small_cnn", {"width": 0.5}),
            NetworkChoice("ds_cnn"),
            NetworkChoice("bc_resnet"),
            NetworkChoice("bc_resnet", {"width": 3.0}),
            NetworkChoice("vit"),
        ),
    ),
    (
        IMAGE,
        (
            NetworkChoice("small_cnn"),
            NetworkChoice("small_cnn", {"width": 0.5}),
            NetworkChoice("ds_cnn"),
            NetworkChoice("mobilenet_v3_small"),
            NetworkChoice("mobilenet_v3_small", {"width": 0.5}),
            NetworkChoice("vit"),
        ),
    ),
)


@dataclass(frozen=True)
class Candidate:
    """A student and its builds for the CPU target, by precision."""

    label: str
    parameters: int
    fp32_bytes: int
    int8_bytes: int
    builds: Mapping[str, Build]


def main() -> None:
    """Builds, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=get_target("cpu").spec.runtimes, default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--runs", type=int, default=20, help="inferences of one sample, per student and round")
    said = parser.parse_args()
    for spec, choices in STUDENTS:
        with tempfile.TemporaryDirectory() as folder:
            candidates = [
                _candidate(spec, choice, said.runtime, Path(folder) / str(index))
                for index, choice in enumerate(choices)
            ]
            ratios = _ratios(spec, candidates, said.rounds, said.runs)
        print("\n".join(_table(spec, candidates, ratios)), end="\n\n")


def _candidate(spec: ModalitySpec, choice: NetworkChoice, name: str, folder: Path) -> Candidate:
    torch.manual_seed(0)
    student = Student(
        StudentSpec(spec, frontend_options(spec.kind)(), choice, OutputSpec("classification", tuple("0123456789")))
    )
    fp32 = export_student(student, folder / "variants" / "fp32")
    samples = _samples(spec, 16)
    calibration = save_calibration(folder / "variants" / "calibration", 16, samples.__getitem__, real=False)
    int8 = Int8Static().make(Material(fp32, calibration), folder / "variants" / "int8")
    runtime = get_target("cpu").runtime(name)
    builds = {
        precision: runtime.build(variant, precision, 1, folder / precision)
        for precision, variant in (("fp32", fp32), ("int8", int8))
    }
    options = ", ".join(f"{key} {value}" for key, value in choice.options.items())
    return Candidate(
        label=f"`{choice.network}`" + (f", {options}" if options else ""),
        parameters=sum(p.numel() for p in student.network.parameters()),
        fp32_bytes=fp32.model.stat().st_size,
        int8_bytes=int8.model.stat().st_size,
        builds=builds,
    )


def _samples(spec: ModalitySpec, count: int) -> NDArray[np.float32] | NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, (count, *spec.shape)).astype(np.uint8)
    return rng.normal(size=(count, *spec.shape)).astype(np.float32)


def _ratios(spec: ModalitySpec, candidates: Sequence[Candidate], rounds: int, runs: int) -> dict[Key, list[float]]:
    """``(label, precision)`` to the latency over the first one's, one value per round."""
    sample, order = _samples(spec, 1), random.Random(0)
    target = get_target("cpu")
    with ExitStack() as stack:
        runners = {
            (candidate.label, key): stack.enter_context(target.load(build))
            for candidate in candidates
            for key, build in candidate.builds.items()
        }
        baseline = next(iter(runners))
        ratios: dict[Key, list[float]] = {key: [] for key in runners}
        for runner in runners.values():
            _median_ms(runner, sample, runs)  # warm-up
        for _ in range(rounds):
            medians = {key: _median_ms(runners[key], sample, runs) for key in order.sample(list(runners), len(runners))}
            for key, median in medians.items():
                ratios[key].append(median / medians[baseline])
    return ratios


def _median_ms(runner: Runner, sample: NDArray[np.float32] | NDArray[np.uint8], runs: int) -> float:
    times = []
    for _ in range(runs):
        runner.run(sample)
        times.append(runner.last_ms)
    return statistics.median(times)


def _table(spec: ModalitySpec, candidates: Sequence[Candidate], ratios: Mapping[Key, Sequence[float]]) -> Iterator[str]:
    """Markdown; a ratio is the median of the rounds, with their lower and upper quartile."""
    keys = list(candidates[0].builds)
    yield (
        "| "
        + " | ".join(
            [f"{spec.name} {spec.shape}", "parameters", "fp32 kB", "int8 kB", *(f"{key} time" for key in keys)]
        )
        + " |"
    )
    yield "|---|" + "---:|" * (3 + len(keys))
    for candidate in candidates:
        cells = [candidate.label, f"{candidate.parameters:,}".replace(",", " ")]
        cells += [f"{size / 1000:.0f}" for size in (candidate.fp32_bytes, candidate.int8_bytes)]
        for key in keys:
            low, middle, high = statistics.quantiles(ratios[candidate.label, key], n=4)
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        yield "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
