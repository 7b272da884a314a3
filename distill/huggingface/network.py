"""Any encoder of Hugging Face as a network here: its body, what is pooled from it, and a head of the task's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from distill.huggingface.adapters import adapt, lora_options, merge, parse_lora
from distill.huggingface.body import has_towers, open_body
from distill.huggingface.choices import Origin, compute_again, keep_weights, require_one_of
from distill.huggingface.inputs import (
    PICTURE,
    TEXT,
    TextReader,
    input_facts,
    reader_of,
    require_own_tokenizer,
)
from distill.huggingface.pair import HuggingFacePair
from distill.huggingface.source import Source
from distill.networks.encoders import Classifier
from distill.networks.registry import blank_features
from distill.networks.transformer import ChannelsFirst
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError

Pooling = Literal["auto", "first", "mean", "own"]


class HuggingFace(Classifier):
    """The ``AutoModel`` of a folder or of a name on the hub, and a linear head with fresh weights.

    Weights come from safetensors only; code that a model brings along is never run. Of a model of several towers the
    one that reads such features is taken. With the options in ``rebuilt_by`` it is built again without the model's
    files.

    Args:
        model: path or name, as after ``hf:``.
        config: what the model's ``config.json`` says; where given, nothing is read of ``model``.
        weights: its ``own``, or ``none``: the architecture alone, fitted to the features, with fresh weights.
        pooling: what is classified: the ``first`` token, the ``mean`` over tokens or positions, or what a tower's
            ``own`` model pools and projects; ``auto`` is ``own`` for a tower with its own weights, ``first`` for
            other texts and ``mean`` for the rest.
        dropout: before the head.
        frozen: dotted paths of layers that keep their weights.
        checkpointing: less memory in training, for a third more time (Chen and others, arXiv 1604.06174).
        licence: of the weights; by default as the model's card says.
        processor: whether its ``own`` decides in which numbers own weights see pictures and sounds, or ``none``.
        prepared: what the processor does to features; where given, it is not asked.
        lora: adapters that learn in place of the model's weights: ``rank``, ``alpha``, ``dropout``, ``layers``.
        weights_sha256: of the weights that the adapters were trained beside.

    Raises:
        UserError: no such model, no transformers, weights that are no safetensors, or a tokenizer, a size, a rate or
            a layer that does not fit the model.
    """

    reads_tokens = None  # as the model does
    maskable = ("tokens", "pooled")
    prepares = ("reader",)
    of_several = HuggingFacePair

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        model: str = "",
        config: Mapping[str, Any] | None = None,
        weights: Origin = "own",
        pooling: Pooling = "auto",
        dropout: float = 0.1,
        frozen: Sequence[str] = (),
        checkpointing: bool = False,
        licence: str = "",
        processor: Origin = "own",
        prepared: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        weights_sha256: str = "",
    ) -> None:
        super().__init__()
        require_one_of("weights", weights, get_args(Origin))
        require_one_of("processor", processor, get_args(Origin))
        require_one_of("pooling", pooling, get_args(Pooling))
        source, loads = Source(model), config is None and weights == "own"
        adapters = None if lora is None else parse_lora(lora, source, weights_sha256, loads=loads)
        opened = open_body(source, [input_shape], config, licence, loads=loads)
        self.trunk, self.projection, kind, tower = _part(opened.body, input_shape)
        if (kind == TEXT) != isinstance(input_shape, TokenShape):
            raise ValueError(f"{self.trunk.config.model_type} reads {kind}")
        self.reader = reader_of(kind, self.trunk, input_shape, causal=tower)
        if loads and processor == "own" and prepared is None:
            prepared = input_facts(kind, source, input_shape)
        if prepared:
            self.reader.follow(prepared)
        if loads and isinstance(input_shape, TokenShape):
            require_own_tokenizer(source, input_shape)
        self._pooling = _resolved(pooling, tower and loads, kind)
        if self._pooling == "own" and not tower:
            raise UserError("the model has no pooling of its own here", where="pooling", fix="use first or mean")
        if self._pooling != "own":
            self.projection = nn.Identity()
        self.tokens, self.pooled = ChannelsFirst(), nn.Identity()
        self.embedding_dim = self._width(input_shape)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)
        # What adapters stand beside does not learn.
        self.pretrained = ("trunk", "projection") if loads and adapters is None else ()
        keep_weights(self, frozen)
        if adapters is not None:
            adapt(self, adapters)
        if checkpointing:
            compute_again(self.trunk)
        self._config = {"config": dict(opened.config)}
        self.rebuilt_by = {
            **(self._config if adapters is None else lora_options(adapters, source)),
            "pooling": self._pooling,
            "dropout": dropout,
            "frozen": list(frozen),
            "checkpointing": checkpointing,
            "licence": opened.licence,
            "prepared": dict(prepared or {}),
        }

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, embedding_dim)`` features."""
        hidden = self.trunk(**self.reader(x), return_dict=True).last_hidden_state
        # A convolution gives (batch, channels, height, width), a transformer (batch, tokens, channels).
        tokens = hidden.flatten(2) if hidden.ndim == 4 else self.tokens(hidden)
        return self.dropout(self.projection(self.pooled(self._pool(tokens, x))))

    def deployed(self) -> HuggingFace:
        """The same network with plain weights: what adapters learned is added to those beside them."""
        if "lora" not in self.rebuilt_by:
            return self
        merged = copy.deepcopy(self)
        merge(merged)
        beside = ("model", "lora", "weights_sha256")
        merged.rebuilt_by = {
            **self._config,
            **{key: said for key, said in self.rebuilt_by.items() if key not in beside},
        }
        return merged

    def _pool(self, tokens: Tensor, x: Tensor) -> Tensor:
        """``(batch, channels)`` of ``(batch, channels, tokens)``."""
        if self._pooling == "mean":
            return self.reader.mean(tokens, x)
        if self._pooling == "own" and isinstance(self.reader, TextReader):
            return self.reader.end(tokens, x)
        first = tokens[:, :, 0]
        return self.trunk.post_layernorm(first) if self._pooling == "own" else first

    @torch.no_grad()
    def _width(self, shape: tuple[int, ...]) -> int:
        """Channels of what is pooled, which not every config says."""
        self.eval()
        self.dropout = nn.Dropout(0.0)
        blank = blank_features({"x": shape}, next(self.trunk.parameters()).device)["x"]
        width = int(self.embed(blank).shape[1])
        self.train()
        return width


def _part(body: Any, shape: tuple[int, ...]) -> tuple[Any, nn.Module, str, bool]:
    """Of a model what reads features of ``shape``: trunk, projection, the name of its input, whether it is a tower."""
    if not has_towers(body):
        return body, nn.Identity(), str(body.main_input_name), False
    if isinstance(shape, TokenShape):
        return body.text_model, body.text_projection, TEXT, True
    if len(shape) != 3:
        raise ValueError(f"{body.config.model_type} reads texts and pictures")
    return body.vision_model, body.visual_projection, PICTURE, True


def _resolved(pooling: Pooling, own: bool, kind: str) -> Pooling:
    if pooling != "auto":
        return pooling
    return "own" if own else "first" if kind == TEXT else "mean"
