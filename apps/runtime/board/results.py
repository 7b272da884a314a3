"""``result.json``: what build, check and bench found on this board, each adding its part."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..manifest import MANIFEST, Manifest

RESULT = "result.json"
FORMAT, VERSION = "mst-edge-result", 1


def read_result(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What was found so far with this very bundle; a fresh record where nothing was.

    Raises:
        BundleError: the file is something else.
    """
    path = folder / RESULT
    fresh: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": manifest.name,
        "target": manifest.target,
        "manifest_sha256": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
        "board": None,
        "tensorrt": None,
        "builds": {},
        "chosen": None,
    }
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return fresh
    except (OSError, ValueError) as error:
        raise BundleError(f"not readable JSON ({error})", where=path, fix="delete it and start again") from None
    if not isinstance(found, dict) or any(found.get(key) != fresh[key] for key in ("format", "version")):
        raise BundleError(f"is no {FORMAT} of version {VERSION}", where=path, fix="delete it and start again")
    if found.get("manifest_sha256") != fresh["manifest_sha256"]:
        raise BundleError("is of another bundle", where=path, fix="delete it and start again")
    return found


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes ``result.json``, whole or not at all.

    Raises:
        BundleError: it cannot be written, because the disk is full, say.
    """
    temporary = folder / f".{RESULT}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(result, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / RESULT)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BundleError(f"cannot be written ({error.strerror})", where=folder / RESULT) from None


def cannot_go_on(error: BundleError | OSError, folder: Path) -> int:
    """Says in one line why a script cannot go on, the disk is full, say; returns its exit code."""
    said = error if isinstance(error, BundleError) else f"{error.filename or folder}: {error.strerror or error}"
    print(f"error: {said}", file=sys.stderr)
    return 2


def part(result: dict[str, Any], build_id: str) -> dict[str, Any]:
    """What is known of one build, to be added to."""
    known: dict[str, Any] = result["builds"].setdefault(build_id, {})
    return known
