"""A teacher that joins any number of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.networks.auto import AUTO, resolve
from distill.networks.registry import NETWORKS, NetworkChoice, require_options, require_readable
from mst_edge.core.errors import UserError, unknown_name


@NETWORKS.register("fusion")
class Fusion(nn.Module):
    """One encoder per modality, their features side by side, then a two-layer head.

    Args:
        encoders: modality name to ``{network, options}``, any network with ``embed``; ``auto`` with ``width`` where
            absent.
        width: width multiplier of the automatic encoders.
        hidden: features of the head's first layer.
        dropout: on the joined features.

    Raises:
        UserError: ``encoders`` names a modality, network or option that does not exist, or a network without ``embed``.
    """

    multimodal = True
    maskable = ("fused", "hidden")

    def __init__(
        self,
        input_shapes: Mapping[str, tuple[int, ...]],
        num_outputs: int,
        encoders: Mapping[str, Mapping[str, Any]] | None = None,
        width: float = 1.0,
        hidden: int = 128,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        said = encoders or {}
        for name in said:
            if name not in input_shapes:
                raise unknown_name("modality", name, input_shapes, where="encoders")
        self.encoders = nn.ModuleDict(
            {
                name: make_encoder(shape, num_outputs, said.get(name, {}), width, where=f"encoders.{name}")
                for name, shape in input_shapes.items()
            }
        )
        joined = sum(encoder.embedding_dim for encoder in self.encoders.values())  # type: ignore[misc]
        self.fused = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(joined, hidden)
        self.head = nn.Linear(hidden, num_outputs)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.join(self.parts(inputs))

    def parts(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By modality, what its encoder makes of it: ``(batch, features)``."""
        return {name: encoder.embed(inputs[name]) for name, encoder in self.encoders.items()}  # type: ignore[operator]

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Logits of the modalities' parts."""
        joined = self.dropout(self.fused(torch.cat([parts[name] for name in self.encoders], dim=1)))
        return self.head(torch.relu(self.hidden(joined)))


def make_encoder(
    shape: tuple[int, ...], num_outputs: int, said: Mapping[str, Any], width: float = 1.0, *, where: str
) -> nn.Module:
    """A network for one modality without its head, for what its ``embed`` gives.

    Args:
        said: ``{network, options}``; ``auto`` where absent. width: of ``auto``, where ``said`` names no size.
        where: the option that says it, for errors.

    Raises:
        UserError: an unknown network, option or key, or a network without ``embed``.
    """
    choice = _choice(said, where)
    options = dict(choice.options)
    if choice.network == AUTO and "size" not in options:
        options.setdefault("width", width)
    network, options = resolve(choice.network, options, {"features": shape}, where=where)
    cls = NETWORKS.get(network, where=f"{where}.network")
    if not hasattr(cls, "embed") or getattr(cls, "multimodal", False):
        raise UserError(f"{network} cannot be an encoder", where=where, fix="name one for one modality, with embed()")
    require_options(cls, options, f"{where}.options")
    require_readable(cls, shape)
    try:
        encoder: nn.Module = cls(shape, num_outputs, **options)
    except UserError as error:
        place = f"{where}.options.{error.where}" if error.where else f"{where}.network"
        raise UserError(error.problem, where=place, fix=error.fix) from error
    # The encoder's own head is never used here: drop its weights.
    for unused in ("head", "fc", "fc2"):
        if hasattr(encoder, unused):
            setattr(encoder, unused, nn.Identity())
    return encoder


def _choice(said: Mapping[str, Any], where: str) -> NetworkChoice:
    for key in said:
        if key not in ("network", "options"):
            raise unknown_name("key", key, ("network", "options"), where=where)
    return NetworkChoice(**said)
