"""From features as they are here to what a model of Hugging Face takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.huggingface.processor import LEAST_VARIANCE, picture_input, wave_input
from distill.huggingface.source import Source
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError

TEXT, PICTURE, WAVE = "input_ids", "pixel_values", "input_values"
_LEGACY_END = 2  # CLIP's configs of 2021 say so, and mean the highest id
Said = Mapping[str, Any]


class Reader(nn.Module):
    """``(batch, *shape)`` features to the model's keyword arguments."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def follow(self, said: Said) -> None:
        """Does from now on what the model's processor does, as ``input_facts`` says it."""

    def mean(self, tokens: Tensor, x: Tensor) -> Tensor:
        """``(batch, channels)`` of ``(batch, channels, tokens)``."""
        return tokens.mean(dim=2)


class TextReader(Reader):
    """Token ids, told from padding; positions are counted from the left. A causal model sees those to the left alone.

    Raises:
        UserError: the tokenizer has more ids than the model, or texts are longer than the model's.
    """

    positions: Tensor
    segments: Tensor
    earlier: Tensor

    def __init__(self, body: Any, shape: TokenShape, *, causal: bool = False) -> None:
        super().__init__()
        settings = body.config
        (tokens,) = shape
        self._shape, self._causal, self._end = shape, causal, int(getattr(settings, "eos_token_id", None) or 0)
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
        earlier = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
        self.register_buffer("earlier", earlier, persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        # Padding comes last, where causal attention does not look.
        visible = self.earlier if self._causal else (x != self._shape.padding)[:, None, None, :]
        return {
            TEXT: x.long(),
            "attention_mask": visible,
            **({"position_ids": self.positions} if self._told else {}),
            **({"token_type_ids": self.segments} if self._segmented else {}),
        }

    def mean(self, tokens: Tensor, x: Tensor) -> Tensor:
        counted = (x != self._shape.padding).to(tokens.dtype)
        return (tokens * counted[:, None]).sum(dim=2) / counted.sum(dim=1, keepdim=True).clamp(min=1)

    def end(self, tokens: Tensor, x: Tensor) -> Tensor:
        """``(batch, channels)`` of the first token that ends a text, as CLIP pools."""
        end = x.amax(dim=1, keepdim=True) if self._end == _LEGACY_END else torch.full_like(x, self._end)
        ends = torch.eq(x, end)
        first = ends & (ends.cumsum(dim=1) == 1)
        return (tokens * first.to(tokens.dtype)[:, None]).sum(dim=2)


class PictureReader(Reader):
    """``(batch, channels, height, width)``.

    Raises:
        UserError: the model was made for pictures of another size.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, body: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        settings = body.config
        channels, *sides = shape[0], *shape[-2:]
        made = getattr(settings, "image_size", None)
        fixed = [made] * 2 if isinstance(made, int) else list(made or sides)
        if channels != settings.num_channels or (_has_positions(body) and sides != fixed):
            raise UserError(
                f"pictures of {channels} x {sides[0]} x {sides[1]}, but the {settings.model_type} model reads "
                f"{settings.num_channels} x {fixed[0]} x {fixed[1]}",
                fix="prepare the pictures in that size, or set weights: none",
            )
        self._scales = self._reversed = False

    def follow(self, said: Said) -> None:
        self._scales, self._reversed = bool(said["scale"]), bool(said["reversed"])
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.tensor(said[name]).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x * self.scale + self.shift if self._scales else x
        return {PICTURE: x.flip(1) if self._reversed else x}


class VideoReader(PictureReader):
    """``(batch, channels, time, height, width)`` to its frames, one after another.

    Raises:
        UserError: the model was made for pictures of another size, or for another number of them.
    """

    def __init__(self, body: Any, shape: tuple[int, ...]) -> None:
        super().__init__(body, shape)
        self._shape, frames = shape, body.config.num_frames
        if shape[1] != frames:
            raise UserError(
                f"videos of {shape[1]} frames, but the {body.config.model_type} model reads {frames}",
                fix="prepare the videos with so many frames, or set weights: none",
            )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        channels, _, height, width = self._shape
        return super().forward(x.transpose(1, 2).reshape(-1, channels, height, width))


def _has_positions(body: Any) -> bool:
    return any("position_embedding" in name for name, _ in body.named_parameters())


class WaveReader(Reader):
    """``(batch, 1, samples)`` to waveforms, of mean 0 and deviation 1 each where no processor says otherwise."""

    minus_mean: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) != 2 or shape[0] != 1:
            raise ValueError("a waveform has one channel; of sounds, set features: raw")
        self._samples = shape[1]
        self.register_buffer("minus_mean", torch.full((shape[1], 1), -1 / shape[1]), persistent=False)
        self._said: Said = {"scale": [], "each": True, "epsilon": LEAST_VARIANCE}

    def follow(self, said: Said) -> None:
        self._said = dict(said)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        wave = x.reshape(-1, self._samples)
        if self._said["scale"]:
            wave = wave * self._said["scale"][0] + self._said["shift"][0]
        if not self._said["each"]:
            return {WAVE: wave}
        # Written so that OpenVINO finds no normalisation in it, and no factor to move: what it would put in its place
        # runs in bf16.
        centred = wave + wave @ self.minus_mean
        variance = (centred * centred + self._said["epsilon"]).mean(dim=1, keepdim=True)
        return {WAVE: centred * variance.pow(-0.5)}


def input_facts(kind: str, source: Source, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a model's processor does to features of ``shape``, as a reader follows it; to texts, nothing.

    Raises:
        UserError: it does not fit the features.
        ValueError: nobody knows how the features were made.
    """
    if kind == PICTURE:
        return picture_input(source, shape)
    if kind == WAVE:
        return wave_input(source, shape)
    return {}


def require_own_tokenizer(source: Source, shape: TokenShape) -> None:
    """Refuses token ids that the model's weights were not trained on.

    Raises:
        UserError: they are of another tokenizer.
    """
    if source.tokenizer(shape[0]).identity != shape.identity:
        raise UserError(
            f"the weights of {source.name} were trained with another tokenizer than makes the token ids here",
            fix=f"set the modality's tokenizer to hf:{source.name}, or take a model with the others' tokenizer",
        )


def reader_of(kind: str, body: Any, shape: tuple[int, ...], *, causal: bool = False) -> Reader:
    """What turns features of ``shape`` into the input called ``kind``.

    Args:
        causal: of a text model, whether tokens see only those before them.

    Raises:
        ValueError: nothing here does.
    """
    if kind == TEXT and isinstance(shape, TokenShape):
        return TextReader(body, shape, causal=causal)
    if kind == PICTURE and len(shape) in (3, 4):
        return (PictureReader if len(shape) == 3 else VideoReader)(body, shape)
    if kind == WAVE:
        return WaveReader(shape)
    raise ValueError(f"{body.config.model_type} reads {kind}")
