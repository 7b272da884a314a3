"""Targets that are devices of their own: what is prepared here is built, measured and judged there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from quantize.variant import Variant
from targets.service import Needs
from targets.spec import Build
from targets.target import Skipped, Target


class BoardTarget(Target):
    """A device that this machine can only prepare for; subclasses write ``prepare``, ``carried`` and ``guide``.

    Attributes:
        steps: what is done there, in order: a name, and a Python script of the bundle with its arguments, which leaves
            alone what it did before. It ends with exit code 1 where a model failed, with another where it could not go
            on.
        needs: what inference takes there, for the service of a bundle's app.
        finds: paths in the bundle, beside ``result.json`` and ``outputs/``, of what steps leave for each build.
    """

    runtime_classes: ClassVar = {}
    steps: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    finds: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[Needs] = Needs()

    @abstractmethod
    def prepare(self, variants: list[Variant], folder: Path) -> Iterator[Build | Skipped]:
        """A build per variant that the device takes: the model as its compiler reads it, in ``folder/<id>``."""

    @abstractmethod
    def carried(self) -> Mapping[str, Path | str]:
        """What builds, checks and measures on the device: a path in the bundle to a file, or to its text."""

    def forecasts(self, builds: Sequence[Build], shape: Sequence[int]) -> Mapping[str, Any]:
        """What can be said of the device before anything runs there: a name to a JSON value, also ``NAME.json`` in the
        bundle. ``shape`` is that of one sample with its batch axis."""
        return {}

    @abstractmethod
    def guide(self) -> str:
        """How to go on there, for the bundle's page (Markdown)."""
