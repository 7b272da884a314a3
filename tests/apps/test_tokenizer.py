"""The tokenizer that a device carries: what becomes of any text, and that its merging is byte-pair encoding."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.errors import BundleError
from apps.runtime.tokenizer import (
    FIRST_BYTE,
    FIRST_MERGE,
    PADDING,
    URL,
    USER,
    Tokenizer,
    normalised,
    pieces,
    read_tokenizer,
)
from distill.tokens import learn_merges

TEXTS = [
    "Wildfires burn near Napa, wildfires burn in Sonoma: https://t.co/abc",
    "@anna the river rose, the river floods the town!!! 🔥🔥🔥",
    "Überschwemmung in Köln; наводнение в городе; 洪水 洪水",
    "donate to the victims of the flood, donate now",
]
MERGES = learn_merges(TEXTS * 3, 420, lower_case=True)
TOKENIZER = Tokenizer(MERGES, 24, lower_case=True)
# Every code point, half surrogates too, and more often what texts are made of.
ANY_TEXT = st.text(st.characters(codec=None, categories=None)) | st.lists(
    st.sampled_from(
        ["flood", "RIVER ", " ", "@", "http://x", "wild", "fire", "🔥", "é", "洪", "\x00", "\ud83d", "!", "\t"]
    )
).map("".join)


def _bytes_of(tokens, merges=MERGES) -> bytes:
    """What tokens spell, by unfolding the merges."""
    out, waiting = bytearray(), [*tokens][::-1]
    while waiting:
        token = waiting.pop()
        if token >= FIRST_MERGE:
            waiting += reversed(merges[token - FIRST_MERGE])
        else:
            out.append(token - FIRST_BYTE)
    return bytes(out)


@given(ANY_TEXT)
def test_every_text_has_an_encoding_that_spells_it(text):
    ids, cut = TOKENIZER.encode(text)
    assert (ids.dtype, ids.shape) == (np.int32, (24,))
    used = int((ids != PADDING).sum())
    assert (ids[:used] != PADDING).all()  # padding only at the end
    assert ids.max(initial=0) < TOKENIZER.vocabulary
    whole = [token for piece in pieces(text, lower_case=True) for token in TOKENIZER.tokens(piece)]
    assert cut == (len(whole) > 24 or len(text) > 24 * 16)
    if not cut:
        assert ids[:used].tolist() == whole
        spelt = "".join(p for p in pieces(text, lower_case=True) if isinstance(p, str))
        assert _bytes_of(t for t in whole if t not in (URL, USER)) == spelt.encode()


@given(ANY_TEXT)
def test_pieces_lose_nothing_of_the_normalised_text_but_addresses_and_names(text):
    plain = normalised(text, lower_case=True)
    found = list(pieces(text, lower_case=True))
    if all(isinstance(piece, str) for piece in found):
        assert "".join(found) == plain
    assert all(len(piece) <= 33 for piece in found if isinstance(piece, str))


@given(ANY_TEXT)
@settings(max_examples=300)
def test_merging_agrees_with_another_implementation(text):
    """Hugging Face's tokenizers, given the same merges."""
    models = pytest.importorskip("tokenizers.models")
    names = {FIRST_BYTE + byte: chr(0x4E00 + byte) for byte in range(256)}
    for number, (first, second) in enumerate(MERGES):
        names[FIRST_MERGE + number] = names[first] + names[second]
    theirs = models.BPE(
        vocab={name: token for token, name in names.items()},
        merges=[(names[first], names[second]) for first, second in MERGES],
    )
    for piece in pieces(text, lower_case=True):
        if isinstance(piece, str):
            spelt = "".join(chr(0x4E00 + byte) for byte in piece.encode())
            assert [token.id for token in theirs.tokenize(spelt)] == list(TOKENIZER.tokens(piece))


def test_merges_are_learned_as_the_paper_says():
    """Algorithm 1 of Sennrich and others, counted anew for every merge; the lower pair of two equals."""
    counts: dict[tuple[int, ...], int] = {}
    for text in TEXTS * 3:
        for piece in pieces(text, lower_case=True):
            if isinstance(piece, str):
                word = tuple(FIRST_BYTE + byte for byte in piece.encode())
                counts[word] = counts.get(word, 0) + 1
    for number, learned in enumerate(MERGES):
        pairs: dict[tuple[int, int], int] = {}
        for word, count in counts.items():
            for pair in pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + count
        assert learned == min(pairs, key=lambda pair: (-pairs[pair], pair))
        merged: dict[tuple[int, ...], int] = {}
        for word, count in counts.items():
            out: list[int] = []
            for token in word:
                # From the left: what was just merged does not merge again.
                if out and (out[-1], token) == learned:
                    out[-1] = FIRST_MERGE + number
                else:
                    out.append(token)
            merged[tuple(out)] = merged.get(tuple(out), 0) + count
        counts = merged


def test_training_and_device_cut_the_same_words_into_the_same_tokens():
    """A word that training saw often is one token in the end."""
    (whole,) = TOKENIZER.tokens(" river")
    assert _bytes_of([whole]) == b" river"
    assert len(TOKENIZER.tokens(" rivers")) == 2


@pytest.mark.parametrize(
    ("text", "spells"),
    [
        ("", []),
        (" \t\r\n\u3000", []),
        ("\ufeff\u200b\u00ad", []),
        ("a\x00b\x1fc", [" a", " b", " c"]),
        ("pass\u00adword \u202eevil", [" password", " evil"]),
        ("\uff26\uff35\uff2c\uff2c \ufb01re", [" full", " fire"]),
        ("e\u0301 é", [" é", " é"]),
        ("🔥👍🏽 ok", [" 🔥👍🏽", " ok"]),
        ("\ud83d", [" \ufffd"]),
        ("see http://a.b/c?d=é, WWW.x.org/y", [" see", URL, URL]),
        ("https://a.b https://c", [URL, URL]),
        ("@anna_b: hi (@ben)", [USER, ":", " hi", " (", USER, ")"]),
        ("mail a@b.com", [" mail", " a", "@", "b", ".", "com"]),
        ("@ 5 #tag", [" @", " 5", " #", "tag"]),
        ("x" * 70, [" " + "x" * 32, "x" * 32, "x" * 6]),
        ("हिन्दी", [" हिन्दी"]),
    ],
)
def test_what_becomes_of_a_text(text, spells):
    assert list(pieces(text, lower_case=True)) == spells


def test_case_matters_only_where_asked():
    assert list(pieces("RIVER", lower_case=False)) == [" RIVER"]
    kept = Tokenizer(MERGES, 24, lower_case=False)
    assert kept.encode("RIVER")[0].tolist() != kept.encode("river")[0].tolist()
    assert TOKENIZER.encode("RIVER")[0].tolist() == TOKENIZER.encode("river")[0].tolist()


def test_an_empty_text_is_padding_alone():
    ids, cut = TOKENIZER.encode("")
    assert not ids.any()
    assert not cut


def test_a_long_text_loses_its_end_and_says_so():
    short, long = "river " * 24, "river " * 25
    assert TOKENIZER.encode(short)[1] is False
    ids, cut = TOKENIZER.encode(long)
    assert cut
    assert ids.tolist() == TOKENIZER.encode(short)[0].tolist()
    # A text of any length costs no more than its beginning.
    assert TOKENIZER.encode(" " * 10_000_000)[1] is True


def test_a_tokenizer_survives_the_disk(tmp_path):
    (tmp_path / "t.json").write_text(TOKENIZER.to_json(), encoding="utf-8")
    assert read_tokenizer(tmp_path / "t.json") == TOKENIZER


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "x"}, "expected format mst-edge-tokenizer"),
        ({"version": 2}, "version 1"),
        ({"merges": [[1, 5]]}, r"merge 0 joins \(1, 5\)"),
        ({"merges": [[3, 259]]}, r"merge 0 joins \(3, 259\)"),
        ({"merges": [[3]]}, "not a tokenizer"),
        ({"merges": None}, "not a tokenizer"),
        ({"max_tokens": 0}, "max_tokens must be positive"),
    ],
)
def test_what_is_no_tokenizer_is_told(tmp_path, change, says):
    (tmp_path / "t.json").write_text(json.dumps({**json.loads(TOKENIZER.to_json()), **change}))
    with pytest.raises(BundleError, match=says):
        read_tokenizer(tmp_path / "t.json")


def test_files_that_are_missing_or_no_json_are_told(tmp_path):
    with pytest.raises(BundleError, match="no such file"):
        read_tokenizer(tmp_path / "t.json")
    (tmp_path / "t.json").write_bytes(b"\xff{")
    with pytest.raises(BundleError, match="not a tokenizer"):
        read_tokenizer(tmp_path / "t.json")
