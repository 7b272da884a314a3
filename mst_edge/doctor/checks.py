"""The checks, in the order of the report. A new one is a function and a line in ``CHECKS``."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata

from mst_edge.core.extras import EXTRA_OF, distribution_of, install_command
from mst_edge.core.machine import this_machine
from mst_edge.doctor.findings import Check, Finding, State, Ward
from mst_edge.doctor.nvidia import look_at_nvidia
from targets.target import get_target

_LEAST_PYTHON = (3, 11)
_MOST_SECONDS = 300.0
# What the instruction sets that runtimes look for are good for.
_ISA: Mapping[str, str] = {
    "avx2": "8 floats at once",
    "avx512": "16 floats at once",
    "vnni": "int8 products added in 32 bits",
    "amx": "products of tiles",
    "amx_int8": "int8 products of tiles",
    "bf16": "bf16 products",
    "amx_bf16": "bf16 products of tiles",
    "dotprod": "int8 products added in 32 bits",
    "i8mm": "int8 matrix products",
    "fp16": "fp16 arithmetic",
    "sve": "vectors of any length",
}
_IMPORT_ALL = """
import contextlib, json, sys
from mst_edge.core.extras import import_extra
answers, sys.stdout = sys.stdout, sys.stderr
for name in sys.argv[1:]:
    try:
        import_extra(name)
        problem = ""
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"
    print(json.dumps([name, problem]), file=answers, flush=True)
"""


def look_at_python(_: Ward) -> Iterator[Finding]:
    """The interpreter."""
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    if sys.version_info < _LEAST_PYTHON:
        least = ".".join(map(str, _LEAST_PYTHON))
        yield Finding("python", "broken", text, f"use Python {least} or newer")
    else:
        yield Finding("python", "works", text)


def look_at_packages(_: Ward) -> Iterator[Finding]:
    """Every optional package: its version, and whether it can be imported, found by doing so in another process."""
    versions = {module: _version(distribution_of(module)) for module in EXTRA_OF}
    problems = _import_problems([module for module, version in versions.items() if version])
    for module, extra in EXTRA_OF.items():
        name, version = distribution_of(module), versions[module]
        facts = {"extra": extra, "version": version}
        if not version:
            yield Finding(name, "missing", f"extra {extra}", install_command(extra), facts)
        elif problems[module]:
            fix = f"pip install --force-reinstall {name}"
            yield Finding(name, "broken", f"{version}, cannot be imported: {problems[module]}", fix, facts)
        else:
            yield Finding(name, "works", version, facts=facts)


def look_at_cpu(_: Ward) -> Iterator[Finding]:
    """Model, instruction sets that decide which kernels run, cores, memory, governor."""
    machine = this_machine()
    memory = f"{machine.memory_bytes / (1 << 30):.1f} GiB"
    yield Finding("cpu", "note", f"{machine.cpu}, {machine.cores} core(s), {memory}", facts=machine.to_dict())
    for name in machine.isa:
        yield Finding(name, "works", _ISA.get(name, ""))
    if machine.int8_can_overflow:
        text = "no vnni: int8 products can overflow 16 bits, so ONNX Runtime's int8 schemes use 7-bit weights"
        yield Finding("saturation", "note", text)
    if machine.governor not in ("performance", "unknown"):
        fix = "sudo cpupower frequency-set -g performance"
        yield Finding("governor", "note", f"{machine.governor}: the clock, and with it latency, varies", fix)


def look_at_targets(ward: Ward) -> Iterator[Finding]:
    """One inference of a tiny model per target, runtime and precision, whose answer is known."""
    for name in ward.targets:
        target, proved = get_target(name), 0
        for runtime in target.runtime_classes:
            probe, proofs = ward.probe(name, runtime), ward.proofs(name, runtime)
            proved += sum(proof.works for proof in proofs)
            if not probe.available:
                yield Finding(f"{name}/{runtime}", "missing", *_cause_and_fix(probe.reason))
            for proof in proofs:
                facts = {"target": name, "runtime": runtime, "version": probe.version, "precision": proof.precision}
                text = f"{probe.version}, answered right in {proof.run_ms:.3f} ms" if proof.works else proof.problem
                state: State = "works" if proof.works else "broken"
                yield Finding(f"{name}/{runtime}/{proof.precision}", state, text, facts=facts)
        if target.spec.on_host and not proved:
            # Of all targets, some are for hardware that is not here; one that was named is wanted.
            here = ward.asked or any(ward.probe(name, runtime).available for runtime in target.spec.runtimes)
            yield Finding(name, "broken" if here else "note", "no runtime of this target works here")
        elif not target.spec.on_host:
            yield Finding(name, "note", "builds run on the device, not here")


def look_at_schemes(ward: Ward) -> Iterator[Finding]:
    """Every scheme: whether it can be made here, and where what it makes runs."""
    try:
        from mst_edge.capabilities import capabilities
        from quantize.schemes.base import SCHEMES

        rows = capabilities(SCHEMES.names(), ward.targets)
    except ModuleNotFoundError as error:
        yield Finding("schemes", "missing", f"{error.name} is not installed", install_command("quantize"))
        return
    works = {
        (*place, proof.precision) for row in rows for place in row.runs for proof in ward.proofs(*place) if proof.works
    }
    for row in rows:
        runs = {
            f"{target}/{runtime}": [p for p in precisions if (target, runtime, p) in works]
            for (target, runtime), precisions in row.runs.items()
        }
        said = "; ".join(f"{place} in {', '.join(found)}" for place, found in runs.items() if found)
        absent = [name for name in row.modules if not _version(distribution_of(name))]
        facts = {"backend": row.backend, "precision": row.precision, "runs": runs, "missing": absent}
        if absent:
            fix = install_command(EXTRA_OF[absent[0]])
            yield Finding(row.name, "missing", f"made by {row.backend}, which takes {', '.join(absent)}", fix, facts)
        elif said:
            yield Finding(row.name, "works", f"made by {row.backend}; runs on {said}", facts=facts)
        else:
            yield Finding(row.name, "note", f"made by {row.backend}; nothing here runs {row.precision}", facts=facts)


CHECKS = (
    Check("python", "Python", look_at_python),
    Check("packages", "Packages", look_at_packages),
    Check("cpu", "CPU", look_at_cpu),
    Check("nvidia", "NVIDIA: JetPack, driver, CUDA, TensorRT and wheels", look_at_nvidia),
    Check("targets", "Targets: an inference per runtime and precision", look_at_targets),
    Check("schemes", "Schemes of quantization", look_at_schemes),
)


def _version(distribution: str) -> str:
    """The installed version; empty where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _import_problems(modules: list[str]) -> dict[str, str]:
    """Why each module cannot be imported; empty where it can."""
    command = [sys.executable, "-c", _IMPORT_ALL, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_MOST_SECONDS)
    problems = dict(json.loads(line) for line in done.stdout.splitlines())
    died = f"the interpreter ended with code {done.returncode}"
    return {module: " ".join(problems.get(module, died).split())[:300] for module in modules}


def _cause_and_fix(reason: str) -> tuple[str, str]:
    """A probe's reason ends with the command in brackets."""
    cause, _, fix = reason.partition(" (")
    return cause, fix.removesuffix(")")
