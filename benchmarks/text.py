"""A text student in every scheme, over seeds: what rounding costs and gains. Prints tables of docs/results.md.

    python -m benchmarks.text --data-root DIR --out FOLDER [--seeds 0,1,2] [--set KEY=VALUE]

CrisisMMD's tweets: a transformer reads them, taught by a larger bag of embeddings. Every seed is a run of its own in
``FOLDER/SEED``, on the official split, with the student that learns from labels alone beside it; a run that was
interrupted goes on. Builds of a seed are measured in turns and judged by the gate. Intervals are those of
``mst-edge compare --vary initialisation``: over seeds and samples, paired.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quantization import run
from mst_edge.compare.intervals import gain_over_seeds
from mst_edge.core.scoring import OutputSpec, Scoring, count_pairs, scoring_of
from mst_edge.core.stats import Interval
from mst_edge.recipe import find_recipe, load_recipe
from mst_edge.run_folder import RunFolder
from mst_edge.stages.distill import LOGITS
from quantize.variant import load_variant
from targets.measure import Latency, speedup
from targets.spec import load_build
from targets.target import get_target

SETTINGS = (
    "student={modality: text, network: text_transformer}",
    "quantize={schemes: [int8-dynamic, int4-weights, int8-static, int8-qad], qat: {epochs: 4}, sensitivity: false}",
)
_TARGET = "cpu"


@dataclass(frozen=True)
class Seed:
    """One finished run.

    Attributes:
        models: test accuracy by network.
        builds: the result's rows by name of the build.
        answers: what each build says of the test split, ``(samples, classes)``; under an empty name the torch student.
    """

    models: dict[str, float]
    builds: dict[str, dict[str, Any]]
    answers: dict[str, NDArray[np.float32]]
    target: NDArray[np.int64]
    scoring: Scoring

    @classmethod
    def of(cls, result: dict[str, Any], folder: RunFolder) -> Seed:
        """A run's result, with what its builds say anew of the test split, sample by sample."""
        rows = {row["id"]: row for row in result["targets"][0]["builds"]}
        inputs, truth, torch = (
            np.load(folder.evaluation / f"{name}.npy", allow_pickle=False)
            for name in ("inputs", "target", LOGITS.removesuffix(".npy"))
        )
        answers = {"": torch}
        for name in rows:
            with get_target(_TARGET).load(load_build(folder.builds(_TARGET) / name)) as runner:
                answers[name] = np.concatenate([runner.run(sample[None]) for sample in inputs])
        models = {f"{row['method']} {row['role']}": row["test"]["accuracy"] for row in result["distill"]["models"]}
        output: OutputSpec = load_variant(folder.variants / "fp32").output
        return cls(models, rows, answers, truth, scoring_of(output))

    def statistics(self, build: str) -> NDArray[np.float64]:
        """What the scoring keeps of each sample."""
        return self.scoring.statistics(self.answers[build], self.target)


def main(arguments: list[str] | None = None) -> None:
    """Trains, quantizes, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="keeps the runs; one that ended is not repeated")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipe", default="crisismmd_text")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    said = parser.parse_args(arguments)
    seeds = []
    for seed in said.seeds.split(","):
        recipe = load_recipe(find_recipe(said.recipe), [*SETTINGS, *said.set, f"seed={seed}"])
        result = run(recipe, said.data_root, said.out / seed)
        seeds.append(Seed.of(result, RunFolder(said.out / seed)))
    print("\n".join([*networks_table(seeds), "", *builds_table(seeds)]))


def networks_table(seeds: Sequence[Seed]) -> Iterator[str]:
    """A row per network, in torch."""
    yield f"| network, {len(seeds)} seeds | accuracy % | per seed |"
    yield "|---|---:|---|"
    for name in seeds[0].models:
        values = [100 * seed.models[name] for seed in seeds]
        yield f"| {name} | {_spread(values)} | {', '.join(f'{value:.1f}' for value in values)} |"


def builds_table(seeds: Sequence[Seed]) -> Iterator[str]:
    """A row per build: how right, how close to the fp32 student, how large, how fast, and what the gate says."""
    yield (
        f"| build, {len(seeds)} seeds | accuracy % | macro F1 % | against fp32, points | same label as fp32, % "
        "| kB | p50 over fp32's | gate |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---|"
    scoring, reference = seeds[0].scoring, [seed.statistics("") for seed in seeds]
    for name in seeds[0].builds:
        gain = gain_over_seeds(reference, [seed.statistics(name) for seed in seeds], scoring, None)
        same = [100 * scoring.agreement(seed.answers[name], seed.answers[""]) for seed in seeds]
        size = np.mean([seed.builds[name]["measurement"]["size_bytes"] for seed in seeds])
        yield (
            f"| `{name}` | {_spread([100 * scoring.value(seed.statistics(name)) for seed in seeds])} "
            f"| {_spread([100 * macro_f1(seed.answers[name].argmax(axis=1), seed.target) for seed in seeds])} "
            f"| {_points(gain)} | {np.mean(same):.1f} | {size / 1e3:.0f} | {_ratio(seeds, name)} "
            f"| {_gate(seeds, name)} |"
        )


def macro_f1(said: NDArray[np.int64], target: NDArray[np.int64]) -> float:
    """Mean over the classes that are there of ``2 tp / (2 tp + fp + fn)``."""
    counts = count_pairs(target, said, int(max(said.max(), target.max())) + 1)
    both, either = 2 * np.diagonal(counts), counts.sum(axis=0) + counts.sum(axis=1)
    return float(np.mean(both[either > 0] / either[either > 0]))


def _ratio(seeds: Sequence[Seed], name: str) -> str:
    """How many times as long as ONNX Runtime's fp32 build: geometric mean over seeds of estimate and both ends."""
    found = []
    for seed in seeds:
        ours, theirs = (Latency(**seed.builds[build]["measurement"]["latency"]) for build in (name, "onnxruntime-fp32"))
        faster = speedup(ours, theirs, 50)
        found.append([1 / faster.estimate, 1 / faster.high, 1 / faster.low])
    estimate, low, high = np.exp(np.log(found).mean(axis=0))
    return f"{estimate:.2f} ({low:.2f} to {high:.2f})"


def _gate(seeds: Sequence[Seed], name: str) -> str:
    """On how many seeds it passed, and why not on the others; bold where it was chosen."""
    verdicts = [seed.builds[name]["verdict"] for seed in seeds]
    missed = sorted({check["goal"] for verdict in verdicts for check in verdict["checks"] if not check["passed"]})
    chosen = sum(verdict["chosen"] for verdict in verdicts)
    passed = f"{sum(verdict['passed'] for verdict in verdicts)} of {len(seeds)}"
    return (
        passed + (f", **chosen on {chosen}**" if chosen else "") + (f"; misses {', '.join(missed)}" if missed else "")
    )


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _points(gain: Interval) -> str:
    estimate, low, high = (round(100 * end, 2) + 0.0 for end in (gain.estimate, gain.low, gain.high))  # no -0.00
    return f"{estimate:+.2f} ({low:+.2f} {high:+.2f})"


if __name__ == "__main__":
    main()
