"""A student that answers with cosines between its embedding and one stored vector per class."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.networks.fusion import make_encoder
from distill.networks.registry import NETWORKS, Deployable
from mst_edge.core.errors import UserError

TEMPERATURE = 0.07  # CLIP's initial one
_LEAST_NORM = 1e-6


@NETWORKS.register("class_matrix")
class ClassMatrix(nn.Module):
    """``logits = x W^T / temperature``: ``x`` is the projected embedding of an encoder, ``W`` a row per class, both of
    length 1.

    ``W`` is kept with the weights and does not learn: fresh, its rows are random directions; ``embedding_kd`` sets them
    to a teacher's. A class is added by adding a row (``distill.class_vectors.with_classes``).

    Args:
        encoder: ``{network, options}`` of the encoder, any network with ``embed``; ``auto`` where absent.
        dim: values of a class's vector.
        temperature: divides the cosines.
        licence: of the weights that the encoder started with; by default as the encoder says.

    Raises:
        UserError: the encoder does not exist or has no ``embed``, or a value is impossible.
    """

    reads_tokens = None  # as the encoder does
    maskable = ("project",)
    class_space = "embed"
    vectors: Tensor

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        encoder: Mapping[str, Any] | None = None,
        dim: int = 64,
        temperature: float = TEMPERATURE,
        licence: str = "",
    ) -> None:
        super().__init__()
        if dim < 1:
            raise UserError(f"expected 1 or more, received {dim}", where="dim")
        if temperature <= 0:
            raise UserError(f"expected more than 0, received {temperature}", where="temperature")
        said = encoder or {}
        inner: Any = make_encoder(input_shape, num_outputs, said, where="encoder")
        self.encoder = inner
        self.project = nn.Linear(inner.embedding_dim, dim)
        self.embedding_dim = dim
        self._temperature = temperature
        self.register_buffer("vectors", unit(torch.randn(num_outputs, dim)))
        options: Mapping[str, Any] = getattr(inner, "rebuilt_by", said.get("options", {}))
        self.rebuilt_by: dict[str, Any] = {
            "encoder": {"network": said.get("network", "auto"), "options": dict(options)},
            "dim": dim,
            "temperature": temperature,
            "licence": licence or options.get("licence", ""),
        }

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, dim)`` in the space of the class vectors; their length means nothing."""
        embed: Any = self.encoder.embed
        return self.project(embed(x))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(unit(self.embed(x)), self.vectors) / self._temperature

    def class_vectors(self) -> Tensor:
        """``(classes, dim)`` of length 1, in the space of ``embed``."""
        return self.vectors

    def deployed(self) -> ClassMatrix:
        """The same network around the encoder as that is deployed."""
        if not isinstance(self.encoder, Deployable):
            return self
        copied = copy.deepcopy(self)
        plain: Any = self.encoder.deployed()
        copied.encoder = plain
        encoder = {**self.rebuilt_by["encoder"], "options": dict(plain.rebuilt_by)}
        copied.rebuilt_by = {**self.rebuilt_by, "encoder": encoder}
        return copied

    @torch.no_grad()
    def set_vectors(self, rows: Tensor) -> None:
        """Takes ``(classes, dim)`` directions for the classes."""
        self.vectors.copy_(unit(rows))


def unit(x: Tensor) -> Tensor:
    """``(..., d)`` of length 1, along the last axis."""
    # functional.normalize would export as a graph that expands shapes as it runs.
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(_LEAST_NORM)
