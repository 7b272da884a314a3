"""Options that all networks of Hugging Face have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from distill.networks.registry import find_layer
from mst_edge.core.errors import UserError, unknown_name

Origin = Literal["own", "none"]


def keep_weights(module: nn.Module, frozen: Sequence[str]) -> None:
    """Stops learning in the layers at these dotted paths.

    Raises:
        UserError: there is no such layer.
    """
    for path in frozen:
        find_layer(module, path, where="frozen").requires_grad_(False)


def compute_again(body: Any) -> None:
    """Lets a model compute again in the backward pass what it would keep in memory.

    Raises:
        UserError: it cannot.
    """
    if not body.supports_gradient_checkpointing:
        raise UserError(f"{body.config.model_type} has no checkpointing", where="checkpointing", fix="leave it out")
    body.activation_checkpointing_enable({"use_reentrant": False})


def require_one_of(option: str, said: object, choices: Sequence[str]) -> None:
    """Refuses an option's value that is not among its choices.

    Raises:
        UserError: names the closest.
    """
    if said not in choices:
        raise unknown_name(option, said, choices, where=option)
