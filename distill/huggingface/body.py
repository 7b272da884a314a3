"""Bodies of models: built from their config, with weights from safetensors or fresh ones."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill.huggingface.source import Source, transformers
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError, unknown_name

_ATTENTION, _UNKNOWN = "mst_edge", "unknown"
# What a config says of where it comes from, and nothing of what is built.
_ORIGIN = {"_name_or_path", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype"}
# Layers and stretches left out at random by generators that no checkpoint of a run keeps.
_NO_CHANCE = {"apply_spec_augment": False, "layerdrop": 0.0}


class Opened(NamedTuple):
    """A model that was opened.

    Attributes:
        body: the library's module.
        config: what it was built from; builds it again.
        licence: of its weights; empty where they are fresh.
    """

    body: Any
    config: Mapping[str, Any]
    licence: str


def open_body(
    source: Source,
    shapes: Sequence[tuple[int, ...]],
    config: Mapping[str, Any] | None,
    licence: str,
    *,
    loads: bool,
) -> Opened:
    """The body of a model.

    Args:
        shapes: of the features that it shall read.
        config: what it is built from, with fresh weights that others replace; None reads its files.
        licence: of the weights, where the user says it.
        loads: whether it has the model's own weights.

    Raises:
        UserError: no such model, one that the library lacks, or weights that are no safetensors.
    """
    if config is None:
        config = source.config() if loads else fitted_config(source.config(), shapes)
        if loads:
            body = loaded_body(source, settings_of(config))
            return Opened(body, config, licence or source.licence() or _UNKNOWN)
    return Opened(fresh_body(settings_of(config)), config, licence)


def fitted_config(said: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """A config with what its inputs prescribe as ``shapes`` have it: vocabulary, padding, picture, frames."""
    fitted = dict(said)
    for shape in shapes:
        text = isinstance(shape, TokenShape)
        part = "text_config" if text else "vision_config"
        own = _fitted_text(shape) if isinstance(shape, TokenShape) else _fitted_picture(shape)
        fitted = {**fitted, part: {**(said[part] or {}), **own}} if part in said else {**fitted, **own}
    return fitted


def _fitted_text(shape: TokenShape) -> dict[str, Any]:
    return {"vocab_size": shape.vocabulary, "pad_token_id": shape.padding}


def _fitted_picture(shape: tuple[int, ...]) -> dict[str, Any]:
    if len(shape) < 3:
        return {}
    channels, *frames, height, width = shape
    fitted: dict[str, Any] = {"num_channels": channels, "image_size": height if height == width else [height, width]}
    return {**fitted, "num_frames": frames[0]} if frames else fitted


def settings_of(config: Mapping[str, Any]) -> Any:
    """The library's object for a config.

    Raises:
        UserError: it names no architecture that the library has itself.
    """
    library = transformers()
    said = {key: value for key, value in config.items() if key not in _ORIGIN}
    kind = said.pop("model_type", None)
    known = library.models.auto.configuration_auto.CONFIG_MAPPING
    if kind not in known:
        known_names = [str(name) for name in known]
        raise unknown_name("model_type", kind, known_names)
    settings = library.AutoConfig.for_model(kind, **said)
    for name, value in _NO_CHANCE.items():
        if hasattr(settings, name):
            setattr(settings, name, value)
    return settings


def fresh_body(settings: Any) -> Any:
    """The body with fresh weights, from torch's generator."""
    return _class_of(settings)._from_config(settings, **_how(settings))


def loaded_body(source: Source, settings: Any) -> Any:
    """The body with the model's weights, in float32.

    Raises:
        UserError: there are none as safetensors, or some that the body needs are missing.
    """
    try:
        body, about = _class_of(settings).from_pretrained(
            source.name,
            config=settings,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **_how(settings),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{source.name} has no weights as safetensors that fit its config ({str(error).splitlines()[0]})",
            fix="write them with save_pretrained, or set weights: none",
        ) from None
    missing = sorted(about["missing_keys"])
    if missing:
        raise UserError(f"the weights of {source.name} lack {len(missing)} tensors of its body: {missing[0]} and so on")
    return body.train()


def has_towers(body: Any) -> bool:
    """Whether a model consists of one part for texts and one for what is seen, as CLIP and X-CLIP do."""
    return all(hasattr(body, name) for name in ("text_model", "vision_model", "text_projection", "visual_projection"))


def _class_of(settings: Any) -> Any:
    known = transformers().models.auto.modeling_auto.MODEL_MAPPING
    if type(settings) not in known:
        raise UserError(f"{settings.model_type} has no body of its own", fix="name a model that AutoModel can build")
    return known[type(settings)]


def _how(settings: Any) -> dict[str, Any]:
    cls = _class_of(settings)
    pools = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    plain = cls._can_set_attn_implementation()
    if plain:
        _register_attention()
    return {
        "attn_implementation": _ATTENTION if plain else "eager",
        **({"add_pooling_layer": False} if pools else {}),
    }


@functools.cache
def _register_attention() -> None:
    transformers().AttentionInterface.register(_ATTENTION, _attention)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_unused: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention (Vaswani and others, arXiv 1706.03762), ``(B, heads, T, d)`` to ``(B, T, heads, d)``.

    A mask is true where a token may be attended to. It is filled in, not added: eight bits hold no scores beside a
    very small number.
    """
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = nn.functional.dropout(torch.softmax(scores, dim=-1), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
