"""Files that are whole or absent: written to a temporary name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mst_edge.core.errors import UserError

_BLOCK_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp|old)")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it takes the place of ``path``.

    The caller creates a file or a folder there. On any exception, also an interrupt, the temporary
    is removed and ``path`` is as before.

    Raises:
        UserError: the disk is full, also where a library said so in words of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        if temporary.is_dir():
            # rename() cannot replace a folder that has files in it: move the old one aside first.
            if path.exists():
                old = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.old"
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
            else:
                temporary.rename(path)
        else:
            _flush(temporary)
            temporary.replace(path)
    except BaseException as error:
        full = _full(error, path.parent)
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if full:
            raise UserError("the disk is full", where=full, fix="free some space, or write to another disk") from error
        raise


def _full(error: BaseException, folder: Path) -> str:
    """What could not be written because a disk is full; empty where that was not the reason.

    Libraries raise errors of their own when a write fails: then another write tells.
    """
    if isinstance(error, UserError) or not isinstance(error, Exception):
        return ""
    if isinstance(error, OSError):
        return str(error.filename or folder) if error.errno in _FULL else ""
    probe = folder / f".probe.{uuid.uuid4().hex[:8]}.tmp"
    try:
        probe.write_bytes(bytes(_BLOCK_BYTES))
    except OSError as failed:
        return str(folder) if failed.errno in _FULL else ""
    finally:
        probe.unlink(missing_ok=True)
    return ""


def require_unused(folder: Path, holds: str) -> None:
    """Makes sure that ``folder`` is absent or empty; ``holds`` says what it should hold otherwise.

    Raises:
        UserError: it has other things in it, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"is not empty and holds no {holds}", where=folder, fix="use another --out")


def remove_leftovers(folder: Path) -> None:
    """Removes temporaries that a killed process left anywhere below ``folder``; nobody else may be writing there."""
    for path in list(folder.rglob(".*")):
        if _TEMPORARY.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` (UTF-8) to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON to ``path``, whole or not at all. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """The sha256 of a JSON-able value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_bytes(folder: Path) -> int:
    """Total size in bytes of the files under ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
