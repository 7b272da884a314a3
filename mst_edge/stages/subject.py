"""What is deployed, and what it is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from apps.runtime.manifest import Manifest
from mst_edge.core.scoring import OutputSpec, Predictions
from mst_edge.run_folder import RunFolder
from quantize.api import make_variants
from quantize.schemes.base import Material
from quantize.variant import Variant
from targets import measure
from targets.gate import Goals
from targets.target import Target

NOT_JUDGED = "not judged"  # what the gate says of random samples, and of what has not run on its device yet
_REFERENCE_SAMPLES = 8
# Label maps are large.
_MOST_REFERENCE_BYTES = 4 << 20


def overall(deployed: Sequence[Mapping[str, Any]]) -> str:
    """The gate over all targets."""
    verdicts = {record["gate"] for record in deployed}
    return next((said for said in ("failed", NOT_JUDGED, "passed") if said in verdicts), "not run")


def output_of(manifest: Manifest) -> OutputSpec:
    """What the output of a bundle's model means."""
    said = manifest
    return OutputSpec(said.task, said.labels, said.units, said.ignore_label, said.scale, said.ordinal)


def variants_for(subject: Subject, target: Target) -> tuple[list[Variant], list[dict[str, str]]]:
    """The variants that are there for all targets, with those of schemes that ``target`` wants beyond them; and by
    ``id`` and ``reason`` what could not be made."""
    there = [variant for variant in subject.variants if variant.target in ("", target.spec.name)]
    missing = [name for name in target.schemes if name not in {variant.scheme for variant in there}]
    made, skipped = make_variants(subject.material, missing, subject.place.builds(target.spec.name) / "variants")
    return [*there, *made], skipped


class DeployWatcher(Protocol):
    """Who is told how deployment goes: what is done, and what is going on."""

    def step(self, text: str) -> None: ...

    def busy(self, text: str) -> None: ...


@dataclass(frozen=True)
class Subject:
    """What is deployed, and what it is judged by: a run's student, or a model that came as a file.

    Attributes:
        place: where builds and bundles go.
        variants: of one model, fp32 first.
        inputs: file of the samples that judge, ``(samples, *input)``.
        reference: what the model says of them before any build.
        truth: ``(samples, ...)`` their targets; None where they have no labels.
        real: whether samples were recorded.
        origin: hashes and seeds, for the provenance.
        examples: files that anyone can try the bundle on.
        readme: what the bundle's page says the samples are.
        material: what variants of further schemes are made of, for a target that takes others than were asked for.
        stream: folder of its model of one frame after another, where it streams.
        hop: samples from one window of a stream to the next; None: the default.
        ours: whether it is a student that we exported ourselves.
        tune_seconds: how long settings of its builds are tried; 0: not at all.
        runtimes: that build it; empty: those of each target that bundles run with.
    """

    name: str
    place: RunFolder
    variants: list[Variant]
    inputs: Path
    reference: Predictions
    truth: NDArray[Any] | None
    goals: Goals
    protocol: measure.Protocol
    threads: int
    licence: str
    origin: Mapping[str, Any]
    examples: Mapping[str, bytes]
    readme: str
    material: Material
    tokenizer: Path | None = None
    stream: Path | None = None
    hop: int | None = None
    real: bool = True
    ours: bool = True
    runtimes: tuple[str, ...] = ()
    tune_seconds: float = 0.0

    @property
    def output(self) -> OutputSpec:
        """What the model's one output means."""
        return self.variants[0].output

    @property
    def reference_count(self) -> int:
        """How many samples a bundle carries with their outputs."""
        return max(1, min(_REFERENCE_SAMPLES, _MOST_REFERENCE_BYTES // self.reference.outputs[0].nbytes))
