"""What the user gave wrong, told in one line, and the process exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command; part of the public contract."""

    OK = 0
    GATE_FAILED = 1
    USER_ERROR = 2
    INTERNAL_ERROR = 3
    INTERRUPTED = 130


class UserError(Exception):
    """The user's input is wrong: says what, where, and how to mend it, in one line.

    Args:
        problem: what is wrong, with the value received.
        where: file, key or flag at fault.
        fix: what the user can do about it.
    """

    def __init__(self, problem: str, *, where: object = "", fix: str = "") -> None:
        self.problem = problem
        self.where = str(where)
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}" if self.where else self.problem
        if self.fix:
            text = f"{text}; {self.fix}"
        return " ".join(text.split())


def unknown_name(kind: str, name: object, known: Iterable[str], *, where: object = "") -> UserError:
    """An error for a name nobody registered: names the closest known one and lists them all."""
    choices = sorted(known)
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {kind} {name!r}", where=where, fix=f"{hint}Known: {', '.join(choices) or 'none'}")
