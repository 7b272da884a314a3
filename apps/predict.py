"""Answers for any files with any bundle, as a table or as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from apps.runtime import Answer, Bundle, BundleError, memory_mb, read_sample
from apps.runtime.answers import keep_label_map

_SUFFIXES = {
    "audio": {".wav", ".flac", ".ogg", ".mp3", ".npy"},
    "image": {".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp", ".npy"},
}


def main(arguments: list[str]) -> int:
    """``mst-edge app predict BUNDLE FILE...``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mst-edge app predict", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--runtime", help="inference runtime instead of the preferred one")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="write label maps there as png (segmentation)")
    chosen = parser.parse_args(arguments)
    return predict_files(chosen.bundle, chosen.files, runtime=chosen.runtime, maps=chosen.maps, as_json=chosen.json)


def predict_files(
    bundle_path: Path,
    paths: Iterable[Path],
    *,
    runtime: str | None = None,
    maps: Path | None = None,
    as_json: bool = False,
) -> int:
    """Prints one line per file; label maps are written into the folder ``maps`` where one is given.

    A file that cannot be read is told on standard error and the others go on.

    Returns:
        0, or 2 where at least one file could not be read.
    """
    failed = 0
    with Bundle.open(bundle_path) as bundle:
        bundle.load(runtime)
        for note in bundle.notes:
            print(f"note: {note}", file=sys.stderr)
        files = list(_expand(paths, _SUFFIXES.get(bundle.manifest.input.kind, {".npy"})))
        width = max((len(str(file)) for file in files), default=0)
        for file in files:
            try:
                sample = read_sample(file, bundle.manifest.input)
            except BundleError as error:
                failed += 1
                print(f"error: {error}", file=sys.stderr)
                continue
            for note in sample.notes:
                print(f"note: {note}", file=sys.stderr)
            said = bundle.answer(sample.array)
            print(_json(file, said, bundle) if as_json else _line(file, said, width), flush=True)
            if maps is not None:
                keep_label_map(said, maps, file)
    return 2 if failed else 0


def _expand(paths: Iterable[Path], suffixes: set[str]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes)
            if not found:
                raise BundleError(f"holds no file of type {', '.join(sorted(suffixes))}", where=path)
            yield from found
        else:
            yield path


def _line(file: Path, said: Answer, width: int) -> str:
    return f"{file!s:{width}}  {said.latency_ms:8.3f} ms  {said.text()}"


def _json(file: Path, said: Answer, bundle: Bundle) -> str:
    record = {
        "file": str(file),
        **said.record(),
        "latency_ms": round(said.latency_ms, 4),
        "build": bundle.build.id,
        "memory_mb": {name: round(value, 1) for name, value in memory_mb().items()},
    }
    return json.dumps(record)
