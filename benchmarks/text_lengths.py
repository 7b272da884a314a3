"""Latency and size of text students by how many tokens they read: prints the table of docs/videoadviser.md.

    python -m benchmarks.text_lengths [--students text_transformer,distilroberta] [--lengths 32,64,128]

Weights are fresh: they decide neither. ``distilroberta`` is the architecture of distilroberta-base with a regression
head, of which nothing is fetched. The builds of a student take turns in every round (``targets.measure``), so that
whatever else the machine does meets all alike; ratios are to the student's fp32 build of the first length.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from apps.runtime.tokenizer import FIRST_BYTE, FIRST_MERGE, Tokenizer
from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import TokenizerOptions
from distill.networks.registry import NetworkChoice
from distill.student import Student, StudentSpec
from mst_edge.core.scoring import OutputSpec
from quantize.calibration import save_calibration
from quantize.export import export_student
from quantize.schemes.base import SCHEMES, Material
from targets.measure import Measurement, Protocol, measure, speedup
from targets.spec import Build
from targets.target import get_target

_DISTILROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "pad_token_id": 0,
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
# The student, and its vocabulary.
STUDENTS: Mapping[str, tuple[NetworkChoice, int]] = {
    "text_transformer": (NetworkChoice("text_transformer"), 4000),
    "distilroberta": (NetworkChoice("hf:distilroberta", {"config": _DISTILROBERTA}), 50265),
}
SCHEMES_OF_TEXT = ("fp16", "int8-dynamic", "int4-weights")
_SENTIMENT = OutputSpec("regression", ("sentiment",), ("",), scale=(1.0,))
_SPEC = ModalitySpec("text", Kind.TEXT, (), "<U60")


def main(arguments: list[str] | None = None) -> None:
    """Builds, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", default=",".join(STUDENTS))
    parser.add_argument("--lengths", default="32,64,128")
    parser.add_argument("--schemes", default=",".join(SCHEMES_OF_TEXT))
    parser.add_argument("--runs", type=int, default=100, help="inferences of each build, at least")
    said = parser.parse_args(arguments)
    lengths = [int(length) for length in said.lengths.split(",")]
    for name in said.students.split(","):
        with tempfile.TemporaryDirectory() as folder:
            measured = _measured(name, lengths, said.schemes.split(","), said.runs, Path(folder))
        print("\n".join(_table(name, lengths, measured)), end="\n\n", flush=True)


def _measured(
    name: str, lengths: Sequence[int], schemes: Sequence[str], runs: int, folder: Path
) -> dict[tuple[int, str], Measurement]:
    """By length and scheme; all of them measured in turns."""
    builds: dict[tuple[int, str], Build] = {}
    samples: dict[str, Path] = {}
    for length in lengths:
        for scheme, build in _builds(name, length, schemes, folder / str(length)).items():
            builds[length, scheme] = replace(build, id=f"{length}-{scheme}")
            samples[f"{length}-{scheme}"] = folder / f"{length}.npy"
        ids = np.random.default_rng(0).integers(FIRST_BYTE, STUDENTS[name][1], (8, length))
        np.save(folder / f"{length}.npy", ids.astype(np.int32))
    found = measure(
        list(builds.values()), folder / f"{lengths[0]}.npy", _SENTIMENT, Protocol(min_runs=runs), own=samples
    )
    return {key: found[build.id][0] for key, build in builds.items()}


def _builds(name: str, length: int, schemes: Sequence[str], folder: Path) -> dict[str, Build]:
    """A student of full texts of ``length`` tokens, for ONNX Runtime with one thread, by scheme."""
    choice, vocabulary = STUDENTS[name]
    torch.manual_seed(0)
    merges = tuple((FIRST_BYTE + k // 256, FIRST_BYTE + k % 256) for k in range(vocabulary - FIRST_MERGE))
    options = TokenizerOptions(vocabulary=vocabulary, max_tokens=length)
    student = Student(StudentSpec(_SPEC, options, choice, _SENTIMENT, tokenizer=Tokenizer(merges, length, False)))
    fp32 = export_student(student.eval(), folder / "fp32")
    calibration = save_calibration(folder / "samples", 2, np.ones((2, length), np.int32).__getitem__, real=False)
    runtime, made = get_target("cpu").runtime("onnxruntime"), {}
    for scheme in ("fp32", *schemes):
        variant = fp32 if scheme == "fp32" else SCHEMES.get(scheme)().make(Material(fp32, calibration), folder / scheme)
        made[scheme] = runtime.build(variant, variant.precision, 1, folder / "builds" / scheme)
    return made


def _table(name: str, lengths: Sequence[int], measured: Mapping[tuple[int, str], Measurement]) -> Iterator[str]:
    """Markdown: how many times as long as the first, with the 95 % interval."""
    schemes = list(dict.fromkeys(scheme for _, scheme in measured))
    base = measured[lengths[0], schemes[0]].latency
    yield f"| `{name}` | MB | " + " | ".join(f"{length} tokens" for length in lengths) + " |"
    yield "|---|---:|" + "---:|" * len(lengths)
    for scheme in schemes:
        cells = [f"{measured[lengths[0], scheme].size_bytes / 1e6:.2f}"]
        for length in lengths:
            faster = speedup(measured[length, scheme].latency, base, 50)
            cells.append(f"{1 / faster.estimate:.2f} ({1 / faster.high:.2f} to {1 / faster.low:.2f})")
        yield f"| `{scheme}` | " + " | ".join(cells) + " |"
    yield f"\nfp32 of {lengths[0]} tokens: {base.p50_ms:.3f} ms at p50"


if __name__ == "__main__":
    main()
