"""Any encoder of Hugging Face as a network here: its body, what is pooled from it, and a head of the task's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from distill.huggingface.body import fitted_config, fresh_body, loaded_body, main_input, settings_of
from distill.huggingface.inputs import TEXT, reader_of
from distill.huggingface.source import Source
from distill.networks.encoders import Classifier
from distill.networks.registry import find_layer
from distill.networks.transformer import ChannelsFirst
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError, unknown_name

_UNKNOWN = "unknown"
Weights = Literal["own", "none"]
Pooling = Literal["auto", "first", "mean"]


class HuggingFace(Classifier):
    """The ``AutoModel`` of a folder or of a name on the hub, and a linear head with fresh weights.

    Weights come from safetensors only; code that a model brings along is never run. With the options in
    ``rebuilt_by`` it is built again without the model's files.

    Args:
        model: path or name, as after ``hf:``.
        config: what the model's ``config.json`` says; where given, nothing is read of ``model``.
        weights: its ``own``, or ``none``: the architecture alone, fitted to the features, with fresh weights.
        pooling: what is classified: the ``first`` token, or the ``mean`` over tokens or positions; ``auto`` is
            ``first`` for text and ``mean`` for the rest.
        dropout: before the head.
        frozen: dotted paths of layers that keep their weights.
        checkpointing: less memory in training, for a third more time (Chen and others, arXiv 1604.06174).
        licence: of the weights; by default as the model's card says.

    Raises:
        UserError: no such model, no transformers, weights that are no safetensors, or a tokenizer, a size or a layer
            that does not fit the model.
    """

    reads_tokens = None  # as the model does
    maskable = ("tokens", "pooled")

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        model: str = "",
        config: Mapping[str, Any] | None = None,
        weights: Weights = "own",
        pooling: Pooling = "auto",
        dropout: float = 0.1,
        frozen: Sequence[str] = (),
        checkpointing: bool = False,
        licence: str = "",
    ) -> None:
        super().__init__()
        _require_one_of("weights", weights, get_args(Weights))
        _require_one_of("pooling", pooling, get_args(Pooling))
        source, from_files = Source(model), config is None
        if config is None:
            config = fitted_config(source, input_shape) if weights == "none" else source.config()
            licence = licence or ("" if weights == "none" else source.licence() or _UNKNOWN)
        settings = settings_of(config)
        kind = main_input(settings)
        if (kind == TEXT) != isinstance(input_shape, TokenShape):
            raise ValueError(f"{settings.model_type} reads {kind}")
        loads = from_files and weights == "own"
        self.trunk = loaded_body(source, settings) if loads else fresh_body(settings)
        self.reader = reader_of(kind, self.trunk, input_shape)
        if loads:
            self.reader.require_as_trained(source)
        self._first = pooling == "first" or (pooling == "auto" and kind == TEXT)
        self.tokens, self.pooled = ChannelsFirst(), nn.Identity()
        self.embedding_dim = _width(settings)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)
        self.pretrained = ("trunk",) if loads else ()
        for path in frozen:
            find_layer(self, path, where="frozen").requires_grad_(False)
        if checkpointing:
            _checkpoint(self.trunk)
        self.rebuilt_by = {
            "config": dict(config),
            "pooling": pooling,
            "dropout": dropout,
            "frozen": list(frozen),
            "checkpointing": checkpointing,
            "licence": licence,
        }

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, embedding_dim)`` features."""
        hidden = self.trunk(**self.reader(x), return_dict=True).last_hidden_state
        # A convolution gives (batch, channels, height, width), a transformer (batch, tokens, channels).
        tokens = hidden.flatten(2) if hidden.ndim == 4 else self.tokens(hidden)
        pooled = tokens[:, :, 0] if self._first else self.reader.mean(tokens, x)
        return self.dropout(self.pooled(pooled))


def _width(settings: Any) -> int:
    return int(settings.neck_hidden_sizes[-1] if hasattr(settings, "neck_hidden_sizes") else settings.hidden_size)


def _checkpoint(body: Any) -> None:
    if not body.supports_gradient_checkpointing:
        raise UserError(f"{body.config.model_type} has no checkpointing", where="checkpointing", fix="leave it out")
    body.activation_checkpointing_enable({"use_reentrant": False})


def _require_one_of(option: str, said: object, choices: Sequence[str]) -> None:
    if said not in choices:
        raise unknown_name(option, said, choices, where=option)
