"""What each scheme of quantization is, and which runtime of which target runs what it makes.

    python -m mst_edge.capabilities    # the table of docs/quantization.md

What a runtime can run in principle is written in its class; what it runs on a machine, ``mst-edge doctor`` proves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import typer

from quantize.schemes.base import SCHEMES
from quantize.variant import FLOAT
from targets.runtimes.base import Runtime
from targets.target import get_target, target_names

Place = tuple[str, str]  # a target and one of its runtimes


@dataclass(frozen=True)
class Capability:
    """One scheme, or the fp32 graph that all of them start from.

    Attributes:
        precision: that of the variant.
        backend: the library that makes it.
        modules: importable names that making it takes.
        runs: by target and runtime, the precisions in which it runs there, on some machine.
        summary: what it does.
    """

    name: str
    precision: str
    backend: str
    modules: tuple[str, ...]
    runs: Mapping[Place, tuple[str, ...]]
    summary: str


def capabilities(schemes: Sequence[str], targets: Sequence[str]) -> list[Capability]:
    """A row per scheme, fp32 first."""
    runtimes = dict(_runtimes(targets))

    def runs(precision: str, program: str) -> dict[Place, tuple[str, ...]]:
        return {
            place: runtime.ways(precision) if not runtime.programs or program in runtime.programs else ()
            for place, runtime in runtimes.items()
        }

    summary = "what training leaves, exported; the rest start here"
    exact = Capability("fp32", "fp32", "torch", (), runs("fp32", FLOAT), summary)
    made = (SCHEMES.get(name) for name in schemes)
    rows = (
        Capability(s.name, s.precision, s.backend, s.modules, runs(s.precision, s.program), s.summary) for s in made
    )
    return [exact, *rows]


def _runtimes(targets: Sequence[str]) -> Iterator[tuple[Place, type[Runtime]]]:
    for name in targets:
        target = get_target(name)
        for runtime in target.runtime_classes:
            yield (name, runtime), type(target.runtime(runtime))


def markdown() -> str:
    """The table of what is built in, whatever else is installed."""
    schemes = [name for name in SCHEMES.names() if SCHEMES.get(name).__module__.startswith("quantize.schemes.")]
    targets = [name for name in target_names() if type(get_target(name)).__module__.startswith("targets.")]
    rows = capabilities(schemes, targets)
    places = list(rows[0].runs)
    columns = [f"{runtime} on {target}" for target, runtime in places]
    heads = ["scheme", "made by", "arithmetic", *columns, "what it does"]
    lines = [heads, ["---" for _ in heads]]
    for row in rows:
        cells = [", ".join(row.runs[place]) or "no" for place in places]
        lines.append([f"`{row.name}`", row.backend, row.precision, *cells, row.summary])
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([*table, "", *_conditions(targets)])


def _conditions(targets: Sequence[str]) -> Iterator[str]:
    for (target, name), runtime in _runtimes(targets):
        by_features: dict[tuple[str, ...], list[str]] = {}
        for precision, features in runtime.supports.items():
            if features:
                by_features.setdefault(features, []).append(precision)
        for features, precisions in by_features.items():
            has = f"where the {runtime.device} has {' or '.join(features)}"
            yield f"On {target}, {name} runs {', '.join(precisions)} {has}."


if __name__ == "__main__":
    typer.echo(markdown())
