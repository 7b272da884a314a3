"""Tokenizers of language models on the device: the ids of the library that wrote them, without it."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from apps.runtime.errors import BundleError
from apps.runtime.tokenizer import parse_tokenizer, read_tokenizer
from apps.runtime.tokenizer_json import JsonTokenizer
from tests.language_tokenizers import byte_level, clip, word_piece
from tests.texts import make_texts

TEXTS = [
    *make_texts(60)[0],
    "It's what they've said: I'll go, we're late, don't wait 1999 times 2000!!!",
    "  two  spaces,\ttabs\nand lines ",
    "Überschwemmung in Köln; наводнение; 洪水 洪水",
]
KINDS = {
    "word pieces": word_piece(TEXTS),
    "cased word pieces": word_piece(TEXTS, lowercase=False),
    "bytes": byte_level(TEXTS),
    "bytes after a space": byte_level(TEXTS, prefix=True),
    "clip": clip(TEXTS),
}
LENGTH = 24
NASTY = [
    "",
    " ",
    "\x00",
    "\ufffd\u00ad\u200b\ufeff",
    "a\x1cb\x85c\u00a0d\u3000e\x0bf",
    "ẛ̣ é é \uff46\uff55\uff4c\uff4c İSTANBUL ΣΑΣ ß ǆ",
    "🔥🔥🏽👩‍👩‍👧 flood🔥",
    "x" * 101 + " " + "y" * 100,
    "flood " * 5000,
    "[CLS] river [SEP][MASK] [PAD]<s>fire</s>  <mask> <pad>",
    "  river   's 's'tis don't DON'T 'llama 12³Ⅷ½",
    "$+<=>^`|~ ¿¡«»…—",
    "漢字かな交じり文𠀀豈",
]


def _known_to_all(char: str) -> bool:
    """Classes that no version of Unicode since 3.2 has changed."""
    return unicodedata.ucd_3_2_0.category(char) == unicodedata.category(char) not in ("Cn", "Cs")


ANY_TEXT = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Z", "Cc", "Cf", "Co"]).filter(_known_to_all)) | (
    st.lists(
        st.sampled_from(
            [
                "flood",
                "River ",
                " ",
                "'s",
                "'",
                "fire",
                "🔥",
                "é",
                "é",
                "洪",
                "\x00",
                "!",
                "\t",
                "<mask>",
                "[SEP]",
                "12",
            ]
        )
    ).map("".join)
)


def filling(library: Tokenizer) -> str:
    """The token that fills up."""
    return next(name for name in ("[PAD]", "<pad>", "<|endoftext|>") if library.token_to_id(name) is not None)


def ours(library: Tokenizer, max_tokens: int = LENGTH, **changes: object) -> JsonTokenizer:
    padding = library.token_to_id(filling(library))
    return JsonTokenizer({**json.loads(library.to_str()), **changes}, padding, max_tokens)


def theirs(library: Tokenizer, text: str, max_tokens: int = LENGTH) -> list[int]:
    copy = Tokenizer.from_str(library.to_str())
    name = filling(copy)
    copy.enable_truncation(max_tokens)
    copy.enable_padding(length=max_tokens, pad_id=copy.token_to_id(name), pad_token=name)
    return copy.encode(text).ids


OURS = {kind: ours(library) for kind, library in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_ids_are_the_librarys(kind, text):
    ids, _ = OURS[kind].encode(text)
    assert (ids.dtype, ids.shape) == (np.int32, (LENGTH,))
    assert ids.tolist() == theirs(KINDS[kind], text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_ids_of_nasty_texts_are_the_librarys(kind, text):
    for length in (4, LENGTH, 300):
        assert ours(KINDS[kind], length).encode(text)[0].tolist() == theirs(KINDS[kind], text, length)


def test_what_is_cut_off_and_what_is_empty_is_told():
    for tokenizer in OURS.values():
        assert tokenizer.encode("fire")[1] is False
        assert tokenizer.encode("fire " * 100)[1] is True
        ids, cut = tokenizer.encode("")
        assert tokenizer.says_nothing(ids)
        assert not cut
        assert not tokenizer.says_nothing(tokenizer.encode("fire")[0])
        assert tokenizer.encode("\ud83d")[0].tolist() == tokenizer.encode("\ufffd")[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_spelt_as_the_library_spells_them(kind):
    """Without those that fill up; CLIP's that ends a text fills up, too."""
    library, text = KINDS[kind], "The River's fire: 12 🔥"
    spelt = library.encode(text).tokens
    wanted = [token for token in spelt if token != filling(library)]
    assert ours(library, 64).spelt(ours(library, 64).encode(text)[0]) == wanted
    assert ours(library).spelt(np.array([library.get_vocab_size() + 5])) == [""]


def test_a_word_without_end_is_no_square():
    """A hundred thousand letters in one word: a square of them would take hours."""
    text = "ab" * 50_000
    assert OURS["bytes"].encode(text)[1]
    assert ours(KINDS["word pieces"]).encode(text)[0].tolist() == theirs(KINDS["word pieces"], text)


def test_it_comes_back_from_its_file(tmp_path):
    for tokenizer in OURS.values():
        (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        again = read_tokenizer(tmp_path / "tokenizer.json")
        assert again == tokenizer
        assert again.encode("the river, 🔥")[0].tolist() == tokenizer.encode("the river, 🔥")[0].tolist()
    with pytest.raises(ValueError, match="expected format mst-edge-tokenizer-json, version 1"):
        parse_tokenizer({**json.loads(tokenizer.to_json()), "version": 2})
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json().replace('"BPE"', '"Unigram"'), encoding="utf-8")
    with pytest.raises(BundleError, match="not a tokenizer .model Unigram is not supported"):
        read_tokenizer(tmp_path / "tokenizer.json")


def _part(thing: object) -> dict[str, object]:
    return json.loads(thing.__getstate__())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalizer": _part(normalizers.Nmt())}, "normalizer Nmt is not supported: WordPiece of BERT and"),
        ({"pre_tokenizer": _part(pre_tokenizers.Metaspace())}, "pre-tokenizer Metaspace before WordPiece is not"),
        ({"pre_tokenizer": None}, "pre-tokenizer none before WordPiece"),
        ({"post_processor": _part(processors.BertProcessing(("[END]", 3), ("[CLS]", 2)))}, r"lacks the special token"),
        ({"model": _part(models.Unigram([("a", 0.0)]))}, "model Unigram is not supported"),
        (
            {"model": _part(models.WordPiece({"a": 0}, unk_token="[UNK]"))},
            r"lacks the token for unknown words, \[UNK\]",
        ),
        ({"model": _part(models.BPE({"a": 0}, []))}, "lacks 255 of the 256 bytes: no byte-level BPE"),
        ({"model": _part(models.BPE({"a": 0}, [], end_of_word_suffix="</w>"))}, "lacks 511 of the 512 bytes"),
        ({"model": _part(models.BPE({"a": 0}, [], unk_token="a"))}, "BPE with unk_token is not supported"),
        ({"normalizer": _part(normalizers.Replace("a", "b"))}, "normalizer Replace is not supported"),
        (
            {
                "model": _part(models.BPE({"a": 0}, [])),
                "pre_tokenizer": _part(pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])),
            },
            "lacks 255 of the 256 bytes",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(changes, says):
    with pytest.raises(ValueError, match=says):
        ours(KINDS["word pieces"], **changes)


def test_lengths_and_padding_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="max_tokens must be at least 3, received 2"):
        ours(KINDS["bytes"], 2)
    with pytest.raises(ValueError, match="padding 400 is no id below 400"):
        JsonTokenizer(json.loads(KINDS["bytes"].to_str()), 400, 8)


def test_other_normalisers_are_the_librarys():
    library = Tokenizer.from_str(KINDS["bytes"].to_str())
    parts = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFC()]
    library.normalizer = normalizers.Sequence(parts)
    library.post_processor = processors.Sequence([processors.ByteLevel(), library.post_processor])
    for text in NASTY:
        assert ours(library).encode(text)[0].tolist() == theirs(library, text)
