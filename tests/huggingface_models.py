"""Tiny models of Hugging Face with random weights, written to folders as ``save_pretrained`` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from distill.huggingface.source import transformers

DISTILBERT = {
    "model_type": "distilbert",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "initializer_range": 0.2,
}
ROBERTA = {
    "model_type": "roberta",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "type_vocab_size": 1,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
}


def write_model(folder: Path, config: dict[str, Any], tokenizer: Tokenizer | None = None, pad: str = "[PAD]") -> Path:
    """A folder with config, weights and, for a model that reads text, its tokenizer."""
    folder.mkdir(parents=True)
    said = dict(config)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
        said = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": tokenizer.token_to_id(pad), **said}
    library = transformers()
    torch.manual_seed(0)
    library.AutoModel.from_config(library.AutoConfig.for_model(**said)).save_pretrained(folder)
    return folder
