"""Tokenizers of language models, as the library ``tokenizers`` writes them: WordPiece and byte-level BPE, CLIP's too.

What happens to a text is said by the file ``tokenizer.json``: special tokens in it are found, the rest is normalised,
cut into words, and every word into tokens of the vocabulary; then the tokens that open and close a text are added.
Ids are those of that library. Characters that Python's table of Unicode classes knows otherwise than the library's
(assigned in later versions of Unicode) may be cut otherwise. What is not done here is refused by name.

The work grows with the length of the text, not with its square.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT, VERSION = "mst-edge-tokenizer-json", 1
_MOST_CACHED, _LONGEST_CACHED = 1 << 16, 64
_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "model", "post_processor")

_SURROGATES = re.compile("[\ud800-\udfff]")
# Unicode's White_Space; Python's \s and isspace() take four control characters for it, too.
_SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORDS = re.compile(f"[^{_SPACES}]+")
_SPACE = re.compile(f"[{_SPACES}]")
_RUN = re.compile(f"[{_SPACES}]+")
_CJK = re.compile(
    "([\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f])"
)
# GPT-2's cutting into words, over one letter per character: Letter, Number, Other, space and other White space.
_GPT2 = re.compile(r" ?L+| ?N+| ?O+|[ W]+(?![LNO])|[ W]+")
_CONTRACTIONS = re.compile("'(?:s|t|re|ve|m|ll|d)")
# CLIP's: numbers one by one, and no white space.
_CLIP = re.compile(r"L+|N|O+")
_CLIP_PATTERNS = tuple(
    f"{special}'s|'t|'re|'ve|'m|'ll|'d|[\\p{{L}}]+|[\\p{{N}}]|[^\\s\\p{{L}}\\p{{N}}]+"
    for special in ("", r"<\|startoftext\|>|<\|endoftext\|>|")
)
_CLIP_SPECIAL = re.compile(r"<\|startoftext\|>|<\|endoftext\|>")

Cut = Callable[[str], Iterable[str]]


@dataclass(frozen=True)
class JsonTokenizer:
    """Encodes texts as the library would with truncation to, and padding on the right to, ``max_tokens``.

    Attributes:
        record: the parts of ``tokenizer.json`` that say how.
        padding: the id that fills up.
        max_tokens: length of what ``encode`` returns, with the tokens that open and close a text.

    Raises:
        ValueError: a part that is not done here, or one that does not fit the others; names it.
    """

    record: Mapping[str, Any]
    padding: int
    max_tokens: int
    vocabulary: int = field(init=False)
    _normalise: Callable[[str], str] = field(init=False, repr=False, compare=False)
    _cut: Cut = field(init=False, repr=False, compare=False)
    _model: Callable[[str], tuple[int, ...]] = field(init=False, repr=False, compare=False)
    _around: tuple[tuple[int, ...], tuple[int, ...]] = field(init=False, repr=False, compare=False)
    _added: _AddedTokens = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        record: dict[str, Any] = {part: self.record.get(part) for part in _PARTS}
        model = _model(record["model"])
        added = record["added_tokens"] or []
        ids = {**record["model"]["vocab"], **{token["content"]: token["id"] for token in added}}
        normalise = _normaliser(record["normalizer"])
        around = _template(record["post_processor"], ids)
        made = {
            "record": record,
            "vocabulary": max(ids.values()) + 1,
            "_normalise": normalise,
            "_cut": _pre_tokenizer(record["pre_tokenizer"], record["model"]["type"]),
            "_model": _cached(model),
            "_around": around,
            "_added": _AddedTokens(added, normalise),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)
        fewest = sum(map(len, around)) + 1
        if self.max_tokens < fewest:
            raise ValueError(f"max_tokens must be at least {fewest}, received {self.max_tokens}")
        if not 0 <= self.padding < self.vocabulary:
            raise ValueError(f"padding {self.padding} is no id below {self.vocabulary}")

    def encode(self, text: str) -> tuple[NDArray[np.int32], bool]:
        """``(max_tokens,)`` ids, padded at the end, and whether a part of the text did not fit."""
        before, after = self._around
        room = self.max_tokens - len(before) - len(after)
        inner: list[int] = []
        for token in self._tokens(_SURROGATES.sub("\ufffd", text)):
            inner.append(token)
            if len(inner) > room:
                break
        ids = np.full(self.max_tokens, self.padding, np.int32)
        whole = (*before, *inner[:room], *after)
        ids[: len(whole)] = whole
        return ids, len(inner) > room

    def encode_all(self, texts: Iterable[object]) -> NDArray[np.int32]:
        """``(texts, max_tokens)`` ids."""
        return np.stack([self.encode(str(text))[0] for text in texts])

    def says_nothing(self, ids: NDArray[Any]) -> bool:
        """Whether ``ids`` are those of an empty text."""
        return bool(np.array_equal(ids, self.encode("")[0]))

    def spelt(self, ids: NDArray[Any]) -> list[str]:
        """The tokens as the vocabulary writes them, without those that fill up."""
        added = {token["content"]: token["id"] for token in self.record["added_tokens"] or []}
        names = {number: token for token, number in {**self.record["model"]["vocab"], **added}.items()}
        return [names.get(int(token), "") for token in ids if token != self.padding]

    def _tokens(self, text: str) -> Iterator[int]:
        for part in self._added.split(text):
            if isinstance(part, int):
                yield part
            else:
                for word in self._cut(part):
                    yield from self._model(word)

    @property
    def identity(self) -> str:
        """A hash of all that ids depend on but ``max_tokens``."""
        said = json.dumps([self.record, self.padding], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def to_json(self) -> str:
        """The tokenizer as a JSON document."""
        about = {"format": FORMAT, "version": VERSION, "max_tokens": self.max_tokens, "padding": self.padding}
        return json.dumps({**about, "tokenizer": self.record}) + "\n"


def parse_tokenizer_json(record: Mapping[str, Any]) -> JsonTokenizer:
    """The tokenizer that ``to_json`` wrote.

    Raises:
        ValueError, KeyError or TypeError: it is something else.
    """
    if record.get("version") != VERSION:
        raise ValueError(f"expected format {FORMAT}, version {VERSION}")
    return JsonTokenizer(record["tokenizer"], int(record["padding"]), int(record["max_tokens"]))


class _AddedTokens:
    """Tokens that are found in the text itself: some before it is normalised, some after."""

    def __init__(self, tokens: Iterable[Mapping[str, Any]], normalise: Callable[[str], str]) -> None:
        self._normalise = normalise
        raw: dict[str, Mapping[str, Any]] = {}
        plain: dict[str, Mapping[str, Any]] = {}
        for token in tokens:
            if token["single_word"]:
                raise _refused("added token", f"{token['content']} with single_word")
            content = normalise(token["content"]) if token["normalized"] else token["content"]
            if content:
                (plain if token["normalized"] else raw)[content] = token
        self._raw, self._plain = _Finder(raw), _Finder(plain)

    def split(self, text: str) -> Iterator[str | int]:
        """Normalised stretches of text, and the ids between them."""
        for part in self._raw.split(text):
            if isinstance(part, int):
                yield part
            else:
                yield from self._plain.split(self._normalise(part))


class _Finder:
    def __init__(self, tokens: Mapping[str, Mapping[str, Any]]) -> None:
        self._ids = {content: int(token["id"]) for content, token in tokens.items()}
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(_with_spaces(content, tokens[content]) for content in longest_first))
        self._contents = re.compile("|".join(map(re.escape, longest_first)))

    def split(self, text: str) -> Iterator[str | int]:
        position = 0
        for found in self._pattern.finditer(text) if self._ids else ():
            if found.start() > position:
                yield text[position : found.start()]
            content = self._contents.search(found[0])
            assert content is not None
            yield self._ids[content[0]]
            position = found.end()
        if position < len(text):
            yield text[position:]


def _with_spaces(content: str, token: Mapping[str, Any]) -> str:
    # A run of spaces is looked at from its start only, or a text of spaces would cost its square.
    left = f"(?:(?<![{_SPACES}])[{_SPACES}]+)?" if token["lstrip"] else ""
    right = f"[{_SPACES}]*" if token["rstrip"] else ""
    return left + re.escape(content) + right


def _cached(model: Callable[[str], tuple[int, ...]]) -> Callable[[str], tuple[int, ...]]:
    """Remembers the tokens of words, but not of those that only noise consists of."""
    known = functools.lru_cache(_MOST_CACHED)(model)
    return lambda word: known(word) if len(word) <= _LONGEST_CACHED else model(word)


def _normaliser(said: Mapping[str, Any] | None) -> Callable[[str], str]:
    if said is None:
        return lambda text: text
    kind = said["type"]
    if kind == "Sequence":
        parts = [_normaliser(part) for part in said["normalizers"]]
        return lambda text: functools.reduce(lambda done, part: part(done), parts, text)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return functools.partial(unicodedata.normalize, kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind == "BertNormalizer":
        return _bert_normaliser(said)
    if kind == "Replace" and said["pattern"] == {"Regex": r"\s+"}:
        content = said["content"]
        return lambda text: _RUN.sub(lambda _found: content, text)
    raise _refused("normalizer", kind)


def _bert_normaliser(said: Mapping[str, Any]) -> Callable[[str], str]:
    """Devlin and others' ``BasicTokenizer``: clean, spaces around Chinese characters, no accents, lower case."""
    lower = said["lowercase"]
    strip = lower if said["strip_accents"] is None else said["strip_accents"]
    steps: list[Callable[[str], str]] = []
    if said["clean_text"]:
        steps.append(_cleaned)
    if said["handle_chinese_chars"]:
        steps.append(lambda text: _CJK.sub(r" \1 ", text))
    if strip:
        steps += [functools.partial(unicodedata.normalize, "NFD"), _without_marks]
    if lower:
        steps.append(_lower)
    return lambda text: functools.reduce(lambda done, step: step(done), steps, text)


def _cleaned(text: str) -> str:
    kept = (char for char in text if char in "\t\n\r" or not (char == "\ufffd" or _category(char) in _DROPPED))
    return _SPACE.sub(" ", "".join(kept))


_DROPPED = ("Cc", "Cf", "Co", "Cs")


def _without_marks(text: str) -> str:
    return "".join(char for char in text if _category(char) != "Mn")


def _lower(text: str) -> str:
    # One by one: a final sigma is no other letter here.
    return text.lower() if text.isascii() else "".join(char.lower() for char in text)


_PLAIN: Mapping[str, Callable[[str], str]] = {"Lowercase": _lower, "StripAccents": _without_marks}


@functools.lru_cache(_MOST_CACHED)
def _category(char: str) -> str:
    return unicodedata.category(char)


def _pre_tokenizer(said: Mapping[str, Any] | None, model: str) -> Cut:
    kind = "none" if said is None else said["type"]
    if said is not None and kind == "BertPreTokenizer" and model == "WordPiece":
        return _bert_words
    if said is not None and kind == "ByteLevel" and model == "BPE":
        if not said.get("use_regex", True):
            raise _refused("pre-tokenizer", "ByteLevel without use_regex")
        return functools.partial(_gpt2_words, prefix=bool(said["add_prefix_space"]))
    if said is not None and kind == "Sequence" and model == "BPE":
        split, *rest = said["pretokenizers"]
        if _is_clips(split) and len(rest) == 1:
            within = _pre_tokenizer(rest[0], model)
            words = functools.partial(_clip_words, special=split["pattern"]["Regex"] == _CLIP_PATTERNS[1])
            return lambda text: (part for word in words(text) for part in within(word))
    raise _refused("pre-tokenizer", f"{kind} before {model}")


def _is_clips(said: Mapping[str, Any]) -> bool:
    """Whether this part of a pre-tokenizer is CLIP's way to cut into words."""
    pattern = (said.get("pattern") or {}).get("Regex")
    return said["type"] == "Split" and pattern in _CLIP_PATTERNS and said["behavior"] == "Removed" and said["invert"]


def _clip_words(text: str, *, special: bool) -> Iterator[str]:
    """CLIP's pattern ``'s|'t|...|letters|number|others``; white space is dropped."""
    classes, position = "".join(map(_class, text)), 0
    while position < len(text):
        found = (_CLIP_SPECIAL.match(text, position) if special else None) or _CONTRACTIONS.match(text, position)
        found = found or _CLIP.match(classes, position)
        if found is not None:
            yield text[position : found.end()]
        position = position + 1 if found is None else found.end()


def _bert_words(text: str) -> Iterator[str]:
    """Words between white space, every mark of punctuation alone."""
    for found in _WORDS.finditer(text):
        word, start = found[0], 0
        for position, char in enumerate(word):
            if _is_mark(char):
                if position > start:
                    yield word[start:position]
                yield char
                start = position + 1
        if start < len(word):
            yield word[start:]


def _is_mark(char: str) -> bool:
    return _category(char)[0] == "P" or char in "$+<=>^`|~"


def _gpt2_words(text: str, *, prefix: bool) -> Iterator[str]:
    """GPT-2's pattern ``'s|'t|...| ?letters| ?numbers| ?others|white space``."""
    if not text:
        return
    if prefix and not text.startswith(" "):
        text = " " + text
    classes, position = "".join(map(_class, text)), 0
    while position < len(text):
        found = _CONTRACTIONS.match(text, position) or _GPT2.match(classes, position)
        assert found is not None
        yield text[position : found.end()]
        position = found.end()


@functools.lru_cache(_MOST_CACHED)
def _class(char: str) -> str:
    if char == " ":
        return " "
    if _SPACE.match(char):
        return "W"
    first = _category(char)[0]
    return first if first in "LN" else "O"


def _model(said: Mapping[str, Any]) -> Callable[[str], tuple[int, ...]]:
    if said["type"] == "WordPiece":
        return _WordPiece(said)
    if said["type"] == "BPE":
        return _ByteLevelBpe(said)
    raise _refused("model", said["type"])


class _WordPiece:
    """The longest token of the vocabulary that a word starts with, then of its rest; the unknown one where none is."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._vocab, self._prefix = said["vocab"], said["continuing_subword_prefix"]
        self._most = said["max_input_chars_per_word"]
        if said["unk_token"] not in self._vocab:
            raise ValueError(f"its vocabulary lacks the token for unknown words, {said['unk_token']}")
        self._unknown = (self._vocab[said["unk_token"]],)

    def __call__(self, word: str) -> tuple[int, ...]:
        if len(word) > self._most:
            return self._unknown
        ids: list[int] = []
        start = 0
        while start < len(word):
            head = self._prefix if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if head + word[start:end] in self._vocab), 0)
            if not end:
                return self._unknown
            ids.append(self._vocab[head + word[start:end]])
            start = end
        return tuple(ids)


class _ByteLevelBpe:
    """Byte-pair encoding over bytes; of all pairs the one learned first is merged, the leftmost of them first.

    CLIP's bytes that end a word are tokens of their own, written with ``</w>``.
    """

    def __init__(self, said: Mapping[str, Any]) -> None:
        suffix = said.get("end_of_word_suffix") or ""
        for option in ("dropout", "continuing_subword_prefix", *(() if suffix else ("unk_token",))):
            if said.get(option):
                raise _refused("model", f"BPE with {option}")
        for option in ("fuse_unk", "byte_fallback", "ignore_merges"):
            if said.get(option):
                raise _refused("model", f"BPE with {option}")
        vocab = said["vocab"]
        wanted = [f"{char}{end}" for end in dict.fromkeys(("", suffix)) for char in _byte_characters()]
        missing = [name for name in wanted if name not in vocab]
        if missing:
            raise ValueError(f"its vocabulary lacks {len(missing)} of the {len(wanted)} bytes: no byte-level BPE")
        self._bytes = [int(vocab[char]) for char in _byte_characters()]
        self._last_bytes = [int(vocab[f"{char}{suffix}"]) for char in _byte_characters()]
        self._merges: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, merge in enumerate(said["merges"]):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            self._merges[vocab[left], vocab[right]] = (rank, vocab[left + right])

    def __call__(self, word: str) -> tuple[int, ...]:
        data = word.encode("utf-8")
        ids = [*(self._bytes[byte] for byte in data[:-1]), *(self._last_bytes[byte] for byte in data[-1:])]
        # A chain of the tokens that are left; a position whose token was swallowed is -1.
        after = [*range(1, len(ids)), -1]
        before = list(range(-1, len(ids) - 1))
        heap: list[tuple[int, int, int, int]] = []

        def consider(position: int) -> None:
            if position >= 0 and after[position] >= 0:
                pair = (ids[position], ids[after[position]])
                if pair in self._merges:
                    heapq.heappush(heap, (self._merges[pair][0], position, *pair))

        for position in range(len(ids)):
            consider(position)
        while heap:
            _, position, left, right = heapq.heappop(heap)
            other = after[position]
            if ids[position] != left or other < 0 or ids[other] != right:
                continue  # one of them has been merged since
            ids[position], ids[other] = self._merges[left, right][1], -1
            after[position] = after[other]
            if after[other] >= 0:
                before[after[other]] = position
            consider(position)
            consider(before[position])
        return tuple(token for token in ids if token >= 0)


@functools.lru_cache(1)
def _byte_characters() -> tuple[str, ...]:
    """The visible character that stands for each byte (GPT-2): its own where it has one, else one from U+0100 on."""
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in own else next(others)) for byte in range(256))


def _template(said: Mapping[str, Any] | None, ids: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and after those of a text."""
    if said is None or said["type"] == "ByteLevel":
        return (), ()
    if said["type"] in ("BertProcessing", "RobertaProcessing"):
        return (_special(said["cls"][0], ids),), (_special(said["sep"][0], ids),)
    if said["type"] == "Sequence":
        found = [_template(part, ids) for part in said["processors"]]
        return tuple(sum((pair[0] for pair in reversed(found)), ())), tuple(sum((pair[1] for pair in found), ()))
    if said["type"] == "TemplateProcessing":
        return _single(said, ids)
    raise _refused("post-processor", said["type"])


def _single(said: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sides: tuple[list[int], list[int]] = ([], [])
    seen = 0
    for part in said["single"]:
        if "Sequence" in part:
            seen += 1
        else:
            token = part["SpecialToken"]["id"]
            _special(token, ids)
            sides[min(seen, 1)].extend(int(number) for number in said["special_tokens"][token]["ids"])
    if seen != 1:
        raise _refused("post-processor", "TemplateProcessing that says a text more or less than once")
    return tuple(sides[0]), tuple(sides[1])


def _special(token: str, ids: Mapping[str, int]) -> int:
    if token not in ids:
        raise ValueError(f"its vocabulary lacks the special token {token}")
    return ids[token]


def _refused(part: str, what: str) -> ValueError:
    return ValueError(f"{part} {what} is not supported: WordPiece of BERT and byte-level BPE of GPT-2 and CLIP are")
