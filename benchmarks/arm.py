"""A run's bundle and builds on an Arm CPU that is not here: the wheels that an Arm device installs, emulated.

    python -m benchmarks.arm RUN [--samples 200] [--work FOLDER]

Answers are those of ONNX Runtime's Arm kernels; times would be the emulator's, so none are taken. Per build: accuracy
on test samples here and on Arm, how many answers are alike, and what the gate's limits on accuracy say of Arm. Exit
code 1 where a build misses one, or the bundle's self-test fails there.

Needs Debian's ``qemu-user-static`` and ``apt-get``, which fetches the Arm packages into ``--work`` (no root needed,
nothing is installed): python3, libgomp1, libstdc++6; pip fetches numpy's and onnxruntime's aarch64 wheels.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path, write_json
from mst_edge.core.scoring import Scoring, scoring_of
from mst_edge.run_folder import RunFolder
from mst_edge.stages.distill import load_predictions
from mst_edge.stages.variants import load_variants
from targets.cpu import CpuTarget
from targets.gate import Goals, accuracy_limits, compare_accuracy
from targets.spec import Build, load_build

QEMU = "qemu-aarch64-static"
# Of a Raspberry Pi 5, and close to that of a Jetson Orin. The emulator's default has extensions (SVE, SME) for which
# ONNX Runtime takes kernels that compute something else in qemu 7.2: outputs of a float network three times their
# spread off.
CPU = "cortex-a76"
# Later ones end in a segmentation fault under the qemu 7.2 of Debian 12.
ONNXRUNTIME = "onnxruntime==1.27.0"
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libgomp1", "libstdc++6")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
# Runs in the emulator, on what the bundle carries.
_INSIDE = """
import json, platform, sys
from pathlib import Path
bundle, work = map(Path, sys.argv[1:])
sys.path.insert(0, str(bundle))
import numpy as np
from apps.runtime.bundle import Bundle
from apps.runtime.engines import OnnxRuntimeEngine
inputs = np.load(work / "inputs.npy", allow_pickle=False)
for build in json.loads((work / "builds.json").read_text(encoding="utf-8")):
    engine = OnnxRuntimeEngine(Path(build["model"]), build["options"])
    said = np.concatenate([engine.run(np.array(inputs[k : k + 1])) for k in range(len(inputs))])
    np.save(work / (build["id"] + ".npy"), said, allow_pickle=False)
with Bundle.open(bundle) as opened:
    opened.load("onnxruntime")
    print(json.dumps({"machine": platform.machine(), "build": opened.build.id, "self_test": opened.self_test()}))
"""


@dataclass(frozen=True)
class Arm:
    """A folder with what an Arm device has: its system, and what pip installs there."""

    system: Path
    site: Path

    def run(self, *arguments: object) -> str:
        """What Python, emulated, prints.

        Raises:
            RuntimeError: it fails.
        """
        (python,) = (file for file in self.system.glob("usr/bin/python3.*") if file.suffix[1:].isdigit())
        command = [QEMU, "-cpu", CPU, "-L", self.system, "-E", f"PYTHONPATH={self.site}", python, "-B", *arguments]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode} in the emulator: {done.stderr.strip()[-2000:]}")
        return done.stdout


def arm(work: Path) -> Arm:
    """The Arm system in ``work``, fetched once.

    Raises:
        UserError: the emulator or apt-get is not here, or something cannot be fetched.
    """
    for tool in (QEMU, "apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UserError(f"needs {tool}", where="benchmarks.arm", fix="apt-get install qemu-user-static, on Debian")
    folder = work.resolve() / "arm"
    if not folder.is_dir():
        with atomic_path(folder) as temporary:
            _fetch_system(temporary, temporary / "system")
            _fetch_wheels(temporary, temporary / "site")
    return Arm(folder / "system", folder / "site")


def _fetch_system(scratch: Path, out: Path) -> None:
    """Packages with all that they depend on, by apt with folders of its own, unpacked and not configured."""
    for name in ("apt/state/lists/partial", "apt/cache/archives/partial", out.name):
        (scratch / name).mkdir(parents=True)
    (scratch / "apt/status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "root",
        "Dir::State": scratch / "apt/state",
        "Dir::State::status": scratch / "apt/status",
        "Dir::Cache": scratch / "apt/cache",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-qq", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    _call(*apt, "update")
    _call(*apt, "install", "--yes", "--download-only", *_PACKAGES)
    for package in sorted((scratch / "apt/cache/archives").glob("*.deb")):
        _call("dpkg", "-x", package, out)
    shutil.rmtree(scratch / "apt")


def _fetch_wheels(scratch: Path, out: Path) -> None:
    (library,) = (scratch / "system/usr/lib").glob("python3.*")
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    where = ["--only-binary=:all:", *platforms, "--python-version", library.name.removeprefix("python"), "--dest"]
    _call(*pip, *where, scratch / "wheels", "numpy", ONNXRUNTIME)
    for wheel in (scratch / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(out)
    shutil.rmtree(scratch / "wheels")


def _call(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{command[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")


@dataclass(frozen=True)
class Row:
    """A build on both CPUs. Accuracy is that of the task's metric; ``failed`` names the limits that Arm misses."""

    build: str
    here: float
    there: float
    alike: float
    largest_difference: float
    failed: tuple[str, ...]


def compare(run: RunFolder, system: Arm, samples: int) -> tuple[dict[str, Any], list[Row]]:
    """What the bundle's self-test says on Arm, and a row per ONNX Runtime build of the run's target ``cpu``.

    Args:
        samples: how many of the test split, from its start.
    """
    result = run.result()
    record = next(target for target in result["targets"] if target["target"] == CpuTarget.spec.name)
    builds = [load_build(run.builds("cpu") / row["id"]) for row in record["builds"] if row["runtime"] == "onnxruntime"]
    inputs, truth = (np.load(run.evaluation / name, mmap_mode="r")[:samples] for name in ("inputs.npy", "target.npy"))
    scoring = scoring_of(load_variants(run, run.stage_result("variants") or {})[0].output)
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as name:
        work = Path(name)
        about = [{"id": b.id, "model": str(b.model_path.resolve()), "options": b.options} for b in builds]
        write_json(work / "builds.json", about)
        (work / "inside.py").write_text(_INSIDE, encoding="utf-8")
        np.save(work / "inputs.npy", inputs)
        printed = system.run(work / "inside.py", run.bundle("cpu").resolve(), work)
        goals = Goals.of(record["goals"])
        reference = load_predictions(run).answers[:samples]
        rows = [
            _row(build, np.load(work / f"{build.id}.npy"), inputs, truth, reference, scoring, goals) for build in builds
        ]
    return json.loads(printed), rows


def _row(
    build: Build,
    there: NDArray[np.float32],
    inputs: NDArray[Any],
    truth: NDArray[Any],
    reference: NDArray[Any],
    scoring: Scoring,
    goals: Goals,
) -> Row:
    with CpuTarget().load(build) as runner:
        here = np.concatenate([runner.run(np.array(inputs[k : k + 1])) for k in range(len(inputs))])
    ours, theirs = scoring.answers(here), scoring.answers(there)
    accuracy = compare_accuracy(theirs, reference, truth, scoring)
    return Row(
        build=build.id,
        here=scoring.value(scoring.statistics(ours, truth)),
        there=accuracy.value,
        alike=scoring.agreement(theirs, ours),
        largest_difference=scoring.difference(there, here) / scoring.spread(here),
        failed=tuple(limit.goal for limit in accuracy_limits(accuracy, goals.accuracy) if limit.short_by > 0),
    )


def table(bundle: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    """Markdown."""
    off = f"`{bundle['build']}` off by {bundle['self_test']:.2g}"
    yield f"Self-test of the bundle on {bundle['machine']} ({CPU}): {off}"
    yield ""
    yield "| build | accuracy here | on Arm | answers alike | largest difference, of the outputs' spread | gate |"
    yield "|---|---:|---:|---:|---:|---|"
    for row in rows:
        gate = f"misses {', '.join(row.failed)}" if row.failed else "holds"
        numbers = f"{row.here:.2%} | {row.there:.2%} | {row.alike:.2%} | {row.largest_difference:.2g}"
        yield f"| `{row.build}` | {numbers} | {gate} |"


def main(arguments: list[str] | None = None) -> int:
    """Runs and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=200, help="of the test split; the emulator is slow")
    parser.add_argument("--work", type=Path, default=Path("runs/arm"), help="keeps the Arm system")
    said = parser.parse_args(arguments)
    try:
        bundle, rows = compare(RunFolder(said.run), arm(said.work), said.samples)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(bundle, rows)))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
