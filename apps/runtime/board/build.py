"""``build.sh``: compiles every model of a bundle with this board's TensorRT."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..errors import BundleError
from ..manifest import BuildEntry, inside
from ..tensorrt_engine import ABOUT, PLAN, sha256, this_board
from .dialect import Version, build_command, dialect_of, require_opset
from .results import cannot_go_on, part, read_result, write_result
from .shapes import free_shapes
from .tools import ask, find_trtexec, read_board, tensorrt_version

_TIMING_CACHE = "timing.cache"


def main(folder: Path, arguments: list[str] | None = None) -> int:
    """Builds what is not built yet; returns the process's exit code, 1 if a model was not built."""
    parser = argparse.ArgumentParser(prog="build.sh", description="Compiles the models of this bundle on this board.")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--again", action="store_true", help="build also what is built already")
    chosen = parser.parse_args(arguments)
    try:
        with Bundle.open(folder) as bundle:
            return _build_all(bundle, dry_run=chosen.dry_run, again=chosen.again)
    except (BundleError, OSError) as error:
        return cannot_go_on(error, folder)


def _build_all(bundle: Bundle, *, dry_run: bool, again: bool) -> int:
    trtexec = find_trtexec()
    version = tensorrt_version(trtexec)
    for entry in bundle.manifest.builds:
        require_opset(version, int(entry.options["opset"]))
    print(f"TensorRT {version}: flags as for {dialect_of(version).name}")
    if dry_run:
        for entry in bundle.manifest.builds:
            print(shlex.join(_command(bundle, entry, trtexec, version)))
        return 0
    result = read_result(bundle.folder, bundle.manifest)
    result |= {"board": read_board(), "tensorrt": str(version)}
    failed = 0
    for entry in bundle.manifest.builds:
        said = part(result, entry.id)
        if not again and _up_to_date(bundle, entry, version, said):
            print(f"{entry.id}: built already")
            continue
        said.clear()  # what was checked and measured was another engine
        said["build"] = _build(bundle, entry, trtexec, version)
        result["chosen"] = None
        problem = said["build"]["problem"]
        failed += bool(problem)
        print(f"{entry.id}: {problem or 'built in %.1f s' % said['build']['seconds']}")
        write_result(bundle.folder, result)
    return 1 if failed else 0


def _command(bundle: Bundle, entry: BuildEntry, trtexec: str, version: Version) -> list[str]:
    model = inside(bundle.folder, entry.model)
    plan, cache = model.parent / f".{PLAN}.tmp", bundle.folder / _TIMING_CACHE
    return build_command(trtexec, version, entry.precision, model, plan, cache, free_shapes(bundle, entry))


def _build(bundle: Bundle, entry: BuildEntry, trtexec: str, version: Version) -> dict[str, Any]:
    """Compiles one model; a failed build leaves no engine behind."""
    model = inside(bundle.folder, entry.model)
    plan, about, temporary = model.parent / PLAN, model.parent / ABOUT, model.parent / f".{PLAN}.tmp"
    for old in (about, plan):
        old.unlink(missing_ok=True)
    command = _command(bundle, entry, trtexec, version)
    start = time.perf_counter()
    said = ask(command, seconds=None)
    seconds = time.perf_counter() - start
    (model.parent / "build.log").write_text(said.text, encoding="utf-8")
    record = {"command": command, "seconds": seconds, "problem": "", "size_bytes": None, "plan_sha256": None}
    if said.code or not temporary.is_file():
        temporary.unlink(missing_ok=True)
        return {**record, "problem": f"trtexec {said.ended}: {said.last_words}"}
    facts = _facts(temporary, model, version)
    temporary.replace(plan)
    about.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return {**record, "size_bytes": plan.stat().st_size, "plan_sha256": facts["plan_sha256"]}


def _facts(plan: Path, model: Path, version: Version) -> dict[str, str]:
    """What an engine is of."""
    found = {"plan_sha256": sha256(plan), "model_sha256": sha256(model)}
    return {**found, "tensorrt": str(version), "board": this_board()}


def _up_to_date(bundle: Bundle, entry: BuildEntry, version: Version, record: dict[str, Any]) -> bool:
    """Whether the engine that is here is the one of the record, of this model, TensorRT and board."""
    model = inside(bundle.folder, entry.model)
    try:
        about = json.loads((model.parent / ABOUT).read_text(encoding="utf-8"))
        facts = _facts(model.parent / PLAN, model, version)
    except (OSError, ValueError):
        return False
    return bool(about == facts) and record.get("build", {}).get("plan_sha256") == facts["plan_sha256"]
