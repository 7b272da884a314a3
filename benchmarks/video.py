"""How a student sees clips: accuracy and latency of the input strategies, and of the streaming student.

    python -m benchmarks.video [--seeds 0,1,2] [--methods lone,kd] --out FOLDER [--set KEY=VALUE]

``moving_digits``; a seed is a new split and a new initialisation. Every student is trained alone, or by the methods
named from a multimodal teacher of the same input, for the same epochs. Latency is that of the exported fp32 graph with
its input strategy in it, one clip at a time on one thread of ONNX Runtime: the median of rounds in which all take
turns, as a multiple of the first row's. Of the streaming student also what its model of one frame takes, how often it
is right after each quarter of a clip, and at the end of a clip that follows another without a new beginning.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from distill.student import student_outputs
from distill.training.phase import Silent
from mst_edge.core.files import read_json, write_json
from mst_edge.recipe import Recipe, find_recipe, load_recipe
from mst_edge.stages.data import prepare
from mst_edge.stages.distill import deployable, make_lab, make_method
from quantize.export import export_student
from quantize.step import export_step, is_streaming
from quantize.variant import STEP_MODEL, load_step

# Name of a row: its input, options of that, and the network that reads it.
ROWS = {
    "frames, clip_cnn": ("frames", "{}", "clip_cnn"),
    "frames, stream_cnn": ("frames", "{}", "stream_cnn"),
    "1 frame, clip_cnn": ("frames", "{frames: 1}", "clip_cnn"),
    "grid, small_cnn": ("grid", "{}", "small_cnn"),
    "grid shrunk by 2, small_cnn": ("grid", "{shrink: 2}", "small_cnn"),
    "thumbnail + 2, clip_cnn": ("thumbnail", "{}", "clip_cnn"),
    "pooled, tcn": ("pooled", "{}", "tcn"),
}
_ROUNDS, _WARM = 400, 40


def main() -> None:
    """Trains, measures and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="lone")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--out", type=Path, required=True, help="keeps the runs; what is there is not trained again")
    said = parser.parse_args()
    seeds = [int(seed) for seed in said.seeds.split(",")]
    methods = said.methods.split(",")
    accuracies = {}
    for row in ROWS:
        recipes = {seed: _recipe(row, seed, said.set) for seed in seeds}
        found = [_accuracies(recipes[seed], methods, said.out / _slug(row) / str(seed)) for seed in seeds]
        accuracies[row] = np.array(found) * 100
        print(f"{row}: {accuracies[row].tolist()}", flush=True)
    print(table(methods, accuracies, latencies(said.out, seeds[0])))
    for row in ROWS:
        if load_step(said.out / _slug(row) / str(seeds[0]) / "stream") is not None:
            found = [streamed(_recipe(row, seed, said.set), said.out / _slug(row) / str(seed)) for seed in seeds]
            means = ", ".join(f"{value:.1f}" for value in 100 * np.mean(found, axis=0))
            print(f"\n{row}, % right after each quarter of a clip, and of one that follows another: {means}")


def _slug(row: str) -> str:
    return row.replace(", ", "-").replace(" ", "_")


def _recipe(row: str, seed: int, settings: Sequence[str]) -> Recipe:
    name, options, network = ROWS[row]
    own = [f"modalities.clip={{input: {name}, options: {options}}}", f"student.network={network}"]
    seeded = [f"seed={seed}", f"dataset.split.seed={seed}"]
    return load_recipe(find_recipe("moving_digits"), [*own, *seeded, *settings])


def _accuracies(recipe: Recipe, methods: Sequence[str], folder: Path) -> list[float]:
    """Test accuracy by method, kept in ``folder`` with the exported student of the last one."""
    if (folder / "accuracy.json").is_file():
        kept: list[float] = read_json(folder / "accuracy.json")
        return kept
    data = prepare(recipe, None)
    lab = make_lab(recipe, data, folder / "training", torch.device("cpu"), Silent())
    test = data.splits["test"]
    raw, target = data.dataset.read("clip", test), data.dataset.target[test]
    found = []
    for name in methods:
        student = deployable(make_method(recipe, lab, name).train(), data, lab, {})
        logits = np.concatenate(list(student_outputs(student, raw)))
        found.append(float((logits.argmax(axis=1) == target).mean()))
    export_student(student, folder / "fp32")
    if is_streaming(student):
        export_step(student, folder / "stream", raw[:4])
    write_json(folder / "accuracy.json", found)
    return found


def streamed(recipe: Recipe, folder: Path) -> list[float]:
    """Accuracy of a streamed student on the test split after each quarter of a clip, and where each clip follows
    another one in the same state."""
    spec = load_step(folder / "stream")
    assert spec is not None
    session = onnxruntime.InferenceSession(str(folder / "stream" / STEP_MODEL))
    data = prepare(recipe, None)
    test = data.splits["test"]
    clips, target = data.dataset.read("clip", test), data.dataset.target[test]
    before = np.random.default_rng(0).permutation(len(clips))
    state = np.zeros((len(clips), spec.state), np.float32)
    found: list[float] = []
    for stream in (clips, np.concatenate([clips[before], clips], axis=1)):
        frames = np.split(stream, stream.shape[1], axis=1)
        right, after = [], state
        for frame in frames:
            logits, after = session.run(None, {spec.input: np.ascontiguousarray(frame[:, 0]), "state": after})
            right.append(float((logits.argmax(axis=1) == target).mean()))
        found += right[-1:] if found else [right[(part * len(right)) // 4 - 1] for part in (1, 2, 3, 4)]
    return found


def latencies(out: Path, seed: int) -> dict[str, NDArray[np.float64]]:
    """``(rounds,)`` milliseconds by row, all taking turns; a frame of a stream under the name of its file."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    files = {row: out / _slug(row) / str(seed) / "fp32" / "model.onnx" for row in ROWS}
    streams = {f"{row}, one frame": out / _slug(row) / str(seed) / "stream" / STEP_MODEL for row in ROWS}
    files |= {row: file for row, file in streams.items() if file.is_file()}
    sessions = {row: onnxruntime.InferenceSession(str(file), settings) for row, file in files.items()}
    feeds = {row: _noise(session) for row, session in sessions.items()}
    took: dict[str, list[float]] = {row: [] for row in files}
    for _ in range(_ROUNDS + _WARM):
        for row, session in sessions.items():
            begin = time.perf_counter_ns()
            session.run(None, feeds[row])
            took[row].append((time.perf_counter_ns() - begin) / 1e6)
    return {row: np.array(values[_WARM:]) for row, values in took.items()}


def _noise(session: onnxruntime.InferenceSession) -> dict[str, NDArray[np.generic]]:
    """One sample of noise for every input."""
    rng = np.random.default_rng(0)
    made: dict[str, NDArray[np.generic]] = {}
    for given in session.get_inputs():
        values = rng.integers(0, 256, (1, *given.shape[1:]))
        made[given.name] = values.astype(np.uint8 if given.type == "tensor(uint8)" else np.float32)
    return made


def table(
    methods: Sequence[str], accuracies: dict[str, NDArray[np.float64]], took: dict[str, NDArray[np.float64]]
) -> str:
    """Means over seeds with standard deviations, and latencies as multiples of the first row's median."""
    unit = float(np.median(next(iter(took.values()))))
    lines = [f"| input, network | {' | '.join(f'{name} %' for name in methods)} | latency |"]
    lines.append(f"|---|{'---:|' * (len(methods) + 1)}")
    for row, values in took.items():
        cells = [""] * len(methods)
        if row in accuracies:
            found = accuracies[row]
            cells = [f"{mean:.1f} ± {std:.1f}" for mean, std in zip(found.mean(0), found.std(0, ddof=1), strict=True)]
        lines.append(f"| {row} | {' | '.join(cells)} | {np.median(values) / unit:.2f} |")
    return "\n".join(lines) + f"\n\nlatency 1 is {unit:.3f} ms"


if __name__ == "__main__":
    main()
