"""The builds that a page shows side by side: loaded, proved, described, asked one at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.digits_camera.find import Framing, find_digits
from apps.runtime import Answer, Bundle, BundleError, LabelMap, Numbers, Sample, memory_mb
from apps.runtime.audio import parse_wav, usable
from apps.runtime.images import open_picture
from apps.runtime.inputs import decode_sample, sample_of_sound
from apps.runtime.manifest import BuildEntry, InputSpec
from apps.serve.views import label_map, view_of

MOST_SECONDS = 60.0  # of sound in one request
EVERY_BUILD = "all"
_DIGITS = set("0123456789")


class BusyError(Exception):
    """Others are being answered for longer than somebody should wait."""


@dataclass(frozen=True)
class Model:
    """One build of a bundle, loaded; ``path`` as the user gave it, ``framing`` where its student sees grey pictures."""

    path: Path
    bundle: Bundle
    framing: Framing | None

    @property
    def build(self) -> BuildEntry:
        return self.bundle.build

    def about(self) -> dict[str, Any]:
        """What the page tells of it."""
        manifest, expected, latency = self.bundle.manifest, self.build.expected, self.build.expected.get("latency")
        spec = manifest.input
        return {
            "bundle": manifest.name,
            "path": str(self.path),
            "target": manifest.target,
            "task": manifest.task,
            "labels": list(manifest.labels),
            "ordinal": list(manifest.ordinal),
            "kind": spec.kind,
            "shape": list(spec.shape),
            "sample_rate_hz": spec.sample_rate_hz,
            "build": self.build.id,
            "runtime": self.build.runtime,
            "precision": self.build.precision,
            "size_bytes": expected.get("size_bytes"),
            "metric": expected.get("metric"),
            "score": expected.get("accuracy"),
            "p90_ms": latency.get("p90_ms") if isinstance(latency, dict) else None,
            "gate": manifest.gate.get("verdict"),
            "finds_digits": self.framing is not None and set(manifest.labels) <= _DIGITS,
            "draws": self.framing is not None,
            "notes": self.bundle.notes,
        }


class Models:
    """Every build to be shown. ``answer`` may be called from any thread: one of its own does the work, in turn.

    Runtimes keep buffers per thread: in a new one for every request, OpenVINO's first call takes half a second.
    """

    def __init__(self, models: Sequence[Model], worker: ThreadPoolExecutor) -> None:
        self._models = tuple(models)
        self._worker = worker

    @classmethod
    @contextlib.contextmanager
    def open(cls, paths: Sequence[Path], builds: Sequence[str] = ()) -> Iterator[Models]:
        """Loads the preferred build of each bundle, or those named ``builds`` wherever they are (``all``: every one).

        Raises:
            BundleError: no bundle, a build that none has, or one that fails its self-test here.
        """
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as worker:
            models = worker.submit(_load, paths, builds, stack).result()
            try:
                yield cls(models, worker)
            finally:
                worker.submit(stack.close).result()

    def about(self) -> dict[str, Any]:
        """The builds, in order; numbers in answers are places in this list."""
        return {"models": [model.about() for model in self._models], "memory_mb": memory_mb()}

    def kinds(self) -> set[str]:
        """What the students read."""
        return {model.bundle.manifest.input.kind for model in self._models}

    def answer(self, kind: str, data: bytes, *, frame: bool = False, wait_s: float = 20.0) -> dict[str, Any]:
        """Answers of every student that reads ``kind`` for one file's bytes, with what each saw.

        Args:
            frame: look for a digit in a picture, and show the student that alone.

        Raises:
            BundleError: the bytes are nothing that a student reads.
            BusyError: no answer within ``wait_s``.
        """
        asked = self._worker.submit(self._answer, kind, data, frame)
        try:
            return asked.result(wait_s)
        except TimeoutError:
            asked.cancel()
            raise BusyError from None

    def _answer(self, kind: str, data: bytes, frame: bool) -> dict[str, Any]:
        seen: dict[object, tuple[int, Sample]] = {}
        views: list[dict[str, Any]] = []
        answers: list[dict[str, Any]] = []
        begin = time.perf_counter_ns()
        for number, model in enumerate(self._models):
            spec, tokenizer = model.bundle.manifest.input, model.bundle.tokenizer
            if spec.kind != kind:
                continue
            framing = model.framing if frame else None
            key = (spec.shape, spec.dtype, spec.sample_rate_hz, tokenizer and tokenizer.to_json(), framing)
            if key not in seen:
                sample = _sample(data, model.bundle, framing)
                seen[key] = (len(views), sample)
                views.append({**view_of(sample.array, spec, tokenizer), "notes": list(sample.notes)})
            view, sample = seen[key]
            said = model.bundle.answer(sample.array)
            answers.append({"model": number, "view": view, "inference_ms": said.latency_ms, **_record(said)})
        return {"answers": answers, "views": views, "total_ms": (time.perf_counter_ns() - begin) / 1e6}


def _load(paths: Sequence[Path], builds: Sequence[str], stack: contextlib.ExitStack) -> list[Model]:
    models = []
    for path in paths:
        for build in _wanted(path, builds):
            bundle = stack.enter_context(Bundle.open(path))
            _ = bundle.load() if build is None else bundle.use(build)
            bundle.self_test()
            models.append(Model(path, bundle, _framing(bundle)))
    for build in set(builds) - {EVERY_BUILD} - {model.build.id for model in models}:
        raise BundleError(f"no bundle has a build {build}", where="--build")
    return models


def _wanted(path: Path, builds: Sequence[str]) -> list[str | None]:
    """Builds of one bundle to load; None for the preferred one."""
    if not builds:
        return [None]
    with Bundle.open(path) as bundle:
        return [build.id for build in bundle.manifest.builds if build.id in builds or EVERY_BUILD in builds]


def _framing(bundle: Bundle) -> Framing | None:
    """As the bundle's own reference inputs are framed; None where its student reads something else."""
    spec = bundle.manifest.input
    if spec.kind != "image" or spec.dtype != "uint8" or len(spec.shape) != 2:
        return None
    return Framing.of(bundle.reference_inputs())


def _sample(data: bytes, bundle: Bundle, framing: Framing | None) -> Sample:
    spec = bundle.manifest.input
    if spec.kind == "audio" and data[:4] == b"RIFF":
        return _sound(data, spec)
    if framing is not None:
        return _framed(data, framing, spec)
    return decode_sample(data, spec, bundle.tokenizer, "it")


def _sound(data: bytes, spec: InputSpec) -> Sample:
    wave = usable(parse_wav(data, "the sound"), "the sound")
    seconds = len(wave.samples) / wave.rate_hz
    if seconds > MOST_SECONDS:
        raise BundleError(f"lasts {seconds:.0f} s, {MOST_SECONDS:.0f} s at most", where="the sound")
    return sample_of_sound(wave, spec, "it")


def _framed(data: bytes, framing: Framing, spec: InputSpec) -> Sample:
    grey: NDArray[np.uint8] = np.asarray(open_picture(data, "L", "the picture", upright=True))
    found = find_digits(grey, framing)
    if not found:
        sample = decode_sample(data, spec, name="the picture")
        return Sample(sample.array, ("no digit was found: this is the whole picture",))
    largest = max(found, key=lambda digit: digit.box.height * digit.box.width)
    notes = (f"{len(found)} signs were found: this is the largest",) if len(found) > 1 else ()
    return Sample(largest.sample, notes)


def _record(said: Answer) -> dict[str, Any]:
    record = said.record()
    if isinstance(said, LabelMap):
        return {"task": "segmentation", **record, "map": label_map(said.labels)}
    return {"task": "regression" if isinstance(said, Numbers) else "classification", **record}
