"""The teacher of VideoAdviser, as reconstructed here: class prompts that look at a video, and a number read from them.

That the published teacher (arXiv 2309.15494) is CLIP-based and works on "video-enhanced prompts" is known; its
equations are not. What follows is a reconstruction (docs/videoadviser.md). By default it is light enough for a CPU:
learned vectors stand for a language model's features of the prompts, small encoders for towers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from apps.runtime.tokenizer_json import JsonTokenizer
from distill.huggingface.source import PREFIX, source_of
from distill.networks.encoders import halving_stages, scaled
from distill.networks.fusion import make_encoder
from distill.networks.prompts import Integration, PromptGenerator
from distill.networks.registry import NETWORKS
from distill.networks.transformer import heads_of
from distill.step_distill import Distance, first_step
from distill.tasks.base import Task
from distill.tasks.ordinal import LabelMode, require_mode
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError

_PROMPT_TOKENS = 64  # where no text that is read says how many
_LOGIT_SCALE = math.log(1 / 0.07)  # CLIP's initial value, 2.6592


@NETWORKS.register("video_prompts")
class VideoPrompts(nn.Module):
    """Class logits ``s cos(v, e_k + PG(e_k, Z))``, and where a number is asked for, a regression head behind them.

    ``Z`` are tokens of everything that is no text (frames of a video, of sound, a vector), ``v`` what they are
    integrated to, ``e_k`` the prompts. The number is read from ``[v; sum_k sg[p_k] e'_k; h]`` with the enhanced prompts
    ``e'_k`` and the text's feature ``h``. It learns by ``own_losses``: the class head teaches the number (step 1).

    Args:
        classes: ordinal classes behind the one number, as many as ``ordinal`` in ``dataset.yaml`` has centres; 0 where
            the task itself is classification.
        width: multiplies the 64 values of a token.
        frames: a video, or any other sequence, is averaged to at most so many tokens, each of an equal stretch.
        depth: blocks that integrate the frames.
        prompt_layers: blocks of cross-attention from prompts to frames.
        reader: ``{network, options}`` of what reads the text, any network with ``embed``, such as an ``hf:`` model; a
            small ``text_transformer`` where absent.
        prompts: texts, one per class from the lowest on, for a ``reader`` of ``hf:``: its features of them are the
            prompts; learned vectors where absent.
        utterance: where a text goes: to the ``head`` of the number, to the ``prompts`` (appended to each), to
            ``both``, or to ``none``.
        hidden: values of the regression head's hidden layer.
        labels: what the class head learns of a number: ``round``, ``sdk`` or ``soft``; see ``class_targets``.
        number_weight, step_weight: of the label's and of the class head's say over the number (w_reg, w_1).
        distance: between the number and what the class head expects: ``mse``, ``l1`` or ``huber``.
        dropout: in encoders and before the heads.

    Raises:
        UserError: an option's value is impossible, or nothing but text is read.
    """

    multimodal = True
    class_space = "video"

    def __init__(
        self,
        input_shapes: Mapping[str, tuple[int, ...]],
        num_outputs: int,
        classes: int = 0,
        width: float = 1.0,
        frames: int = 8,
        depth: int = 1,
        prompt_layers: int = 2,
        reader: Mapping[str, Any] | None = None,
        prompts: Sequence[str] = (),
        utterance: Literal["head", "prompts", "both", "none"] = "head",
        hidden: int = 256,
        labels: LabelMode = "round",
        number_weight: float = 1.0,
        step_weight: float = 0.5,
        distance: Distance = "mse",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if utterance not in ("head", "prompts", "both", "none"):
            raise UserError(f"expected head, prompts, both or none, received {utterance!r}", where="utterance")
        text = {name: shape for name, shape in input_shapes.items() if isinstance(shape, TokenShape)}
        count = classes or num_outputs
        if prompts and len(prompts) != count:
            raise UserError(f"expected {count} texts, one per class, received {len(prompts)}", where="prompts")
        seen = {name: shape for name, shape in input_shapes.items() if name not in text}
        if not seen:
            raise UserError("video_prompts reads text alone, and has nothing that prompts could look at")
        dim = scaled(64, width, 16)
        self._labels, self._distance = labels, distance
        self._weights = number_weight, step_weight
        self._regresses = classes > 0
        self._text = next(iter(text), "") if utterance != "none" else ""
        self.streams = nn.ModuleDict({name: _Stream(shape, dim, frames, width) for name, shape in seen.items()})
        tokens = sum(stream.tokens for stream in self.streams.values())  # type: ignore[misc]
        self.integrate = Integration(tokens, dim, depth, dropout)
        self.video = nn.Identity()
        self.classes = count
        if not prompts:
            self.prompts = nn.Parameter(torch.randn(count, dim) * dim**-0.5)
        self.enhance = PromptGenerator(dim, heads_of(dim), prompt_layers, dropout)
        self.logit_scale = nn.Parameter(torch.tensor(_LOGIT_SCALE))
        shape = text.get(self._text) or (_shape_of_prompts(reader or {}) if prompts else None)
        if shape is not None:
            said = reader or {"network": "text_transformer", "options": {"width": width, "dropout": dropout}}
            self.reader: Any = make_encoder(shape, num_outputs, said, where="reader")
        if prompts:
            self.texts = _Texts(prompts, _tokenizer_of(reader or {}, shape), self.reader.embedding_dim, dim)
        if self._text and utterance in ("prompts", "both"):
            self.append = nn.Linear(self.reader.embedding_dim, dim)
        self._in_head = bool(self._text) and utterance in ("head", "both")
        if self._regresses:
            self.fused = nn.Identity()
            self.hidden = nn.Linear(2 * dim + (self.reader.embedding_dim if self._in_head else 0), hidden)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(hidden, num_outputs)

    @property
    def maskable(self) -> tuple[str, ...]:
        """Layers that MST-Distill may mask."""
        return ("fused", "hidden") if self._regresses else ("video",)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """``(B, num_outputs)``: the number, standardised, or class logits."""
        classes, number = self.advise(inputs)
        return classes if number is None else number

    def advise(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Class logits ``(B, K)``, and the number ``(B, 1)``, standardised; None where classes are all."""
        tokens = torch.cat([stream(inputs[name]) for name, stream in self.streams.items()], dim=1)
        video = self.video(self.integrate(tokens))
        text = self.reader.embed(inputs[self._text]) if self._text else None
        prompts = self.class_vectors()[None] + torch.zeros_like(tokens[:, :1])
        if text is not None and hasattr(self, "append"):
            prompts = prompts + self.append(text)[:, None]
        prompts = prompts + self.enhance(prompts, tokens)
        similar = functional.normalize(prompts, dim=2) @ functional.normalize(video, dim=1)[:, :, None]
        classes = self.logit_scale.exp() * similar[:, :, 0]
        if not self._regresses:
            return classes, None
        # The number's gradient does not reach the class head by way of its probabilities.
        chosen = (classes.detach().softmax(dim=1)[:, :, None] * prompts).sum(dim=1)
        parts = [video, chosen] if text is None or not self._in_head else [video, chosen, text]
        return classes, self.head(self.dropout(functional.gelu(self.hidden(self.fused(torch.cat(parts, dim=1))))))

    def class_vectors(self) -> Tensor:
        """``(K, dim)`` prompts before they looked at a video, in the space of ``video``."""
        return self.texts(self.reader) if hasattr(self, "texts") else self.prompts

    def require_task(self, task: Task) -> None:
        """Refuses data whose ordinal scale does not have as many classes as there are prompts."""
        centres = task.output.ordinal
        if task.name == "regression" and not centres:
            raise UserError(
                "video_prompts answers with a number by way of ordinal classes, and the data names none",
                fix="give their centres in dataset.yaml, for example ordinal: [-3, -2, -1, 0, 1, 2, 3]",
            )
        wanted = len(centres)
        if wanted != self.classes * self._regresses:
            raise UserError(
                f"expected {wanted}, the number of ordinal classes in the data, received "
                f"{self.classes * self._regresses}",
                where="classes",
            )
        if centres:
            try:
                require_mode(self._labels, centres)
            except UserError as error:
                raise UserError(error.problem, where="labels", fix=error.fix) from None

    def own_losses(self, inputs: Mapping[str, Tensor], target: Tensor, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
        """Step 1 where a number is asked for, else the task's loss."""
        classes, number = self.advise(inputs)
        if number is None:
            return classes, {"loss": task.loss(classes, target)}
        centres = torch.tensor(task.output.ordinal, device=number.device)
        losses = first_step(classes, task.outputs(number), target, centres, self._labels, self._distance)
        number_weight, step_weight = self._weights
        total = losses["classes"] + number_weight * losses["number"] + step_weight * losses["step"]
        return number, {"loss": total, **losses}


class _Texts(nn.Module):
    """Prompts as a reader understands their words: ``(classes, dim)``."""

    ids: Tensor

    def __init__(self, texts: Sequence[str], tokenizer: JsonTokenizer, features: int, dim: int) -> None:
        super().__init__()
        encoded = [tokenizer.encode(text) for text in texts]
        for text, (_, cut) in zip(texts, encoded, strict=True):
            if cut:
                raise UserError(
                    f"{text!r} has more than {tokenizer.max_tokens} tokens", where="prompts", fix="raise max_tokens"
                )
        self.register_buffer("ids", torch.from_numpy(np.stack([ids for ids, _ in encoded])), persistent=False)
        self.project = nn.Linear(features, dim)

    def forward(self, reader: Any) -> Tensor:
        return self.project(reader.embed(self.ids))


def _shape_of_prompts(reader: Mapping[str, Any]) -> TokenShape:
    """Where no text is read beside them."""
    tokenizer = _tokenizer_of(reader, None)
    return TokenShape(tokenizer.max_tokens, tokenizer.vocabulary, tokenizer.padding, tokenizer.identity)


def _tokenizer_of(reader: Mapping[str, Any], shape: TokenShape | None) -> JsonTokenizer:
    """The tokenizer of a model of Hugging Face.

    Raises:
        UserError: ``reader`` is none, and nothing can tell what words mean to it.
    """
    network = str(reader.get("network", ""))
    if not network.startswith(PREFIX):
        raise UserError(
            "only a language model tells what words mean before it is trained",
            where="prompts",
            fix="name one as reader, for example {network: hf:path-or-name}, or leave prompts out",
        )
    return source_of(network, "reader.network").tokenizer(_PROMPT_TOKENS if shape is None else shape[0])


class _Stream(nn.Module):
    """Features of one modality to ``(B, tokens, dim)``.

    ``(features,)`` are one token, of ``(channels, time)`` every stretch of time is one, of clips ``(channels, time,
    height, width)`` every stretch of frames; a map ``(channels, height, width)`` is a clip of one frame.
    """

    def __init__(self, shape: tuple[int, ...], dim: int, frames: int, width: float) -> None:
        super().__init__()
        self._shape = shape
        channels = shape[0]
        self.stages: nn.Module = nn.Identity()
        if len(shape) > 2:
            self.stages, channels = halving_stages((shape[0], *shape[-2:]), width)
        time = shape[1] if len(shape) in (2, 4) else 1
        self.tokens = min(frames, time)
        self.project = nn.Linear(channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        if len(self._shape) > 2:
            time = self._shape[1] if len(self._shape) == 4 else 1
            pictures = x.reshape(-1, self._shape[0], time, *self._shape[-2:]).transpose(1, 2).flatten(0, 1)
            x = self.stages(pictures).mean(dim=(2, 3)).unflatten(0, (-1, time)).transpose(1, 2)
        elif len(self._shape) == 1:
            x = x[:, :, None]
        return self.project(functional.adaptive_avg_pool1d(x, self.tokens).transpose(1, 2))
