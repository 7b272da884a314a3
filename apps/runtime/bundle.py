"""A bundle: opened, verified, and run with the inference runtime that is installed here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .answers import Answer, Prediction, answer_of
from .drift import Drift, drift, further
from .engines import ENGINES, Engine, requirement_of
from .errors import BundleError
from .inputs import Sample, encode_text, read_sample
from .machine import settings_here
from .manifest import MANIFEST, BuildEntry, Manifest, inside, read_manifest

if TYPE_CHECKING:
    from .tokenizer import AnyTokenizer

_BUILD_FOR_IT = "the runtime or CPU differs from where it was packed: build the bundle for this machine"


class Bundle:
    """A verified bundle folder. ``with Bundle.open(path) as bundle: bundle.predict(array)``."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.build: BuildEntry = manifest.builds[0]
        self.notes: list[str] = []
        self._engine: Engine | None = None
        self._wanted: BuildEntry | None = None
        self._tokenizer: AnyTokenizer | None = None
        self._cleanup = contextlib.ExitStack()

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Opens a bundle folder or ``.zip`` and checks every file against the manifest.

        Raises:
            BundleError: not a bundle, or a file is missing or changed (names it).
        """
        path = Path(path)
        if not path.exists():
            raise BundleError("no such bundle", where=path)
        with contextlib.ExitStack() as stack:
            folder = path
            if path.is_file():
                from .archive import unpack  # here, as below: a start-up takes what it needs

                folder = unpack(path, stack)
            manifest = read_manifest(folder)
            _verify(folder, manifest)
            bundle = cls(folder, manifest)
            bundle._cleanup = stack.pop_all()
        return bundle

    def load(self, runtime: str | None = None) -> Engine:
        """Loads the preferred build whose runtime is installed; a second choice is noted, never silent.

        Raises:
            BundleError: no runtime of the bundle is installed here.
        """
        if self._engine is not None:
            return self._engine
        order = self._preferred()
        for build in order:
            engine = ENGINES.get(build.runtime)
            if engine is None or not engine.installed() or runtime not in (None, build.runtime):
                continue
            if build is not order[0] and runtime is None:
                first = order[0]
                self.notes.append(f"{first.runtime} is not installed: running {build.id} instead of {first.id}")
            self.build = build
            self._engine = engine(inside(self.folder, build.model), settings_here(build.options, build.tuned))
            return self._engine
        names = [runtime] if runtime else list(dict.fromkeys(build.runtime for build in self.manifest.builds))
        wanted = " or ".join(requirement_of(name) for name in names)
        raise BundleError(
            f"needs {' or '.join(names)}, which is not installed", where=self.folder, fix=f"pip install {wanted}"
        )

    def use(self, build_id: str) -> Engine:
        """Loads one build instead of the preferred one.

        Raises:
            BundleError: there is no such build, its runtime is not installed here, or it cannot be loaded.
        """
        wanted = next((build for build in self.manifest.builds if build.id == build_id), None)
        if wanted is None:
            known = ", ".join(build.id for build in self.manifest.builds)
            raise BundleError(f"has no build {build_id}", where=self.folder, fix=f"it has {known}")
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._wanted = wanted
        return self.load(wanted.runtime)

    def _preferred(self) -> list[BuildEntry]:
        """Builds in order of preference: first what was asked for, else what measurements here chose."""
        first = self._wanted.id if self._wanted is not None else chosen_here(self.folder)
        return sorted(self.manifest.builds, key=lambda build: build.id != first)

    @property
    def tokenizer(self) -> AnyTokenizer | None:
        """What makes token ids of a text; None where the student reads something else."""
        if self._tokenizer is None and self.manifest.input.tokenizer is not None:
            from .tokenizer import read_tokenizer

            self._tokenizer = read_tokenizer(inside(self.folder, self.manifest.input.tokenizer))
        return self._tokenizer

    def read(self, path: str | Path) -> Sample:
        """A file as one sample that ``predict`` takes.

        Raises:
            BundleError: the file does not exist, is damaged, or does not fit.
        """
        return read_sample(path, self.manifest.input, self.tokenizer)

    def encode(self, text: str, name: str = "the text") -> Sample:
        """A text as one sample that ``predict`` takes; ``name`` is what the notes call it.

        Raises:
            BundleError: the student reads no text.
        """
        return encode_text(text, self.require_text(), name)

    def require_text(self) -> AnyTokenizer:
        """The tokenizer of a student that reads text.

        Raises:
            BundleError: the student reads no text.
        """
        if self.tokenizer is None:
            raise BundleError(f"its student reads {self.manifest.input.kind}, not text", where=self.folder)
        return self.tokenizer

    def outputs(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """``(batch, *input.shape)`` of the input's dtype to ``(batch, labels)``, or ``(batch, labels, H, W)``."""
        spec = self.manifest.input
        if not spec.fits(batch.shape[1:]) or batch.dtype != spec.dtype:
            raise BundleError(
                f"expected samples of {spec.text()} in a batch, received {batch.shape} {batch.dtype}",
                where=f"input {spec.name}",
            )
        return self.load().run(np.ascontiguousarray(batch))

    def answer(self, sample: NDArray[Any]) -> Answer:
        """The student's answer for one sample ``(*input.shape)``: a class, numbers, or a label map.

        Raises:
            BundleError: the sample does not fit, or the model makes no numbers of it.
        """
        start = time.perf_counter_ns()
        output = self.outputs(sample[None])[0]
        latency_ms = (time.perf_counter_ns() - start) / 1e6
        if not np.isfinite(output).all():
            raise BundleError("the model gives NaN or infinity for this input", where=self.build.id)
        return answer_of(output, self.manifest, latency_ms)

    def predict(self, sample: NDArray[Any]) -> Prediction:
        """The class of one sample ``(*input.shape)``.

        Raises:
            BundleError: the student does not classify.
        """
        said = self.answer(sample)
        if not isinstance(said, Prediction):
            raise BundleError(f"its student does {self.manifest.task}, not classification", where=self.folder)
        return said

    def fp32_outputs(self) -> NDArray[np.float32]:
        """``(samples, labels, ...)``: what the fp32 model says of the reference inputs."""
        return self._array(self.manifest.fp32_outputs)

    def self_test(self) -> float:
        """Runs the reference inputs and returns the largest difference from the expected outputs; of numbers, in
        units of their scale.

        Raises:
            BundleError: the difference is beyond the build's tolerance: this device runs it wrongly.
        """
        self.load()
        expected = self._array(self.build.reference_outputs)
        actual = self._reference_run()
        # Of 300 K, float32 does not hold the fifth decimal: its last places are no difference.
        apart = np.maximum(0, np.abs(actual - expected) - 4 * np.spacing(np.abs(expected)))
        difference = float((apart / np.array(self.manifest.scale or 1.0)).max())
        if not difference <= self.build.tolerance:
            raise BundleError(
                f"{self.build.id} is off by {difference:.3g} on the reference inputs, "
                f"allowed {self.build.tolerance:.3g}",
                where=self.folder,
                fix=_BUILD_FOR_IT,
            )
        return difference

    def drift(self) -> Drift:
        """How far this device's answers for the reference inputs are from those of the fp32 model: no labels needed."""
        numbers = self.manifest.task == "regression"
        return drift(
            self._reference_run(), self._array(self.manifest.fp32_outputs), self.manifest.labels, numbers=numbers
        )

    def prove(self) -> tuple[float, Drift]:
        """``self_test`` and ``drift``: that this device may serve.

        Raises:
            BundleError: outputs are beyond the tolerance, or answers further from the fp32 model's than they were where
                the bundle was packed.
        """
        difference, here = self.self_test(), self.drift()
        numbers = self.manifest.task == "regression"
        fp32, packed = self._array(self.manifest.fp32_outputs), self._array(self.build.reference_outputs)
        beyond = further(here, drift(packed, fp32, self.manifest.labels, numbers=numbers))
        if beyond:
            raise BundleError(f"{self.build.id} drifts: {beyond}", where=self.folder, fix=_BUILD_FOR_IT)
        return difference, here

    def _reference_run(self) -> NDArray[np.float32]:
        return np.concatenate([self.outputs(sample[None]) for sample in self.reference_inputs()])

    def reference_inputs(self) -> NDArray[Any]:
        """``(samples, *input.shape)``: a few real inputs that the bundle carries to prove itself with."""
        return self._array(self.manifest.reference_inputs)

    def _array(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(inside(self.folder, name), allow_pickle=False)
        return array

    def close(self) -> None:
        """Frees the model and what was unpacked."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self._cleanup.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def chosen_here(folder: Path) -> str | None:
    """The build that measurements on this device chose, see ``board.bench``; None where none were made."""
    try:
        said = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said.get("chosen") if isinstance(said, dict) else None


def memory_mb() -> dict[str, float]:
    """Resident memory of this process now and at its peak, in MB; empty where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return {}
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        name: int(lines[field].split()[0]) / 1024
        for name, field in (("now", "VmRSS"), ("peak", "VmHWM"))
        if field in lines
    }


def _verify(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise BundleError(f"file {name} is missing", where=folder, fix="copy the bundle again")
        if _sha256(path) != expected:
            raise BundleError(f"file {name} was changed", where=folder, fix="copy the bundle again")
    needed = [
        manifest.reference_inputs,
        manifest.fp32_outputs,
        *([manifest.input.tokenizer] if manifest.input.tokenizer else []),
    ]
    needed += [manifest.stream.model] if manifest.stream is not None else []
    needed += [name for build in manifest.builds for name in (build.model, build.reference_outputs)]
    for name in needed:
        if name not in manifest.files:
            raise BundleError(f"{name} has no checksum in {MANIFEST}", where=folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def warn(notes: list[str]) -> None:
    """Prints notes to standard error."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
