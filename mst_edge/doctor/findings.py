"""What a check finds, and what a check is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from targets.proof import Proof, prove
from targets.spec import Probe
from targets.target import get_target

State = Literal["works", "note", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: of what was looked at, unique within its check.
        state: ``missing`` is what nobody installed; ``broken`` is there and does not do what it should.
        fix: the command, or what else mends it.
        facts: the same for machines.
    """

    name: str
    state: State
    text: str
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ward:
    """What checks are asked about, and what they share: every runtime is probed and proved once.

    Attributes:
        asked: whether a person named the targets.
    """

    targets: tuple[str, ...]
    asked: bool = True

    @functools.cache  # noqa: B019  lives as long as one report
    def probe(self, target: str, runtime: str) -> Probe:
        """What a runtime found out about itself."""
        return get_target(target).runtime(runtime).probe()

    @functools.cache  # noqa: B019
    def proofs(self, target: str, runtime: str) -> tuple[Proof, ...]:
        """Inferences in every precision that the runtime claims here; none where it is not available."""
        return tuple(prove(target, runtime)) if self.probe(target, runtime).available else ()


@dataclass(frozen=True)
class Check:
    """One part of the report: ``look`` finds."""

    name: str
    title: str
    look: Callable[[Ward], Iterator[Finding]]
