"""The cache folder: what was computed once, in folders named by the hash of everything that it depends on.

An entry is whole or absent and never changes; ``about.json`` in it says what it is and what it depends on. Who asks for
an entry can have it noted whether it was there, and if not, what made the difference.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mst_edge.core.errors import UserError
from mst_edge.core.files import folder_bytes, read_json, remove_leftovers, sha256_json, write_json

KINDS: Mapping[str, str] = {
    "features": "what front ends made of samples",
    "tables": "what frozen networks said of training and validation samples",
    "builds": "models that runtimes compiled here and ran once",
    "blocks": "how long blocks of networks take here",
    "timings": "how long kernels took when TensorRT chose among them",
}
_ABOUT = "about.json"
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


@dataclass(frozen=True)
class Entry:
    """One thing in the cache.

    Attributes:
        what: for people.
        depends_on: facts whose hash is the folder's name.
        used_s: when it was last opened, in seconds since 1970.
    """

    kind: str
    folder: Path
    what: str
    depends_on: Mapping[str, Any]
    bytes: int
    used_s: float


@dataclass(frozen=True)
class Lookup:
    """An entry that was asked for.

    Attributes:
        reused: whether it was there.
        differs: where it was not, the facts in which the most similar entry differs: its own and what was asked for.
            Empty where no entry is for the like.
    """

    kind: str
    what: str
    key: str
    reused: bool
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


_JOURNALS: list[list[Lookup]] = []


@contextlib.contextmanager
def journal() -> Iterator[list[Lookup]]:
    """Yields a list that gets every lookup made meanwhile."""
    lookups: list[Lookup] = []
    _JOURNALS.append(lookups)
    try:
        yield lookups
    finally:
        _JOURNALS.remove(lookups)


def cache_root() -> Path:
    """Where built datasets and caches live: ``MST_EDGE_CACHE``, else ``~/.cache/mst-edge``."""
    configured = os.environ.get("MST_EDGE_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "mst-edge"


def entry_folder(root: Path, kind: str, depends_on: Mapping[str, Any]) -> Path:
    """Where what depends on these facts is kept, or would be."""
    return root / kind / sha256_json(depends_on)[:32]


def look_up(folder: Path, what: str, depends_on: Mapping[str, Any]) -> bool:
    """Whether the entry is there; if so, notes that it was used now.

    Args:
        what: for people: entries for the like have the same.
    """
    kept = _touch(folder)
    if _JOURNALS:
        differs = {} if kept else _nearest_difference(folder.parent, what, depends_on)
        lookup = Lookup(folder.parent.name, what, folder.name, kept, differs)
        for lookups in _JOURNALS:
            lookups.append(lookup)
    return kept


def _touch(folder: Path) -> bool:
    try:
        os.utime(folder / _ABOUT)
    except PermissionError:  # a cache that others share and we may only read
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _nearest_difference(kind: Path, what: str, depends_on: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    wanted = _flat(depends_on)
    found = [
        {
            name: (old.get(name), wanted.get(name))
            for name in sorted({*old, *wanted})
            if old.get(name) != wanted.get(name)
        }
        for entry in entries(kind.parent, [kind.name])
        if entry.what == what and (old := _flat(entry.depends_on))
    ]
    return min(found, key=len, default={})


def _flat(facts: Any, path: str = "") -> dict[str, Any]:
    """Facts by their dotted path."""
    if not isinstance(facts, Mapping):
        return {path: list(facts) if isinstance(facts, tuple) else facts}
    return {
        name: value
        for key, below in facts.items()
        for name, value in _flat(below, f"{path}.{key}" if path else key).items()
    }


@contextlib.contextmanager
def new_entry(folder: Path, what: str, depends_on: Mapping[str, Any], *, fix: str = "") -> Iterator[Path]:
    """Yields a temporary folder to fill; on success it becomes ``folder``.

    Where another process was first, its folder stays: it depends on the same facts, so it holds the same.

    Args:
        fix: what the user may do about a full disk beside making room on it.

    Raises:
        UserError: the disk is full or may not be written to; nothing is left behind.
    """
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        write_json(temporary / _ABOUT, {"what": what, "depends_on": depends_on})
        if not _publish(temporary, folder):
            shutil.rmtree(temporary)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            raise UserError(
                f"the cache cannot be written ({error.strerror})",
                where=folder.parent,
                fix=f"free space (`mst-edge cache clear`), or point MST_EDGE_CACHE to another disk{fix}",
            ) from error
        raise


def _publish(temporary: Path, folder: Path) -> bool:
    """Gives the folder its name; False where that is taken."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def entries(root: Path, kinds: Collection[str] = tuple(KINDS)) -> list[Entry]:
    """What is kept, by kind, the last used first."""
    return sorted(
        (entry for kind in kinds for folder in _folders(root / kind) if (entry := _read(kind, folder))),
        key=lambda entry: (entry.kind, -entry.used_s),
    )


def clear(root: Path, kinds: Sequence[str]) -> int:
    """Removes everything of these kinds, also what killed processes left half-written.

    Returns:
        Bytes that were freed.
    """
    freed = 0
    for kind in kinds:
        if (root / kind).is_dir():
            freed += folder_bytes(root / kind)
            remove_leftovers(root / kind)
            for folder in _folders(root / kind):
                _remove(folder)
    return freed


def make_room(root: Path, kind: str, needed: int, limit: int, in_use: Collection[Path]) -> bool:
    """Removes entries of a kind, the longest unused first, until ``needed`` more bytes stay within ``limit``.

    Another process that has a removed entry open goes on reading it: its files vanish when it closes them.

    Args:
        in_use: folders that must stay.

    Returns:
        False where that cannot be had; then nothing was removed.
    """
    kept = entries(root, [kind])
    room = limit - sum(entry.bytes for entry in kept)
    removable = [entry for entry in kept if entry.folder not in in_use]
    if room + sum(entry.bytes for entry in removable) < needed:
        return False
    while room < needed:
        oldest = removable.pop()
        _remove(oldest.folder)
        room += oldest.bytes
    return True


def _folders(parent: Path) -> list[Path]:
    return sorted(f for f in parent.iterdir() if not f.name.startswith(".")) if parent.is_dir() else []


def _read(kind: str, folder: Path) -> Entry | None:
    """None where another process is just removing it."""
    try:
        about = read_json(folder / _ABOUT)
        used = (folder / _ABOUT).stat().st_mtime
        return Entry(kind, folder, about["what"], about["depends_on"], folder_bytes(folder), used)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remove(folder: Path) -> None:
    """Away under its own name first, so that nobody opens half of it."""
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.old"
    with contextlib.suppress(FileNotFoundError):  # another process was first
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
