"""The doctor's report, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from mst_edge.core.provenance import provenance
from mst_edge.doctor.checks import CHECKS
from mst_edge.doctor.findings import Check, Finding, Ward
from targets.target import get_target, target_names

_STYLES = {"works": "green", "note": "cyan", "missing": "yellow", "broken": "bold red"}


def examine(targets: Sequence[str], *, as_json: bool) -> bool:
    """Runs every check and prints what it finds; returns whether nothing is broken.

    Args:
        targets: to look at; all that are known where none is named.

    Raises:
        UserError: an unknown target.
    """
    for name in targets:
        get_target(name)
    ward = Ward(tuple(targets or target_names()), asked=bool(targets))
    console = Console(quiet=as_json)
    found = [(check, _show(check, list(check.look(ward)), console)) for check in CHECKS]
    healthy = not any(finding.state == "broken" for _, findings in found for finding in findings)
    if as_json:
        typer.echo(json.dumps({"healthy": healthy, "checks": _records(found), "provenance": provenance()}))
    return healthy


def _show(check: Check, findings: list[Finding], console: Console) -> list[Finding]:
    console.print(f"[bold]{check.title}[/bold]")
    width = max((len(finding.name) for finding in findings), default=0)
    for finding in findings:
        line = Text.assemble("  ", (f"{finding.state:8}", _STYLES[finding.state]), f"{finding.name:{width}}  ")
        console.print(line.append(finding.text), soft_wrap=True, highlight=False)
        if finding.fix:
            console.print(Text(f"{'':{width + 12}}fix: {finding.fix}"), soft_wrap=True)
    return findings


def _records(found: Sequence[tuple[Check, Sequence[Finding]]]) -> list[dict[str, Any]]:
    return [
        {"name": check.name, "title": check.title, "findings": [asdict(finding) for finding in findings]}
        for check, findings in found
    ]
