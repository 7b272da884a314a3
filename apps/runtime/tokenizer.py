"""Text to token ids: byte-level byte-pair encoding (Sennrich and others, ACL 2016), standard library and numpy.

What happens to a text, in this order:

1. At most 16 characters per token that a student reads are looked at.
2. Half surrogates (what is left of invalid UTF-8 in a command line) become U+FFFD; the text is brought to
   Unicode's form NFKC, so that equal looking characters are equal, and to lower case where wanted.
3. Control characters are taken for white space; invisible format characters (soft hyphen, zero width space,
   direction marks, byte order mark) vanish. White space of any length is one space.
4. Every web address becomes the token ``URL`` and every ``@name`` the token ``USER``: which ones they are says
   little, and names are personal data.
5. Words, and runs of punctuation or emoji, are cut into pieces of at most 32 characters. A piece keeps the space
   before it. Its UTF-8 bytes are the first tokens; then learned pairs are merged, the earliest learned first.

Any text has an encoding, there is no unknown token; an empty text is padding alone. What does not fit into
``max_tokens`` is cut off at the end. No step depends on a table of Unicode classes, so devices with different
versions of Python agree (but for characters that the older version's NFKC or lower case does not know yet).

A student that is a language model of others has its own tokenizer instead: ``tokenizer_json``.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .tokenizer_json import FORMAT as JSON_FORMAT
from .tokenizer_json import JsonTokenizer, parse_tokenizer_json

PADDING, URL, USER, FIRST_BYTE = 0, 1, 2, 3
FIRST_MERGE = FIRST_BYTE + 256
FORMAT, VERSION = "mst-edge-tokenizer", 1
TOKENIZER = "tokenizer.json"
_CHARACTERS_PER_TOKEN = 16
_MOST_CACHED = 1 << 16

_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
# Punctuation of ASCII, of Unicode's punctuation blocks, and emoji with what joins and colours them.
_MARKS = (
    "!-/:-@\\[-`{-~\u00a1-\u00bf\u2000-\u2bff\u2e00-\u2e7f\u3000-\u303f\ufe00-\ufe0f\ufe30-\ufe4f"
    "\U0001f000-\U0001faff\U000e0000-\U000e007f"
)
_LETTER, _MARK = f"[^ {_MARKS}]", f"[{_MARKS}]"
_PIECES = re.compile(
    rf" ?(?:(?P<url>(?i:https?://|www\.)[^ ]+)|(?P<user>(?<!{_LETTER})@(?:{_LETTER}|_)+)"
    rf"|{_LETTER}{{1,32}}|{_MARK}{{1,32}}?(?=@(?:{_LETTER}|_))|{_MARK}{{1,32}})"
)


@dataclass(frozen=True)
class Tokenizer:
    """Encodes texts as ids: 0 padding, 1 ``URL``, 2 ``USER``, 3 to 258 the bytes, then one per merge.

    Attributes:
        merges: pairs of ids; the n-th (from 0) becomes id 259 + n. A pair names ids below its own only.
        max_tokens: length of what ``encode`` returns.
        lower_case: whether case is ignored.
    """

    merges: tuple[tuple[int, int], ...]
    max_tokens: int
    lower_case: bool
    _ranks: dict[tuple[int, int], int] = field(init=False, repr=False, compare=False)
    _cache: dict[str, tuple[int, ...]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, received {self.max_tokens}")
        for number, pair in enumerate(self.merges):
            if not all(FIRST_BYTE <= part < FIRST_MERGE + number for part in pair):
                raise ValueError(f"merge {number} joins {pair}, which are not tokens before it")
        object.__setattr__(self, "_ranks", {pair: rank for rank, pair in enumerate(self.merges)})

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return FIRST_MERGE + len(self.merges)

    def encode(self, text: str) -> tuple[NDArray[np.int32], bool]:
        """``(max_tokens,)`` ids, padded with 0 at the end, and whether a part of the text did not fit."""
        looked_at = text[: self.max_tokens * _CHARACTERS_PER_TOKEN]
        ids = np.zeros(self.max_tokens, np.int32)
        used = 0
        for piece in pieces(looked_at, lower_case=self.lower_case):
            tokens = self.tokens(piece)
            fitting = tokens[: self.max_tokens - used]
            ids[used : used + len(fitting)] = fitting
            used += len(fitting)
            if len(fitting) < len(tokens):
                return ids, True
        return ids, len(looked_at) < len(text)

    def encode_all(self, texts: Iterable[object]) -> NDArray[np.int32]:
        """``(texts, max_tokens)`` ids."""
        return np.stack([self.encode(str(text))[0] for text in texts])

    def says_nothing(self, ids: NDArray[Any]) -> bool:
        """Whether ``ids`` are those of an empty text."""
        return not ids.any()

    def tokens(self, piece: str | int) -> tuple[int, ...]:
        """Ids of one piece, as ``pieces`` gives them."""
        if isinstance(piece, int):
            return (piece,)
        found = self._cache.get(piece)
        if found is None:
            found = tuple(self._merge([FIRST_BYTE + byte for byte in piece.encode("utf-8")]))
            if len(self._cache) < _MOST_CACHED:
                self._cache[piece] = found
        return found

    def _merge(self, ids: list[int]) -> list[int]:
        never = len(self.merges)
        while len(ids) > 1:
            rank = min(self._ranks.get(pair, never) for pair in pairwise(ids))
            if rank == never:
                break
            ids = merged(ids, self.merges[rank], FIRST_MERGE + rank)
        return ids

    def to_json(self) -> str:
        """The tokenizer as a JSON document."""
        record = {
            "format": FORMAT,
            "version": VERSION,
            "max_tokens": self.max_tokens,
            "lower_case": self.lower_case,
            "merges": [list(pair) for pair in self.merges],
        }
        return json.dumps(record) + "\n"


def merged(ids: Sequence[int], pair: tuple[int, int], new: int) -> list[int]:
    """``ids`` with every occurrence of ``pair``, from the left, replaced by ``new``."""
    out: list[int] = []
    position = 0
    while position < len(ids):
        if tuple(ids[position : position + 2]) == pair:
            out.append(new)
            position += 2
        else:
            out.append(ids[position])
            position += 1
    return out


def pieces(text: str, *, lower_case: bool) -> Iterator[str | int]:
    """What is encoded one by one: strings, and the ids ``URL`` and ``USER``."""
    for found in _PIECES.finditer(normalised(text, lower_case=lower_case)):
        if found["url"]:
            yield URL
        elif found["user"]:
            yield USER
        else:
            yield found[0]


def normalised(text: str, *, lower_case: bool) -> str:
    """Steps 2 and 3 of the module's description; a text that is not empty starts with a space."""
    plain = unicodedata.normalize("NFKC", _SURROGATES.sub("\ufffd", text))
    if lower_case:
        # Lower case may bring back what NFKC composes ("İ" has a dot of its own then).
        plain = unicodedata.normalize("NFKC", plain.lower())
    words = _INVISIBLE.sub("", _CONTROLS.sub(" ", plain)).split()
    return " " + " ".join(words) if words else ""


AnyTokenizer = Union[Tokenizer, JsonTokenizer]


def read_tokenizer(path: Path) -> AnyTokenizer:
    """The tokenizer in a JSON file.

    Raises:
        BundleError: no such file, or not a tokenizer of this format.
    """
    try:
        return parse_tokenizer(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BundleError("no such file", where=path) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"not a tokenizer ({error})", where=path) from None


def parse_tokenizer(record: Any) -> AnyTokenizer:
    """The tokenizer that ``to_json`` wrote, of either kind.

    Raises:
        ValueError, KeyError or TypeError: it is something else.
    """
    if isinstance(record, dict) and record.get("format") == JSON_FORMAT:
        return parse_tokenizer_json(record)
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise ValueError(f"expected format {FORMAT}, version {VERSION}")
    merges = tuple((int(first), int(second)) for first, second in record["merges"])
    return Tokenizer(merges, int(record["max_tokens"]), bool(record["lower_case"]))
