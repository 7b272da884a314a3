"""Proof that a runtime runs a precision here: it builds, loads and runs a tiny model whose answer is known.

As a program, the process that proves one runtime: ``python -m targets.proof TARGET RUNTIME`` prints a line of JSON per
precision, so that one whose kernel is an illegal instruction for this CPU takes no one else with it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.files import atomic_path
from mst_edge.core.scoring import OutputSpec
from quantize.variant import MODEL, InputSpec, Variant
from targets.runtimes.base import Runtime
from targets.target import get_target

MODELS = Path(__file__).parent / "proofs"
# Forms in which a variant keeps its weights, by its precision; every other precision is a way to run one of them. A
# runtime is proved by the first that it takes: TensorRT wants zero points of 0.
FORMS = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "int8": ("int8", "int8-symmetric"),
    "w8": ("w8",),
    "w4": ("w4",),
}
_OPSET = 18
_MOST_SECONDS = 600.0  # a runtime may call a compiler, on a busy machine
# Of the largest answer. OpenVINO rounds what it multiplies with 8-bit and 4-bit weights to eight bits.
_CLOSE = 0.01


@dataclass(frozen=True)
class Proof:
    """What came of one inference. ``problem`` is empty where the answer was right."""

    runtime: str
    precision: str
    run_ms: float = 0.0
    problem: str = ""

    @property
    def works(self) -> bool:
        """Whether the answer was right."""
        return not self.problem


def sample() -> NDArray[np.float32]:
    """``(1, 32)`` small whole numbers."""
    return (np.arange(32, dtype=np.float32) % 4)[None]


def weight() -> NDArray[np.float32]:
    """``(32, 4)`` whole numbers, -7 to 7, and an 8 per column, which makes the scale of a 4-bit block a power of 2."""
    whole = (np.arange(128, dtype=np.float32).reshape(32, 4) * 7 % 15 - 7) * np.array([1, -1, 1, -1], np.float32)
    return np.vstack([whole[:1] * 0 + 8, whole[1:]])


def bias() -> NDArray[np.float32]:
    """``(4,)``; keeps half of the answer above zero."""
    return np.array([100, 30, -200, 200], np.float32)


def expected() -> NDArray[np.float32]:
    """``(1, 4)``: what the models answer."""
    return np.maximum(sample() @ weight() + bias(), 0)


def prove(target: str, name: str) -> Iterator[Proof]:
    """Runs every precision that the runtime says it runs here, in a process of its own."""
    command = [sys.executable, "-m", "targets.proof", target, name]
    wanted = get_target(target).runtime(name).probe().precisions
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_MOST_SECONDS)
        code, printed, said = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, printed, said = 0, "", f"no answer in {_MOST_SECONDS:.0f} s"
    found = [Proof(**json.loads(line)) for line in printed.splitlines()]
    yield from found
    for number, precision in enumerate(wanted[len(found) :]):
        yield Proof(name, precision, problem=_last_words(code, said) if number == 0 else "not reached")


def _last_words(code: int, said: str) -> str:
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    return " ".join(said.split())[-300:] or f"the process ended with exit code {code}"


def _prove_here(runtime: Runtime) -> Iterator[Proof]:
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as scratch:
        for stored, forms in FORMS.items():
            variants = [_variant(form, stored, Path(scratch) / form, runtime) for form in forms]
            variant = next((one for one in variants if not runtime.unfit(one)), variants[0])
            for precision in runtime.precisions(variant):
                yield _run(runtime, variant, precision, Path(scratch) / f"build-{precision}")


def _run(runtime: Runtime, variant: Variant, precision: str, folder: Path) -> Proof:
    try:
        with runtime.load(runtime.build(variant, precision, 1, folder)) as runner:
            runner.run(sample())
            answer = runner.run(sample())
    except Exception as error:
        return Proof(runtime.name, precision, problem=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    wrong = float(np.abs(answer - expected()).max() / expected().max())
    right = wrong <= _CLOSE  # and not NaN
    problem = "" if right else f"the answer is off by {wrong:.2g} of itself"
    return Proof(runtime.name, precision, runner.last_ms, problem)


def _variant(form: str, precision: str, folder: Path, runtime: Runtime) -> Variant:
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / MODEL).write_bytes((MODELS / f"{form}.onnx").read_bytes())
        program = runtime.write_proof(temporary, precision)
    inputs, outputs = weight().shape
    return Variant(
        precision,
        precision,
        precision,
        "mst-edge",
        folder,
        InputSpec("sample", "vector", (inputs,), "float32"),
        OutputSpec("classification", tuple("abcd"[:outputs])),
        _OPSET,
        # A front end that the model has not, so that what treats it otherwise is proved too.
        float_nodes=("front end",),
        program=program,
    )


def main(arguments: Sequence[str]) -> None:
    """Proves one runtime of one target."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a runtime prints must not mix with the answers
    target, name = arguments
    for proof in _prove_here(get_target(target).runtime(name)):
        print(json.dumps(asdict(proof)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
