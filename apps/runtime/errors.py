"""What went wrong with a bundle or an input, in one line."""

from __future__ import annotations


class BundleError(Exception):
    """The bundle, a file given to it, or the device does not fit: says what, where, and what to do.

    Args:
        problem: what is wrong, with the value received.
        where: file or field at fault.
        fix: what the user can do about it.
    """

    def __init__(self, problem: str, *, where: object = "", fix: str = "") -> None:
        text = f"{where}: {problem}" if str(where) else problem
        super().__init__(" ".join((f"{text}; {fix}" if fix else text).split()))
