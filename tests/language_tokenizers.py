"""Small tokenizers of language models, learned on the spot by the library ``tokenizers``."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers


def word_piece(texts: Iterable[str], size: int = 400, *, lowercase: bool = True) -> Tokenizer:
    """As BERT's and DistilBERT's: ``[PAD]`` is 0."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return made


def byte_level(texts: Iterable[str], size: int = 400, *, prefix: bool = False) -> Tokenizer:
    """As RoBERTa's: ``<pad>`` is 1, ``<mask>`` swallows the spaces before it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    special = [*(AddedToken(name, normalized=True) for name in ("<s>", "<pad>", "</s>", "<unk>"))]
    special.append(AddedToken("<mask>", lstrip=True))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    )
    made.post_processor = processors.RobertaProcessing(
        ("</s>", made.token_to_id("</s>")), ("<s>", made.token_to_id("<s>")), add_prefix_space=prefix
    )
    return made


def clip(texts: Iterable[str], size: int = 700) -> Tokenizer:
    """As CLIP's: lower case, bytes that end a word are tokens of their own, ``<|endoftext|>`` also fills up."""
    pattern = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    parts = [pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)]
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size - 514, end_of_word_suffix="</w>"))
    merges = [tuple(pair) for pair in json.loads(made.to_str())["model"]["merges"]]
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"{char}</w>" for char in alphabet), *("".join(pair) for pair in merges), *special]
    vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
    made.model = models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=special[1])
    made.add_special_tokens(special)
    start, end = ((name, vocab[name]) for name in special)
    made.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    return made
