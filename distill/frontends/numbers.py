"""Front ends of sequences and vectors of numbers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends.base import BASE, NoOptions, Standardiser


class SequenceScale(Standardiser):
    """``(B, time, channels)`` to ``(B, channels, time)``, standardised per channel."""

    kind = Kind.SEQUENCE
    Options = NoOptions
    code = (BASE, Path(__file__))

    def __init__(self, spec: ModalitySpec, options: NoOptions) -> None:
        time, channels = spec.shape
        super().__init__(spec, (channels, 1))
        self.feature_shape = (channels, time)

    def transform(self, raw: Tensor) -> Tensor:
        return raw.float().transpose(1, 2)


class VectorScale(Standardiser):
    """``(B, features)``, standardised per feature."""

    kind = Kind.VECTOR
    Options = NoOptions
    code = (BASE, Path(__file__))

    def __init__(self, spec: ModalitySpec, options: NoOptions) -> None:
        super().__init__(spec, spec.shape)
        self.feature_shape = spec.shape

    def transform(self, raw: Tensor) -> Tensor:
        return raw.float()
