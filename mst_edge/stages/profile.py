"""Timing a bundle or an ONNX file on a target, without judging it. Needs no torch; a bundle, no onnx."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from apps.runtime import Bundle
from apps.runtime.manifest import BuildEntry, inside
from mst_edge.core.errors import UserError
from mst_edge.core.extras import require_modules
from mst_edge.core.provenance import provenance
from mst_edge.core.scoring import OutputSpec
from quantize.variant import MODEL, Variant
from targets import measure
from targets.spec import Build
from targets.target import Skipped, Target, gather, get_target

PROTOCOLS = {protocol.name: protocol for protocol in (measure.QUICK, measure.MLPERF)}
_SAMPLES = "samples.npy"
_MOST = 16  # random samples: as many as are timed in turn
_UNREAD = OutputSpec("classification", ())  # nobody looks at the answers


class Watcher(Protocol):
    """Who is told what goes on."""

    def busy(self, text: str) -> None: ...


def profile(
    path: Path,
    target_name: str,
    place: Path,
    watcher: Watcher,
    *,
    shapes: Mapping[str, Sequence[int]],
    protocol: measure.Protocol,
    threads: int = 1,
) -> dict[str, Any]:
    """Latency of a bundle's builds, or of an ONNX file as it is, on a target; nothing is judged.

    A file is timed on random samples: on CPUs the time of common operators does not depend on values.

    Args:
        shapes: of the file's input, with the batch, for axes that it leaves free.
        threads: for a file; a bundle's builds say theirs.
        place: a folder for builds and samples, empty.

    Raises:
        UserError: neither a bundle nor a model, no runtime here runs it, or the target is not this machine.
    """
    target = get_target(target_name)
    target.require_host()
    if not path.exists():
        raise UserError("neither a bundle nor an ONNX file", where=path)
    if path.is_dir() or path.suffix == ".zip":
        with Bundle.open(path) as bundle:
            packed, samples = bundle_builds(bundle, target_name, place)
            made: Iterable[Build | Skipped] = (_if_it_runs(target, build) for build in packed)
            inputs = "the bundle's reference inputs"
    else:
        variant, samples = _as_it_is(path, shapes, place)
        made = target.build_all([variant], threads, place / "builds", ours=False)
        inputs = "random"
    builds, skipped = gather(made, target_name, path)
    measured = measure.measure(builds, samples, _UNREAD, protocol, watcher.busy)
    return {
        "path": str(path),
        "target": target_name,
        "inputs": inputs,
        "builds": [
            {
                "id": build.id,
                "runtime": build.runtime,
                "precision": build.precision,
                "measurement": measured[build.id][0].to_dict(),
            }
            for build in builds
        ],
        "skipped": [asdict(entry) for entry in skipped],
        "provenance": provenance(),
    }


def _if_it_runs(target: Target, build: Build) -> Build | Skipped:
    probe = target.runtime(build.runtime).probe()
    return build if probe.available else Skipped(build.id, probe.reason)


def _as_it_is(path: Path, shapes: Mapping[str, Sequence[int]], place: Path) -> tuple[Variant, Path]:
    """A variant of the file as it was given, and random samples for it."""
    require_modules("onnx")
    from quantize.foreign import read_model
    from quantize.samples import random_samples

    model = read_model(path, shapes)
    samples = random_samples(model.input, 0).first(_MOST)
    model = model.settled(samples)
    folder = place / "model"
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(model.model.SerializeToString())
    np.save(place / _SAMPLES, samples, allow_pickle=False)
    name = model.precision
    variant = Variant(name, name, name, "onnx", folder, model.input, _UNREAD, model.opset)
    return variant, place / _SAMPLES


def bundle_builds(bundle: Bundle, target: str, place: Path) -> tuple[list[Build], Path]:
    """The bundle's builds as the target measures them, copied to ``place``, and the file of its reference inputs.

    Raises:
        UserError: the bundle is for another target.
    """
    manifest = bundle.manifest
    if manifest.target != target:
        raise UserError(f"the bundle is for target {manifest.target}, not {target}", where=bundle.folder)
    samples = place / _SAMPLES
    shutil.copyfile(inside(bundle.folder, manifest.reference_inputs), samples)
    shape = list(np.load(samples, mmap_mode="r", allow_pickle=False).shape[1:])
    taken: Mapping[str, Any] = {"input": {"shape": shape, "sizes": shape, "dtype": manifest.input.dtype}}
    return [_copied(bundle, entry, taken, place) for entry in manifest.builds], samples


def _copied(bundle: Bundle, entry: BuildEntry, facts: Mapping[str, Any], place: Path) -> Build:
    model = inside(bundle.folder, entry.model)
    folder = place / "builds" / entry.id
    shutil.copytree(model.parent, folder)
    build = Build(
        entry.id,
        bundle.manifest.target,
        entry.runtime,
        entry.precision,
        entry.precision,
        folder,
        model.name,
        entry.options,
        dict(facts),
        entry.tuned,
    )
    build.save()
    return build
