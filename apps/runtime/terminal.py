"""Texts of strangers on a terminal: nothing in them may move its cursor, colour it, or turn the direction of a line."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"  # of letters and emoji: invisible, and needed to show them right
_RIGHT_TO_LEFT = {"R", "AL", "AN"}
_ISOLATE, _END = "\u2068", "\u2069"


def printable(text: str, most: int = 0) -> str:
    """``text`` on one line: control and format characters, half surrogates, and what is not assigned, as ``\\x1b``.

    Every kind of white space becomes a space. Where there are letters that run from right to left, the text is
    isolated, so that what stands beside it keeps its place (Unicode Standard Annex 9, section 2.4).

    Args:
        most: characters, of which the last is an ellipsis where more were there; 0 for all of them.
    """
    cut = f"{text[: most - 1]}\u2026" if 0 < most < len(text) else text
    shown = "".join(map(_shown, cut))
    if any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in shown):
        return f"{_ISOLATE}{shown}{_END}"
    return shown


def _shown(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
