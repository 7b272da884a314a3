"""Packs the chosen build, a second choice per other runtime, and what runs them, into a bundle."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime.manifest import FORMAT, MANIFEST, VERSION, default_hop
from apps.runtime.tokenizer import TOKENIZER
from mst_edge.core.files import atomic_path, sha256_file, write_json, write_text
from mst_edge.core.scoring import OutputSpec
from quantize.variant import STEP_MODEL, InputSpec, load_step, step_tolerance
from targets.carried import app_files, app_of
from targets.service import Needs, service_files
from targets.spec import Build

_SCRIPT = '''\
"""%(does)s: python %(name)s"""

import sys
from pathlib import Path

folder = Path(__file__).resolve().parent
sys.path.insert(0, str(folder))
sys.dont_write_bytecode = True  # a bundle may lie where nothing can be written

from apps.runtime.%(module)s import main  # noqa: E402

sys.exit(main(%(arguments)s))
'''
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first date: equal content gives equal archives


@dataclass(frozen=True)
class PackedBuild:
    """A build to pack.

    Attributes:
        reference_outputs: ``(samples, outputs, ...)`` that it gave for the reference inputs.
        tolerance: largest difference from them that another device may show; of numbers, in units of their scale.
        expected: accuracy, latency and memory as measured here.
    """

    build: Build
    reference_outputs: NDArray[np.float32]
    tolerance: float
    expected: Mapping[str, Any]


def pack(
    folder: Path,
    *,
    name: str,
    target: str,
    output: OutputSpec,
    input_spec: InputSpec,
    reference_inputs: NDArray[Any],
    fp32_outputs: NDArray[np.float32],
    builds: Sequence[PackedBuild],
    gate: Mapping[str, Any],
    provenance: Mapping[str, Any],
    licence: str,
    readme: str,
    examples: Mapping[str, bytes] = MappingProxyType({}),
    tokenizer: Path | None = None,
    stream: Path | None = None,
    hop: int | None = None,
    more: Mapping[str, Path | str] = MappingProxyType({}),
    needs: Needs | None = None,
) -> Path:
    """Writes the bundle ``folder`` and ``folder.zip``; the first of ``builds`` is the chosen one.

    Args:
        fp32_outputs: what the fp32 model says of the reference inputs, which drift on a device is told by.
        examples: files by name that anyone can try the bundle on.
        tokenizer: file that makes token ids of a text, for a model that takes them.
        stream: folder of a model of one frame after another, for a student that streams clips.
        hop: samples from one window of a stream to the next; None: ``default_hop``.
        more: further files: path in the bundle to a file, or to its text.
        needs: what inference takes on the device, for the service; by what was measured where nothing is said.

    Returns:
        The zip's path.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        _copy_runtime(temporary / "apps" / "runtime")
        write_text(temporary / "run.py", script("main", "Answers for files, with the model here", "run.py FILE..."))
        write_text(temporary / "README.md", readme)
        (temporary / "reference").mkdir()
        for stem, array in (("inputs", reference_inputs), ("fp32", fp32_outputs)):
            np.save(temporary / "reference" / f"{stem}.npy", array, allow_pickle=False)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, temporary / TOKENIZER)
        for example, content in examples.items():
            (temporary / "examples").mkdir(exist_ok=True)
            (temporary / "examples" / example).write_bytes(content)
        app = app_of(output, input_spec)
        start = script("start", f"The app {app.name}", "app.py", f'folder, "{app.name}"')
        served = service_files(name, app, needs or _measured(builds))
        for path, source in {**app_files(app), "app.py": start, **served, **more}.items():
            _put(temporary / path, source)
        entries = [_copy_build(temporary, packed) for packed in builds]
        streamed = {} if stream is None else {"stream": _copy_stream(temporary, stream, fp32_outputs)}
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "name": name,
            "target": target,
            "task": output.task,
            "labels": list(output.names),
            "units": list(output.units),
            "scale": list(output.scale),
            "ordinal": list(output.ordinal),
            "ignore_label": output.ignore_label,
            "input": {
                **asdict(input_spec),
                "hop": hop or default_hop(input_spec.kind, input_spec.shape),
                **({} if tokenizer is None else {"tokenizer": TOKENIZER}),
            },
            "reference_inputs": "reference/inputs.npy",
            "fp32_outputs": "reference/fp32.npy",
            "builds": entries,
            **streamed,
            "gate": dict(gate),
            "licence": licence,
            "provenance": dict(provenance),
            "files": {path.relative_to(temporary).as_posix(): sha256_file(path) for path in files},
        }
        write_json(temporary / MANIFEST, manifest)
    archive = folder.with_name(folder.name + ".zip")
    _zip(folder, archive)
    return archive


def script(module: str, does: str, name: str = "", arguments: str = "folder") -> str:
    """A program at the root of a bundle, which runs ``main`` of a module of ``apps.runtime`` that lies there."""
    name = name or f"{module.rpartition('.')[2]}.py"
    return _SCRIPT % {"module": module, "does": does, "name": name, "arguments": arguments}


def _measured(builds: Sequence[PackedBuild]) -> Needs:
    """Four times the memory that the hungriest build took where it was packed."""
    least = Needs()
    peak = max(float(packed.expected.get("peak_memory_mb", 0)) for packed in builds)
    return replace(least, memory_mb=max(least.memory_mb, round(4 * peak)))


def _put(path: Path, content: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        shutil.copyfile(content, path)


def _copy_build(root: Path, packed: PackedBuild) -> dict[str, Any]:
    build = packed.build
    place = root / "models" / build.id
    place.mkdir(parents=True)
    for file in build.model_files():
        shutil.copyfile(file, place / file.name)
    outputs = f"reference/{build.id}.npy"
    np.save(root / outputs, packed.reference_outputs, allow_pickle=False)
    return {
        "id": build.id,
        "runtime": build.runtime,
        "precision": build.precision,
        "model": f"models/{build.id}/{build.model}",
        "options": dict(build.options),
        **({"tuned": dict(build.tuned)} if build.tuned else {}),
        "reference_outputs": outputs,
        "tolerance": packed.tolerance,
        "expected": dict(packed.expected),
    }


def _copy_stream(root: Path, folder: Path, fp32_outputs: NDArray[np.float32]) -> dict[str, Any]:
    spec = load_step(folder)
    assert spec is not None, folder
    shutil.copyfile(folder / STEP_MODEL, root / "models" / STEP_MODEL)
    return {
        "model": f"models/{STEP_MODEL}",
        "state": spec.state,
        "taken": list(spec.taken),
        "rate_hz": spec.rate_hz,
        "tolerance": step_tolerance(fp32_outputs),
    }


def _copy_runtime(place: Path) -> None:
    """The bundle's own copy of ``apps.runtime``: the device needs nothing of mst-edge."""
    place.mkdir(parents=True)
    for entry in resources.files("apps.runtime").iterdir():
        if entry.name.endswith(".py"):
            (place / entry.name).write_bytes(entry.read_bytes())


def _zip(folder: Path, archive: Path) -> None:
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
                member.external_attr = 0o644 << 16
                member.compress_type = zipfile.ZIP_DEFLATED
                out.writestr(member, path.read_bytes())
