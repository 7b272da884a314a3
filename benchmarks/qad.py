"""Accuracy of int8 students: post-training, quantization-aware training, quantization-aware distillation.

    python -m benchmarks.qad --data-root DIR --out FOLDER [--seeds 0,1,2]

AV-MNIST, a student that listens, two depthwise networks. Every seed trains teachers and student by MST-Distill; from
there each scheme starts anew. The control teaches the float student further by the same objective for the same epochs
and quantizes it afterwards: what it gains is owed to the epochs, not to int8's rounding. int8 is what ONNX Runtime
computes on the test split. Intervals are those of `mst-edge compare`: over samples and seeds, paired.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.datasets.builder import find_data_root
from distill.lab import FineTuning, Lab
from distill.networks.registry import Model
from distill.student import Student, student_outputs
from distill.training.phase import Silent
from mst_edge.compare.intervals import gain_over_seeds, score_over_seeds
from mst_edge.core.scoring import Scoring
from mst_edge.core.stats import Interval
from mst_edge.recipe import Recipe, find_recipe, load_recipe
from mst_edge.stages.data import Data, prepare
from mst_edge.stages.distill import deployable, make_lab, make_method
from mst_edge.stages.qat import teaching
from mst_edge.stages.variants import PARITY_SAMPLES
from quantize.calibration import FOLDER, choose, save_calibration
from quantize.export import export_student
from quantize.schemes.base import SCHEMES, Material
from quantize.variant import Variant
from targets.runtimes.onnxruntime import OnnxRuntime

NETWORKS = ("ds_cnn", "mobilenet_v3_small")
FLOAT, PTQ, QAT, QAD = "float", "int8-static", "int8-qat", "int8-qad"
CONTROL, CONTROL_PTQ = "float, taught on", "float, taught on, then int8-static"
_BATCH = 64

Outputs = Mapping[str, NDArray[np.float32]]


def main() -> None:
    """Trains, quantizes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="avmnist")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--out", type=Path, required=True, help="keeps the runs; what is there is not trained again")
    said = parser.parse_args()
    for network in said.networks.split(","):
        settings = [f"student.network={network}", "student.options={}", *said.set]
        runs = []
        for seed in said.seeds.split(","):
            recipe = load_recipe(find_recipe(said.recipe), [*settings, f"seed={seed}"])
            runs.append(run(recipe, find_data_root(said.data_root), said.out / network / seed))
        print("\n".join(table(network, *zip(*runs, strict=True))), end="\n\n", flush=True)


def run(recipe: Recipe, data_root: Path | None, folder: Path) -> tuple[Scoring, Outputs, NDArray[Any]]:
    """One seed: the task's scoring, logits of the test split by scheme, and its targets."""
    data = prepare(recipe, data_root)
    lab = make_lab(recipe, data, folder, torch.device("cpu"), Silent())
    model = make_method(recipe, lab, recipe.distill.method).train()
    student, further = (deployable(one, data, lab, {}) for one in (model, _taught_on(model, recipe, lab)))
    test = data.splits["test"]
    raw = student.frontend.host(data.dataset.read(lab.student_modality, test))
    plain, taught = (
        replace(
            _material(one, recipe, data, folder / name),
            student=one,
            teach=teaching(recipe, lambda: lab, one),
            raw=raw[:PARITY_SAMPLES],
        )
        for one, name in ((student, "plain"), (further, "further"))
    )
    outputs = {FLOAT: _torch(student, raw)}
    for scheme in (PTQ, QAT, QAD):
        outputs[scheme] = _onnxruntime(SCHEMES.get(scheme)().make(plain, folder / scheme), raw)
    outputs[CONTROL] = _torch(further, raw)
    outputs[CONTROL_PTQ] = _onnxruntime(SCHEMES.get(PTQ)().make(taught, folder / "further" / PTQ), raw)
    return lab.task.scoring, outputs, np.asarray(data.dataset.target[test])


def _taught_on(model: Model, recipe: Recipe, lab: Lab) -> Model:
    """The float student after the epochs that the trained int8 students get."""
    further, said = copy.deepcopy(model), recipe.quantize.qat
    make_method(recipe, lab, recipe.distill.method).fine_tune(further, FineTuning("taught_on", said.epochs, said.lr))
    return further


def _material(student: Student, recipe: Recipe, data: Data, folder: Path) -> Material:
    said, modality = recipe.quantize.calibration, recipe.student.modality
    ids = choose(data.dataset, data.splits["train"], said.samples, recipe.seed)
    samples = student.frontend.host(data.dataset.read(modality, ids))
    calibration = save_calibration(folder / FOLDER, len(ids), samples.__getitem__)
    return Material(export_student(student, folder / "fp32"), calibration, said.calibrator)


def _torch(student: Student, raw: NDArray[Any]) -> NDArray[np.float32]:
    return np.concatenate(list(student_outputs(student, raw, _BATCH)))


def _onnxruntime(variant: Variant, raw: NDArray[Any]) -> NDArray[np.float32]:
    runtime = OnnxRuntime("cpu")
    with runtime.load(runtime.build(variant, "int8", 1, variant.folder.with_suffix(".build"))) as runner:
        batches = [np.array(raw[start : start + _BATCH]) for start in range(0, len(raw), _BATCH)]
        return np.concatenate([runner.run(batch) for batch in batches])


def table(
    network: str, scorings: Sequence[Scoring], runs: Sequence[Outputs], targets: Sequence[NDArray[Any]]
) -> Iterator[str]:
    """Markdown; means over seeds."""
    (scoring, *_), seeds = scorings, range(len(runs))
    statistics = {
        scheme: [scoring.statistics(scoring.answers(runs[i][scheme]), targets[i]) for i in seeds] for scheme in runs[0]
    }
    yield f"| {network}, {len(seeds)} seeds | {scoring.label} % | against float, points | same label as float, % |"
    yield "|---|---:|---:|---:|"
    for scheme, found in statistics.items():
        score = score_over_seeds(found, scoring, None)
        gain = "" if scheme == FLOAT else _points(gain_over_seeds(statistics[FLOAT], found, scoring, None))
        same = np.mean([(run[scheme].argmax(axis=1) == run[FLOAT].argmax(axis=1)).mean() for run in runs])
        yield f"| {scheme} | {100 * score.estimate:.2f} | {gain} | {100 * same:.1f} |"
    for better, worse in ((QAD, QAT), (QAD, CONTROL_PTQ)):
        yield f"\n{better} against {worse}: " + _points(
            gain_over_seeds(statistics[worse], statistics[better], scoring, None)
        )


def _points(gain: Interval) -> str:
    return f"{100 * gain.estimate:+.2f} ({100 * gain.low:+.2f} {100 * gain.high:+.2f})"


if __name__ == "__main__":
    main()
