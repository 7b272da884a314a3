"""Targets that are devices of their own: what is prepared here is built, measured and judged there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from quantize.variant import Variant
from targets.spec import Build
from targets.target import Skipped, Target


class BoardTarget(Target):
    """A device that this machine can only prepare for; subclasses write ``prepare``, ``carried`` and ``guide``."""

    runtime_classes: ClassVar = {}

    @abstractmethod
    def prepare(self, variants: list[Variant], folder: Path) -> Iterator[Build | Skipped]:
        """A build per variant that the device takes: the model as its compiler reads it, in ``folder/<id>``."""

    @abstractmethod
    def carried(self) -> Mapping[str, Path | str]:
        """What builds, checks and measures on the device: a path in the bundle to a file, or to its text."""

    @abstractmethod
    def guide(self) -> str:
        """How to go on there, for the bundle's page (Markdown)."""
