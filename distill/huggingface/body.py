"""Bodies of models: built from their config, with weights from safetensors or fresh ones."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.huggingface.source import Source, transformers
from distill.tokens import TokenShape
from mst_edge.core.errors import UserError, unknown_name

_ATTENTION = "mst_edge"
# What a config says of where it comes from, and nothing of what is built.
_ORIGIN = {"_name_or_path", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype"}
# Layers and stretches left out at random by generators that no checkpoint of a run keeps.
_NO_CHANCE = {"apply_spec_augment": False, "layerdrop": 0.0}


def fitted_config(source: Source, shape: tuple[int, ...]) -> dict[str, Any]:
    """The model's config with what its input prescribes as ``shape`` has it: vocabulary, padding, picture."""
    said = source.config()
    if isinstance(shape, TokenShape):
        return {**said, "vocab_size": shape.vocabulary, "pad_token_id": shape.padding}
    if len(shape) == 3:
        sides = shape[1] if shape[1] == shape[2] else list(shape[1:])
        return {**said, "num_channels": shape[0], "image_size": sides}
    return said


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


def main_input(settings: Any) -> str:
    """What the model's input is called: ``input_ids``, ``pixel_values``, ``input_values``."""
    return str(_class_of(settings).main_input_name)


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
