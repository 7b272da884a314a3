"""What ``python run.py FILE...`` in a bundle does: answers for files, and a self-test."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from .answers import keep_label_map
from .bundle import Bundle, memory_mb, warn
from .errors import BundleError
from .inputs import Sample, read_text

# A file or text by name, and what reads the samples in it, each with a name of its own.
Source = tuple[str, Callable[[], Iterable[tuple[str, Sample]]]]


def main(folder: Path, arguments: list[str] | None = None) -> int:
    """Runs the bundle in ``folder``; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="run.py", description="Answers for files, with the model in this bundle.")
    parser.add_argument("files", nargs="*", type=Path, help="wav, picture, text or .npy files")
    parser.add_argument("--text", action="append", default=[], help="a text to label; may be repeated")
    parser.add_argument("--lines", action="store_true", help="label every line of the text files by itself")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="write label maps there as png (segmentation)")
    parser.add_argument("--self-test", action="store_true", help="run the reference inputs and compare")
    parser.add_argument("--runtime", help="inference runtime to use instead of the preferred one")
    chosen = parser.parse_intermixed_args(arguments)
    if not (chosen.files or chosen.text or chosen.self_test):
        parser.error("give at least one file, or --text, or --self-test")
    try:
        with Bundle.open(folder) as bundle:
            bundle.load(chosen.runtime)
            warn(bundle.notes)
            if chosen.self_test:
                difference, drift = bundle.prove()
                print(f"self-test passed: {bundle.build.id}, largest difference {difference:.3g}")
                print(drift.text())
            for _, samples in sources(bundle, chosen.files, chosen.text, by_line=chosen.lines):
                for name, sample in samples():
                    _answer(bundle, name, sample, chosen.maps, as_json=chosen.json)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def sources(bundle: Bundle, files: Sequence[Path], texts: Sequence[str], *, by_line: bool) -> Iterator[Source]:
    """What there is to label: files, then texts. Reading one may raise BundleError; the others are not hurt.

    Args:
        by_line: every line of a file that is not empty is a sample of its own.
    """
    for file in files:
        yield str(file), partial(_lines if by_line else _whole, bundle, file)
    for text in texts:
        name = repr(text if len(text) <= 40 else f"{text[:37]}...")
        yield name, partial(_said, bundle, text, name)


def _whole(bundle: Bundle, file: Path) -> Iterator[tuple[str, Sample]]:
    yield str(file), bundle.read(file)


def _said(bundle: Bundle, text: str, name: str) -> Iterator[tuple[str, Sample]]:
    yield name, bundle.encode(text, name)


def _lines(bundle: Bundle, file: Path) -> Iterator[tuple[str, Sample]]:
    bundle.require_text()
    text, notes = read_text(file)
    warn(list(notes))
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            name = f"{file}:{number}"
            yield name, bundle.encode(line, name)


def _answer(bundle: Bundle, name: str, sample: Sample, maps: Path | None, *, as_json: bool) -> None:
    warn(list(sample.notes))
    said = bundle.answer(sample.array)
    if as_json:
        record = {
            "file": name,
            **said.record(),
            "latency_ms": round(said.latency_ms, 4),
            "build": bundle.build.id,
            "memory_mb": {name: round(value, 1) for name, value in memory_mb().items()},
        }
        print(json.dumps(record))
    else:
        print(f"{name}\t{said.text()}\t{said.latency_ms:.2f} ms")
    if maps is not None:
        keep_label_map(said, maps, Path(name))
