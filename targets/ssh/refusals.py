"""What OpenSSH's client says when it fails, and what to do about it."""

from __future__ import annotations

import re
import shlex

from mst_edge.core.errors import UserError
from targets.ssh.address import Address

_NOT_FOUND = 127
_CHANGED = re.compile(r"Host key for (?P<name>\S+) has changed")
_PLACE = re.compile(r"Offending \S+ key in (?P<file>.+):\d+")


def refusal(address: Address, code: int, words: str, *, during: str, goes_on: str) -> UserError:
    """Why there is no connection any more, from the exit code and the standard error of ``ssh``.

    Args:
        goes_on: the command that goes on from here.
    """
    where = f"{address}, {during}"
    changed, place = _CHANGED.search(words), _PLACE.search(words)
    if changed is not None:
        file = f"-f {shlex.quote(place['file'])} " if place is not None else ""
        return UserError(
            "its host key is another than the one known: the board was flashed anew, or this is not the board",
            where=where,
            fix=f"if you know why: ssh-keygen {file}-R {shlex.quote(changed['name'])}, then compare its fingerprint: "
            + address.by_hand,
        )
    if "Host key verification failed" in words or "host key is known for" in words:
        return UserError(
            "its host key is not known here",
            where=where,
            fix=f"connect once by hand and compare the fingerprint: {address.by_hand}",
        )
    if "Permission denied (" in words:
        return UserError(
            "takes no key of yours, and passwords are not asked for",
            where=where,
            fix=f"{address.by_hand.replace('ssh ', 'ssh-copy-id ', 1)}, or ssh-add for a key with a passphrase",
        )
    if code == _NOT_FOUND:
        return UserError("has no python3", where=where, fix="sudo apt install python3 on the board")
    said = last_line(words)
    if during == "connecting":
        silent = "it did not answer" if code < 0 else f"ssh ended with code {code}"
        return UserError(f"cannot be reached ({said or silent})", where=where, fix=f"try {address.by_hand}")
    return UserError(
        f"the connection was lost ({said or 'without a word'})",
        where=where,
        fix=f"what is done stays done; go on with: {goes_on}",
    )


def last_line(words: str) -> str:
    """The last line with something in it, printable."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return "".join(letter if letter.isprintable() else " " for letter in lines[-1])[:300] if lines else ""
