"""Many texts out of one file or stream, one by one: lines, tables (CSV, TSV) and JSON lines. Memory stays small."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from .errors import BundleError
from .terminal import printable

FORMATS = ("lines", "csv", "tsv", "jsonl")
NOT_UTF8, CUT, NO_TEXT = "not UTF-8 throughout", "longer than 64 KB", "no text"
_FORMAT_OF = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_LONGEST = 1 << 16  # bytes of a line that are looked at
_USUAL = ("text", "tweet_text", "tweet", "message", "caption", "transcript")


@dataclass(frozen=True)
class Line:
    """One text.

    Attributes:
        number: of the line that it starts in, from 1.
        odd: what had to be done to it, or is wrong with it: ``NOT_UTF8`` (what is not was replaced by U+FFFD), ``CUT``,
            ``NO_TEXT`` (a row without the column, a line that is no JSON object with a text; the text is empty then).
    """

    number: int
    text: str
    odd: tuple[str, ...] = ()


def format_of(path: Path) -> str:
    """The format that a file's name tells, ``.gz`` aside; lines where it tells none."""
    name = Path(path.stem) if path.suffix.lower() == ".gz" else path
    return _FORMAT_OF.get(name.suffix.lower(), "lines")


def open_texts(path: Path) -> BinaryIO:
    """A file for ``read_lines``, gzipped or not.

    Raises:
        BundleError: it cannot be read, or is no text in UTF-8.
    """
    try:
        file = gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb")
    except OSError as error:
        raise BundleError("no such file" if not path.exists() else f"cannot be read ({error})", where=path) from None
    try:
        start = file.peek(2)
        if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
            raise BundleError("is not a text in UTF-8", where=path, fix="save it as plain text, encoded in UTF-8")
    except BaseException as error:
        file.close()
        if isinstance(error, (OSError, EOFError, zlib.error)):
            raise BundleError(f"cannot be read ({error})", where=path) from None
        raise
    return file  # type: ignore[return-value]  # a GzipFile reads as a file does


def read_lines(file: BinaryIO, name: object, form: str, column: str | None = None) -> Iterator[Line]:
    """The texts in ``file``, one for every line, row or object in it, as they come.

    Lines end with LF or CR LF and with nothing else. Of a line 64 KB are looked at.

    Args:
        name: what messages call the file.
        form: one of ``FORMATS``.
        column: of a table, the name in its first row, or a number from 1 where the first row is a text, too; of JSON
            lines, the key. By default the only column, or the only one with a usual name, such as ``text``.

    Raises:
        BundleError: the stream breaks off, the table has no such column, or a quote in it has no end.
    """
    try:
        yield from _READERS[form](file, name, column)
    except (OSError, EOFError, zlib.error) as error:
        raise BundleError(f"cannot be read to its end ({error})", where=name) from None


def _lines(file: BinaryIO, name: object, column: str | None) -> Iterator[Line]:
    """Lines as they are; the first may start with a byte order mark."""
    if column is not None:
        raise BundleError("only tables and JSON lines have columns", where=name, fix="--format csv, tsv or jsonl")
    yield from _decoded(file)


def _decoded(file: BinaryIO) -> Iterator[Line]:
    number = 0
    while raw := file.readline(_LONGEST):
        number += 1
        cut = not raw.endswith(b"\n") and _skip_rest(file)
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="ignore" if cut else "replace")
        # A character that was cut in two is no fault of the text's.
        broken = not cut and "\ufffd" in text and "\ufffd".encode() not in raw
        yield Line(number, text, (*((CUT,) if cut else ()), *((NOT_UTF8,) if broken else ())))


def _skip_rest(file: BinaryIO) -> bool:
    """Reads to the line's end; whether there was more than a newline."""
    more = False
    while rest := file.readline(_LONGEST):
        more = more or rest not in (b"\n", b"\r\n")
        if rest.endswith(b"\n"):
            break
    return more


def _table(delimiter: str, quoting: Literal[0, 3], file: BinaryIO, name: object, column: str | None) -> Iterator[Line]:
    odd: list[str] = []

    def physical() -> Iterator[str]:
        for line in _decoded(file):
            odd.extend(line.odd)
            yield f"{line.text}\n"

    rows = csv.reader(physical(), delimiter=delimiter, quoting=quoting)
    place = int(column) - 1 if column is not None and column.isdecimal() else None
    if place == -1:
        raise BundleError("columns are counted from 1", where="--column 0")
    start = 1
    try:
        for row in rows:
            if place is None:
                place = _place(row, name, column)
            elif row:
                text = row[place] if place < len(row) else ""
                lacking = () if place < len(row) else (NO_TEXT,)
                yield Line(start, text, (*dict.fromkeys(odd), *lacking))
            odd.clear()
            start = rows.line_num + 1
    except csv.Error as error:
        raise BundleError(f"is not a table from line {start} on ({error})", where=name) from None


def _place(header: list[str], name: object, column: str | None) -> int:
    """Position of the column with the texts."""
    found = [header.index(column)] if column in header else []
    if column is None:
        found = [k for k, title in enumerate(header) if title.strip().lower() in _USUAL or len(header) == 1]
    if len(found) != 1:
        known = ", ".join(printable(title, 40) for title in header)
        problem = "does not tell which column has the texts" if column is None else f"has no column {column!r}"
        raise BundleError(f"{problem}; it has {known}", where=name, fix="--column NAME")
    return found[0]


def _objects(file: BinaryIO, _: object, column: str | None) -> Iterator[Line]:
    for line in _decoded(file):
        try:
            said = json.loads(line.text)
        except (ValueError, RecursionError):
            said = None
        keys = _USUAL if column is None else (column,)
        texts = [said[key] for key in keys if isinstance(said.get(key), str)] if isinstance(said, dict) else []
        yield Line(line.number, texts[0] if texts else "", line.odd if texts else (*line.odd, NO_TEXT))


_READERS: dict[str, Callable[[BinaryIO, object, "str | None"], Iterator[Line]]] = {
    "lines": _lines,
    "csv": lambda file, name, column: _table(",", csv.QUOTE_MINIMAL, file, name, column),
    "tsv": lambda file, name, column: _table("\t", csv.QUOTE_NONE, file, name, column),
    "jsonl": _objects,
}
