"""From features as they are here to what a model of Hugging Face takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.huggingface.source import Source
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError

TEXT, PICTURE, WAVE = "input_ids", "pixel_values", "input_values"
_LEAST_DEVIATION = 1e-7  # of a waveform; the library's


class Reader(nn.Module):
    """``(batch, *shape)`` features to the model's keyword arguments."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def require_as_trained(self, source: Source) -> None:
        """Refuses features that are not those that the model's weights were trained on.

        Raises:
            UserError: says what differs.
        """

    def mean(self, tokens: Tensor, x: Tensor) -> Tensor:
        """``(batch, channels)`` of ``(batch, channels, tokens)``."""
        return tokens.mean(dim=2)


class TextReader(Reader):
    """Token ids, told from padding; positions are counted from the left.

    Raises:
        UserError: the tokenizer has more ids than the model, or texts are longer than the model's.
    """

    positions: Tensor
    segments: Tensor

    def __init__(self, body: Any, shape: TokenShape) -> None:
        super().__init__()
        settings = body.config
        (tokens,) = shape
        self._shape = shape
        if shape.vocabulary > settings.vocab_size:
            raise UserError(
                f"the tokenizer has {shape.vocabulary} ids, the embedding of the {settings.model_type} model "
                f"{settings.vocab_size}",
                fix="take the model's own tokenizer, or set weights: none",
            )
        # RoBERTa and its kin count positions from behind the id for padding.
        self._told = hasattr(getattr(body, "embeddings", None), "create_position_ids_from_input_ids")
        first = settings.pad_token_id + 1 if self._told else 0
        if first + tokens > settings.max_position_embeddings:
            raise UserError(
                f"{tokens} tokens are more than the {settings.max_position_embeddings - first} that the "
                f"{settings.model_type} model has positions for",
                fix="lower max_tokens",
            )
        self._segmented = getattr(settings, "type_vocab_size", 0) > 0
        self.register_buffer("positions", torch.arange(first, first + tokens)[None], persistent=False)
        self.register_buffer("segments", torch.zeros(1, tokens, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        visible = x != self._shape.padding
        return {
            TEXT: x.long(),
            "attention_mask": visible[:, None, None, :],
            **({"position_ids": self.positions} if self._told else {}),
            **({"token_type_ids": self.segments} if self._segmented else {}),
        }

    def require_as_trained(self, source: Source) -> None:
        own = source.tokenizer(self._shape[0])
        if own.identity != self._shape.identity:
            raise UserError(
                f"the weights of {source.name} were trained with another tokenizer than makes the token ids here",
                fix=f"set the modality's tokenizer to hf:{source.name}, or take a model with the others' tokenizer",
            )

    def mean(self, tokens: Tensor, x: Tensor) -> Tensor:
        counted = (x != self._shape.padding).to(tokens.dtype)
        return (tokens * counted[:, None]).sum(dim=2) / counted.sum(dim=1, keepdim=True).clamp(min=1)


class PictureReader(Reader):
    """``(batch, channels, height, width)``.

    Raises:
        UserError: the model was made for pictures of another size.
    """

    def __init__(self, body: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        settings = body.config
        channels, *sides = shape
        fixed = [settings.image_size] * 2 if isinstance(settings.image_size, int) else list(settings.image_size)
        if channels != settings.num_channels or (_has_positions(body) and sides != fixed):
            raise UserError(
                f"pictures of {channels} x {sides[0]} x {sides[1]}, but the {settings.model_type} model reads "
                f"{settings.num_channels} x {fixed[0]} x {fixed[1]}",
                fix="prepare the pictures in that size, or set weights: none",
            )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {PICTURE: x}


def _has_positions(body: Any) -> bool:
    return any("position_embedding" in name for name, _ in body.named_parameters())


class WaveReader(Reader):
    """``(batch, 1, samples)`` to waveforms of mean 0 and deviation 1 each, as wav2vec 2 was trained on."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError("a waveform has one channel")
        self._samples = shape[1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        wave = x.reshape(-1, self._samples)
        centred = wave - wave.mean(dim=1, keepdim=True)
        return {WAVE: centred / (centred.square().mean(dim=1, keepdim=True) + _LEAST_DEVIATION).sqrt()}


def reader_of(kind: str, body: Any, shape: tuple[int, ...]) -> Reader:
    """What turns features of ``shape`` into the input called ``kind``.

    Raises:
        ValueError: nothing here does.
    """
    if kind == TEXT and isinstance(shape, TokenShape):
        return TextReader(body, shape)
    if kind == PICTURE and len(shape) == 3:
        return PictureReader(body, shape)
    if kind == WAVE:
        return WaveReader(shape)
    raise ValueError(f"{body.config.model_type} reads {kind}")
