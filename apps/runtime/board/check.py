"""``check.py``: numerics of every engine against the reference, then accuracy on samples that the bundle carries."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BundleError
from ..manifest import BuildEntry, Manifest, inside
from ..tensorrt_engine import sha256
from .results import cannot_go_on, part, read_result, write_result
from .score import METRICS, score

INPUTS, TARGET, FP32 = "evaluation/inputs.npy", "evaluation/target.npy", "evaluation/fp32.npy"
OUTPUTS = "outputs"  # folder of what the engines say of INPUTS, to be judged where the bundle was packed


def main(folder: Path, arguments: list[str] | None = None) -> int:
    """Checks every build; returns the process's exit code, 1 if one computes something else or was not built."""
    parser = argparse.ArgumentParser(prog="check.py", description="Proves that the engines compute what they should.")
    parser.add_argument("--resume", action="store_true", help="leave alone engines that passed before")
    chosen = parser.parse_args(arguments)
    failed = 0
    try:
        with Bundle.open(folder) as bundle:
            result = read_result(folder, bundle.manifest)
            for entry in bundle.manifest.builds:
                if chosen.resume and _passed_before(folder, entry, part(result, entry.id)):
                    print(f"{entry.id}: checked already")
                    continue
                found = _check(bundle, entry)
                part(result, entry.id).pop("bench", None)
                part(result, entry.id)["check"] = found
                failed += not found["passed"]
                print(f"{entry.id}: {_words(found)}")
                write_result(folder, result)
    except (BundleError, OSError) as error:
        return cannot_go_on(error, folder)
    return 1 if failed else 0


def _passed_before(folder: Path, entry: BuildEntry, said: dict[str, Any]) -> bool:
    """Whether the engine that is here passed, and its outputs are still here."""
    outputs = folder / OUTPUTS / f"{entry.id}.npy"
    check = said.get("check", {})
    return bool(check.get("passed")) and outputs.is_file() and sha256(outputs) == check["outputs_sha256"]


def _check(bundle: Bundle, entry: BuildEntry) -> dict[str, Any]:
    """Outputs for the reference inputs, then the task's metric beside the fp32 model's on the same samples."""
    try:
        bundle.use(entry.id)
        difference = bundle.self_test()
        outputs = _outputs(bundle)
    except BundleError as error:
        return {"passed": False, "problem": str(error)}
    found: dict[str, Any] = {
        "outputs_sha256": _keep(bundle.folder / OUTPUTS / f"{entry.id}.npy", outputs),
        "passed": bool(np.isfinite(outputs).all()),
        "problem": "" if np.isfinite(outputs).all() else "answers with NaN or infinity",
        "difference": difference,
        "tolerance": entry.tolerance,
        "samples": len(outputs),
        "agreement": _agreement(outputs, _array(bundle, FP32), bundle.manifest),
    }
    if found["passed"] and TARGET in bundle.manifest.files:
        target = _array(bundle, TARGET)
        found["metric"] = METRICS[bundle.manifest.task]
        found["value"] = score(outputs, target, bundle.manifest)
        found["fp32_value"] = score(_array(bundle, FP32), target, bundle.manifest)
    return found


def _outputs(bundle: Bundle) -> NDArray[np.float32]:
    return np.concatenate([bundle.outputs(sample[None]) for sample in _array(bundle, INPUTS)])


def _keep(path: Path, outputs: NDArray[np.float32]) -> str:
    """Writes outputs; returns the file's sha256.

    Raises:
        BundleError: it cannot be written, because the disk is full, say.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        np.save(path, outputs, allow_pickle=False)
    except OSError as error:
        raise BundleError(f"cannot be written ({error.strerror or error})", where=path) from None
    return sha256(path)


def _agreement(outputs: NDArray[np.float32], reference: NDArray[np.float32], manifest: Manifest) -> float:
    """Share of answers as the fp32 model's; two numbers are the same within a hundredth of their deviation."""
    if manifest.task == "regression":
        return float((np.abs(outputs - reference) / np.array(manifest.scale) < 0.01).mean())
    return float((outputs.argmax(axis=1) == reference.argmax(axis=1)).mean())


def _array(bundle: Bundle, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(inside(bundle.folder, name), allow_pickle=False)
    return array


def _words(found: dict[str, Any]) -> str:
    if not found["passed"]:
        return f"FAIL, {found['problem']}"
    said = f"ok, off by {found['difference']:.2g} at most, {found['tolerance']:.2g} allowed"
    if "value" in found:
        said += f"; {found['metric']} {found['value']:.4f} (fp32 {found['fp32_value']:.4f})"
    return f"{said}; {found['agreement']:.2%} of answers as the fp32 model's, {found['samples']} samples"
