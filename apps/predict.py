"""Answers for any files with any bundle, as a table or as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from apps.runtime import Answer, Bundle, BundleError, Sample, memory_mb
from apps.runtime.answers import keep_label_map
from apps.runtime.clips import VIDEOS
from apps.runtime.main import Source, sources

_SUFFIXES = {
    "audio": {".wav", ".flac", ".ogg", ".mp3", ".npy"},
    "image": {".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp", ".npy"},
    "text": {".txt"},
    "video": {*VIDEOS, ".npy"},
}


def main(arguments: list[str]) -> int:
    """``mst-edge app predict BUNDLE FILE...``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mst-edge app predict", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE")
    parser.add_argument("--text", action="append", default=[], help="a text to label; may be repeated")
    parser.add_argument("--lines", action="store_true", help="label every line of the text files by itself")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--runtime", help="inference runtime instead of the preferred one")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="write label maps there as png (segmentation)")
    chosen = parser.parse_intermixed_args(arguments)
    return predict_files(
        chosen.bundle,
        chosen.files,
        texts=chosen.text,
        by_line=chosen.lines,
        runtime=chosen.runtime,
        maps=chosen.maps,
        as_json=chosen.json,
    )


def predict_files(
    bundle_path: Path,
    paths: Iterable[Path],
    *,
    texts: Sequence[str] = (),
    by_line: bool = False,
    runtime: str | None = None,
    maps: Path | None = None,
    as_json: bool = False,
) -> int:
    """Prints one line per file and text; label maps are written into the folder ``maps`` where one is given.

    A file that cannot be read is told on standard error and the others go on.

    Args:
        by_line: every line of a text file is a sample of its own.

    Returns:
        0, or 2 where at least one file could not be read.

    Raises:
        BundleError: no bundle, or there is nothing to answer.
    """
    failures: list[BundleError] = []
    with Bundle.open(bundle_path) as bundle:
        bundle.load(runtime)
        for note in bundle.notes:
            print(f"note: {note}", file=sys.stderr)
        files = list(_expand(paths, _SUFFIXES.get(bundle.manifest.input.kind, {".npy"})))
        if not (files or texts):
            raise BundleError("nothing to answer", where=bundle_path, fix="give files, or --text")
        found = list(sources(bundle, files, texts, by_line=by_line))
        width = max(len(name) for name, _ in found)
        for name, sample in _readable(found, failures):
            for note in sample.notes:
                print(f"note: {note}", file=sys.stderr)
            said = bundle.answer(sample.array)
            print(_json(name, said, bundle) if as_json else _line(name, said, width), flush=True)
            if maps is not None:
                keep_label_map(said, maps, Path(name))
    return 2 if failures else 0


def _readable(found: Iterable[Source], failures: list[BundleError]) -> Iterator[tuple[str, Sample]]:
    """Samples by name; what cannot be read is told and added to ``failures``."""
    for _, samples in found:
        try:
            yield from samples()
        except BundleError as error:
            failures.append(error)
            print(f"error: {error}", file=sys.stderr)


def _expand(paths: Iterable[Path], suffixes: set[str]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes)
            if not found:
                raise BundleError(f"holds no file of type {', '.join(sorted(suffixes))}", where=path)
            yield from found
        else:
            yield path


def _line(name: str, said: Answer, width: int) -> str:
    return f"{name:{width}}  {said.latency_ms:8.3f} ms  {said.text()}"


def _json(name: str, said: Answer, bundle: Bundle) -> str:
    record = {
        "file": name,
        **said.record(),
        "latency_ms": round(said.latency_ms, 4),
        "build": bundle.build.id,
        "memory_mb": {name: round(value, 1) for name, value in memory_mb().items()},
    }
    return json.dumps(record)
