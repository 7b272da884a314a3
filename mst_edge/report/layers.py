"""What int8 does to each layer: as a table, a chart, and lines for the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mst_edge.report import svg

HEADINGS = (
    "layer",
    "kind",
    "SQNR of the output, this layer alone",
    "of the layer itself",
    "with it and all above in float",
    "range",
    "saturated",
    "range used",
)


def sensitivity_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of a table, in the order of the headings."""
    return [
        (
            row["name"],
            row["op"],
            f"{row['alone_db']:.1f} dB",
            f"{row['own_db']:.1f} dB",
            f"{row['without_db']:.1f} dB",
            f"{row['low']:.3g} to {row['high']:.3g}",
            f"{row['saturated']:.2%}",
            f"{row['used']:.0%}",
        )
        for row in found["layers"]
    ]


def sensitivity_chart(found: Mapping[str, Any]) -> str:
    """SQNR of the network's output by the number of most sensitive layers that stay in float."""
    curve = [found["all_db"], *(row["without_db"] for row in found["layers"])]
    # All layers but a few in float say nothing about int8, and their decibels flatten the rest.
    shown = curve[: max(2, len(curve) * 3 // 4)]
    return svg.lines(
        {"int8": list(enumerate(shown))},
        x_label="most sensitive layers left in float",
        y_label="SQNR of the output, dB",
        styles={"int8": 0},
        show=lambda db: f"{db:.0f} dB",
        limit=found["enough_db"],
    )


def sensitivity_advice(found: Mapping[str, Any]) -> str:
    """What to make of it, in a sentence."""
    count, before = len(found["exclude"]), f"{found['all_db']:.1f} dB"
    if not count:
        return f"int8 leaves {before} of signal to noise in the output: no layer needs to stay in float."
    after = found["layers"][count - 1]["without_db"]
    layers = "the most sensitive layer" if count == 1 else f"the {count} most sensitive layers"
    return f"int8 leaves {before} of signal to noise in the output; with {layers} in float it is {after:.1f} dB."


def recipe_lines(found: Mapping[str, Any]) -> str:
    """The list of layers to leave in float, as the recipe takes it."""
    return f"quantize:\n  exclude: [{', '.join(found['exclude'])}]"


def sensitivity_markdown(found: Mapping[str, Any]) -> str:
    """The whole report."""
    table = [HEADINGS, tuple("---" for _ in HEADINGS), *sensitivity_rows(found)]
    lines = [
        "# What int8 does to each layer",
        "",
        f"{sensitivity_advice(found)} Judged on {found['samples']} samples that did not calibrate.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in table),
        "",
    ]
    if found["exclude"]:
        flags = " ".join(f"--exclude {name}" for name in found["exclude"])
        lines += ["For the recipe:", "", *(f"    {line}" for line in recipe_lines(found).splitlines()), ""]
        lines += ["For the command line:", "", f"    {flags}", ""]
    return "\n".join(lines)


def mixed_advice(target: str, facts: Mapping[str, Any]) -> str:
    """What the search for mixed precision chose on a target, in a sentence or two."""
    chosen, build = facts["chosen"], facts["chosen"]["build"]
    count = len(chosen["in_float"])
    where = f"all {facts['layers']} layers in int8" if not count else f"{count} of {facts['layers']} layers in float"
    quality = "meets the accuracy goal" if chosen["passes"] else "misses the accuracy goal by least"
    return (
        f"{target}: {where}, ranges by {chosen['calibrator']}; {quality} on validation samples with {build['build']}, "
        f"{build['ratio']:.2f} x the median latency of the float network. "
        f"The search took {facts['seconds']:.0f} s and ended because {facts['ended']}."
    )


def numerics_verdicts(found: Mapping[str, Any]) -> list[str]:
    """A sentence per build: which layer diverges first."""
    return [
        f"{build}: every layer computes what {found['held_to'][build]} does."
        if layer is None
        else f"{build}: {layer} is the first layer that diverges from {found['held_to'][build]}."
        for build, layer in found["diverges"].items()
    ]


def numerics_table(found: Mapping[str, Any]) -> list[list[str]]:
    """Headings, then a row per layer: against torch in fp32 and, where there is such a thing, against torch rounded."""
    exact, rounded = list(found["layers"][0]["exact_db"]), list(found["layers"][0]["rounded_db"])
    rows = [
        ["layer", "kind", *(f"{name}, dB" for name in exact), *(f"{name} to torch rounded, dB" for name in rounded)]
    ]
    for row in found["layers"]:
        values = [*(row["exact_db"][name] for name in exact), *(row["rounded_db"][name] for name in rounded)]
        rows.append([row["name"], row["op"], *(f"{value:.1f}" for value in values)])
    return rows


def numerics_markdown(found: Mapping[str, Any]) -> str:
    """The whole report."""
    head, *rows = numerics_table(found)
    notes = [f"{name} cannot be rounded in torch: {why}." for name, why in found["notes"].items()]
    lines = [
        "# Builds and torch, layer by layer",
        "",
        f"Signal to quantization noise of every layer's output on {found['samples']} validation samples, against torch "
        "in fp32; of int8 builds also against torch with the same rounding.",
        "",
        *(f"- {said}" for said in [*numerics_verdicts(found), *notes]),
        "",
        *(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]),
        "",
    ]
    return "\n".join(lines)
