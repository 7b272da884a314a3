"""Sorts texts by what a student says of them: lines, tables or JSON lines in, a category or a number for each out."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from apps.runtime import Bundle, BundleError, memory_mb
from apps.runtime.lines import FORMATS, Line, format_of, open_texts, read_lines
from apps.runtime.terminal import printable
from apps.runtime.tokenizer import AnyTokenizer

from .verdicts import SHOWN, UNSURE, Judge, Verdict, judge_of

TOO_LONG, EMPTY = "longer than what the student reads", "empty"


@dataclass(frozen=True)
class Judged:
    """A text and what is said of it."""

    source: str
    line: Line
    odd: tuple[str, ...]
    verdict: Verdict

    @property
    def category(self) -> str:
        return self.verdict.category

    def record(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "file": self.source,
            "line": self.line.number,
            "category": self.category,
            **self.verdict.record,
            "odd": list(self.odd),
            "text": self.line.text,
        }

    def shown(self, width: int) -> str:
        """For a person: nothing in it can reach a terminal but as a character."""
        place = f"{printable(self.source, 40)}:{self.line.number}"
        return f"{place:20} {self.verdict.said}  {self.category:{width}}  {printable(self.line.text, SHOWN)}"


@dataclass
class Summary:
    """Counts over all texts."""

    categories: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    sums: dict[str, float] = field(default_factory=dict)
    read: int = 0
    start_s: float = field(default_factory=time.perf_counter)

    def add(self, judged: Judged) -> None:
        self.categories[judged.category] += 1
        self.odd.update(judged.odd)
        if judged.category != UNSURE:  # what is said of no text says nothing of texts
            self.read += 1
            for name, value in judged.verdict.values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    def text(self) -> str:
        """For a person."""
        total, seconds = self.categories.total(), time.perf_counter() - self.start_s
        rows = [f"{count:8} {count / total:6.1%}  {name}" for name, count in self.categories.most_common() if name]
        rows += [f"{value / self.read:8.3f} mean {printable(name)}" for name, value in self.sums.items()]
        rows += [f"{count:8} {count / total:6.1%}  of them {what}" for what, count in self.odd.most_common()]
        held = memory_mb().get("peak", 0.0)
        return "\n".join([*rows, f"{total:8} texts, {total / seconds:.0f} per second, {held:.0f} MB at most"])


class Folder:
    """A file of JSON lines per category, in a folder; lines are added to what is there."""

    def __init__(self, path: Path, labels: Sequence[str], stack: ExitStack) -> None:
        if "" in labels:
            raise BundleError("its numbers have no classes to sort texts by", where="--route", fix="leave it out")
        self._path = path
        self._names = {UNSURE: "unsure"}
        for label in labels:
            name = re.sub(r"[^\w-]+", "_", label)
            self._names[label] = name if name not in self._names.values() else f"{name}_{len(self._names)}"
        self._files: dict[str, TextIO] = {}
        self._stack = stack

    def add(self, judged: Judged) -> None:
        """Appends one text.

        Raises:
            BundleError: the folder cannot be written to.
        """
        try:
            if judged.category not in self._files:
                self._path.mkdir(parents=True, exist_ok=True)
                file = (self._path / f"{self._names[judged.category]}.jsonl").open("a", encoding="ascii")
                self._files[judged.category] = self._stack.enter_context(file)
            print(json.dumps(judged.record()), file=self._files[judged.category], flush=True)
        except OSError as error:
            raise BundleError(f"cannot be written to ({error.strerror or error})", where=self._path) from None


def main(arguments: list[str]) -> int:
    """``mst-edge app triage BUNDLE FILE...``; returns the exit code, 2 where a file could not be read."""
    chosen = _parser().parse_intermixed_args(arguments)
    if chosen.batch < 1:
        raise BundleError(f"{chosen.batch} texts at once are none", where="--batch", fix="give 1 or more")
    with ExitStack() as stack:
        bundle = stack.enter_context(Bundle.open(chosen.bundle))
        tokenizer, judge = bundle.require_text(), judge_of(bundle.manifest, chosen.min_confidence, chosen.threshold)
        folder = Folder(chosen.route, judge.categories, stack) if chosen.route is not None else None
        bundle.load()
        for note in bundle.notes:
            print(f"note: {note}", file=sys.stderr)
        summary, failures = Summary(), list[BundleError]()
        width = max(map(len, judge.categories))
        try:
            texts = _texts(chosen, failures)
            while batch := list(islice(texts, chosen.batch)):
                for judged in judge_all(bundle, tokenizer, judge, batch):
                    summary.add(judged)
                    if not chosen.quiet:
                        print(json.dumps(judged.record()) if chosen.json else judged.shown(width), flush=True)
                    if folder is not None:
                        folder.add(judged)
        finally:  # also where someone stops a stream
            if summary.categories:
                print(summary.text(), file=sys.stderr)
    return 2 if failures else 0


def judge_all(
    bundle: Bundle, tokenizer: AnyTokenizer, judge: Judge, batch: Sequence[tuple[str, Line]]
) -> Iterator[Judged]:
    """What is said of each text of a batch. Nothing to read (padding alone) is ``UNSURE``, whatever is said."""
    encoded = [tokenizer.encode(line.text) for _, line in batch]
    outputs = bundle.outputs(np.stack([ids for ids, _ in encoded]))
    for (source, line), (ids, cut), output in zip(batch, encoded, outputs, strict=True):
        empty = tokenizer.says_nothing(ids)
        odd = (*line.odd, *((TOO_LONG,) if cut else ()), *((EMPTY,) if empty else ()))
        yield Judged(source, line, odd, judge.verdict(output, empty=empty))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mst-edge app triage", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle whose student reads text")
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="texts, tables or JSON lines, also .gz; - is the input"
    )
    parser.add_argument("--text", action="append", default=[], help="a text; may be repeated")
    parser.add_argument("--format", choices=FORMATS, help="of all files, instead of what their names tell")
    parser.add_argument("--column", help="of tables and JSON lines: where the text is, by name, or by number from 1")
    parser.add_argument("--min-confidence", type=float, default=0.0, help="say '?' below this (0 to 1)")
    parser.add_argument(
        "--threshold", action="append", default=[], metavar="NAME=VALUE", help="the same, of one category"
    )
    parser.add_argument("--batch", type=int, default=1, help="texts at once; a stream waits for so many")
    parser.add_argument("--json", action="store_true", help="one JSON object per text")
    parser.add_argument("--quiet", action="store_true", help="the summary alone")
    parser.add_argument(
        "--route", type=Path, metavar="DIR", help="add texts to a file of JSON lines per category there"
    )
    return parser


def _texts(chosen: argparse.Namespace, failures: list[BundleError]) -> Iterator[tuple[str, Line]]:
    """Texts with their source; a file that cannot be read is told, added to ``failures``, and the others go on."""
    for number, text in enumerate(chosen.text, start=1):
        # Half surrogates are what Python makes of an argument's bytes that are no UTF-8.
        yield "--text", Line(number, text.encode(errors="replace").decode())
    for name in chosen.files or ([] if chosen.text else ["-"]):
        try:
            yield from _of_file(name, chosen.format, chosen.column)
        except BundleError as error:
            failures.append(error)
            print(f"error: {printable(str(error))}", file=sys.stderr)


def _of_file(name: str, form: str | None, column: str | None) -> Iterator[tuple[str, Line]]:
    if name == "-":
        for line in read_lines(sys.stdin.buffer, "standard input", form or "lines", column):
            yield "-", line
        return
    with open_texts(Path(name)) as file:
        for line in read_lines(file, name, form or format_of(Path(name)), column):
            yield name, line
