"""What ``python run.py FILE...`` in a bundle does: answers for files, and a self-test."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .answers import keep_label_map
from .bundle import Bundle, memory_mb, warn
from .errors import BundleError
from .inputs import read_sample


def main(folder: Path, arguments: list[str] | None = None) -> int:
    """Runs the bundle in ``folder``; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="run.py", description="Answers for files, with the model in this bundle.")
    parser.add_argument("files", nargs="*", type=Path, help="wav, picture or .npy files")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="write label maps there as png (segmentation)")
    parser.add_argument("--self-test", action="store_true", help="run the reference inputs and compare")
    parser.add_argument("--runtime", help="inference runtime to use instead of the preferred one")
    chosen = parser.parse_args(arguments)
    if not chosen.files and not chosen.self_test:
        parser.error("give at least one file, or --self-test")
    try:
        with Bundle.open(folder) as bundle:
            bundle.load(chosen.runtime)
            warn(bundle.notes)
            if chosen.self_test:
                difference = bundle.self_test()
                print(f"self-test passed: {bundle.build.id}, largest difference {difference:.3g}")
            for file in chosen.files:
                _answer(bundle, file, chosen.maps, as_json=chosen.json)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _answer(bundle: Bundle, file: Path, maps: Path | None, *, as_json: bool) -> None:
    sample = read_sample(file, bundle.manifest.input)
    warn(list(sample.notes))
    said = bundle.answer(sample.array)
    if as_json:
        record = {
            "file": str(file),
            **said.record(),
            "latency_ms": round(said.latency_ms, 4),
            "build": bundle.build.id,
            "memory_mb": {name: round(value, 1) for name, value in memory_mb().items()},
        }
        print(json.dumps(record))
    else:
        print(f"{file}\t{said.text()}\t{said.latency_ms:.2f} ms")
    if maps is not None:
        keep_label_map(said, maps, file)
