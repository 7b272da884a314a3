"""A teacher that joins any number of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.networks.registry import NETWORKS, NetworkChoice, auto_network
from mst_edge.core.errors import UserError


@NETWORKS.register("fusion")
class Fusion(nn.Module):
    """One encoder per modality, their features side by side, then a two-layer head.

    Args:
        encoders: modality name to ``{network, options}``; ``auto`` with ``width`` where absent.
        width: width multiplier of the automatic encoders.
        dropout: on the joined features.
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
        self.encoders = nn.ModuleDict(
            {
                name: _encoder(name, shape, num_outputs, (encoders or {}).get(name), width)
                for name, shape in input_shapes.items()
            }
        )
        joined = sum(encoder.embedding_dim for encoder in self.encoders.values())  # type: ignore[misc]
        self.fused = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(joined, hidden)
        self.head = nn.Linear(hidden, num_outputs)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        parts = [encoder.embed(inputs[name]) for name, encoder in self.encoders.items()]  # type: ignore[operator]
        joined = self.dropout(self.fused(torch.cat(parts, dim=1)))
        return self.head(torch.relu(self.hidden(joined)))


def _encoder(
    name: str, shape: tuple[int, ...], num_outputs: int, said: Mapping[str, Any] | None, width: float
) -> nn.Module:
    choice = NetworkChoice(**said) if said else NetworkChoice()
    network, options = choice.network, dict(choice.options)
    if network == "auto":
        network = auto_network({name: shape})
        options.setdefault("width", width)
    encoder = NETWORKS.get(network)(shape, num_outputs, **options)
    if not hasattr(encoder, "embed"):
        raise UserError(f"{network} has no embed() and cannot be an encoder of a fusion teacher")
    # The encoder's own head is never used here: drop its weights.
    for unused in ("head", "fc", "fc2"):
        if hasattr(encoder, unused):
            setattr(encoder, unused, nn.Identity())
    return encoder
