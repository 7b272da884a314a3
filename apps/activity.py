"""Tells what somebody does from accelerometer and gyroscope: rows of numbers in CSV files or on standard input."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from apps.runtime import Bundle, BundleError
from apps.streaming import Rule, Stream, Table
from apps.streaming.cli import decision_arguments, decision_rule, each, follow
from apps.streaming.view import view_of

# An activity lasts: a second is averaged, two windows agree, and only a change is told.
RULE = Rule(smooth_s=1.0, threshold=0.6, hold=2, rest_s=0.0)


def main(arguments: list[str]) -> int:
    """``mst-edge app activity BUNDLE FILE... | -``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mst-edge app activity", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle whose student reads rows of sensor values")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="CSV files; - is standard input")
    parser.add_argument("--skip-columns", type=int, default=0, metavar="N", help="on the left, a time stamp say")
    parser.add_argument("--rate", type=int, help="rows per second, where the bundle does not say")
    decision_arguments(parser, RULE)
    chosen = parser.parse_intermixed_args(arguments)
    rule = decision_rule(chosen, RULE)
    with Bundle.open(chosen.bundle) as bundle, view_of(bundle, as_json=chosen.json) as view:
        spec = bundle.manifest.input
        if spec.kind != "sequence":
            raise BundleError(f"its student reads {spec.kind}, no rows of sensor values", where=chosen.bundle)
        rate_hz = _rate(spec.sample_rate_hz, chosen.rate)
        rule.by_label(bundle.manifest.labels)
        bundle.load()
        for note in bundle.notes:
            view.note(note)

        def watch(file: Path) -> None:
            with _lines(file) as lines:
                source = Table(str(file), lines, spec.sizes[1], chosen.skip_columns, rate_hz)
                follow(source, Stream(bundle, rate_hz, rule=rule), view)
                if source.skipped:
                    view.note(f"{file}: {source.skipped} lines were no rows of numbers")

        return each(chosen.files, watch, view)


def _rate(of_bundle: int | None, said: int | None) -> int:
    """Rows per second: sensors are not resampled, so it must be what the student was trained at."""
    if of_bundle is None and said is None:
        raise BundleError("the bundle does not say how many rows a second has", where="--rate", fix="give it")
    if None not in (of_bundle, said) and of_bundle != said:
        raise BundleError(f"the student reads {of_bundle} rows per second, not {said}", where="--rate")
    return int(said or of_bundle or 0)


@contextlib.contextmanager
def _lines(file: Path) -> Iterator[Iterator[str]]:
    if str(file) == "-":
        yield iter(sys.stdin)
        return
    try:
        opened = file.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise BundleError("no such file" if not file.exists() else str(error), where=file) from None
    with opened:
        yield opened
