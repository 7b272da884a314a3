"""What a front end is, and one that standardises numbers."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apps.runtime.tokenizer import AnyTokenizer
from distill.datasets.spec import Kind, ModalitySpec
from distill.shapes import NumberShape

BASE = Path(__file__)
_MIN_STD = 1e-4


class Frontend(nn.Module):
    """Base of all front ends. ``forward`` takes what ``host`` returns, with a batch axis, as the graph does.

    Attributes:
        graph_shape, graph_dtype: of one sample as the graph takes it.
        feature_shape, feature_dtype: of one sample as networks read it; numbers have a ``NumberShape`` once it is known
            how they are standardised.
        tokenizer: what the host part consists of, where there is one; None before it was fitted.
        augmented_as: kind of modality whose augmentations its features take, where it is not its own.
        code: the files whose text decides what the features of a sample are.
        fitted: buffers that ``fit`` sets.
        pinned: what ``fit`` would learn was given, for good; ``fit`` changes nothing then.
        in_place: whether features are no more than the sample's own values: they are computed batch by batch then.
        moves: whether training may move what is seen: the last two axes of the features are those of one picture.
    """

    kind: ClassVar[Kind]
    augmented_as: ClassVar[Kind | None] = None
    code: tuple[Path, ...] = (BASE,)
    fitted: ClassVar[tuple[str, ...]] = ()
    feature_dtype: ClassVar[str] = "float32"
    graph_shape: tuple[int, ...]
    graph_dtype: str
    feature_shape: tuple[int, ...]
    tokenizer: AnyTokenizer | None = None
    pinned = False
    in_place = False
    moves = True

    def host(self, raw: NDArray[Any]) -> NDArray[Any]:
        """What reaches the graph, ``(batch, *graph_shape)``, of samples as ``Dataset.read`` delivers them."""
        return raw

    def use(self, tokenizer: AnyTokenizer) -> None:
        """Takes a tokenizer that was fitted before."""
        raise TypeError(f"{type(self).__name__} has no tokenizer")

    @abstractmethod
    def fit(self, blocks: Iterable[Any]) -> None:
        """Learns from the training split: blocks of its raw samples, one in memory at a time."""

    @abstractmethod
    def learned(self) -> dict[str, Any]:
        """What ``fit`` learned, JSON-able."""

    @abstractmethod
    def pin(self, learned: Mapping[str, Any]) -> bool:
        """Takes what another front end learned for good, as a trained network expects it.

        Returns:
            False where something else is pinned already.

        Raises:
            ValueError: it does not fit the data; says how.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what ``fit`` learned into ``folder``."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Takes what ``save`` wrote."""

    def key(self) -> list[object]:
        """JSON-able: what features depend on beside the data and the code."""
        constants = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            if self.pinned or name not in self.fitted:
                constants.update(name.encode() + value.numpy().tobytes())
        return [type(self).__qualname__, list(self.feature_shape), constants.hexdigest()]


class Standardiser(Frontend):
    """Standardises features to mean 0 and deviation 1 over the training split, in the graph.

    Subclasses write ``transform`` and the axes that share one mean.
    """

    fitted = ("scale", "shift")
    scale: Tensor
    shift: Tensor

    def __init__(self, spec: ModalitySpec, stats_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.graph_shape = spec.shape
        self.graph_dtype = "uint8" if spec.dtype == "uint8" else "float32"
        self._rate_hz = spec.sample_rate_hz
        self.register_buffer("scale", torch.ones(stats_shape))
        self.register_buffer("shift", torch.zeros(stats_shape))

    @abstractmethod
    def transform(self, raw: Tensor) -> Tensor:
        """Raw batch to features, before standardisation."""

    def forward(self, raw: Tensor) -> Tensor:
        # Written as OpenVINO would rewrite it: what it rewrites loses the mark that keeps it in f32.
        return self.transform(raw) * self.scale + self.shift

    @torch.no_grad()
    def fit(self, blocks: Iterable[Any]) -> None:
        """Sets scale and shift from raw blocks; sums in float64, one block in memory at a time.

        Changes nothing where they are pinned.
        """
        if self.pinned:
            return
        shape = self.scale.shape
        count, total, squares = 0, torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        for raw in blocks:
            values = self.transform(torch.as_tensor(raw)).double()
            axes = [0, *(axis + 1 for axis, size in enumerate(shape) if size == 1)]
            total += values.sum(dim=axes, keepdim=True)[0].reshape(shape)
            squares += values.square().sum(dim=axes, keepdim=True)[0].reshape(shape)
            count += values.numel() // max(1, math.prod(shape))
        mean = total / count
        # A constant feature has no deviation: it is centred and left at its scale.
        deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
        scale = 1 / deviation.clamp_min(_MIN_STD)
        self.scale.copy_(scale)
        self.shift.copy_(-mean * scale)
        self._tell()

    def _tell(self) -> None:
        """Lets the features' shape say how they are standardised."""
        self.feature_shape = self.shape_under(**self.learned())

    def shape_under(self, scale: Sequence[float], shift: Sequence[float]) -> NumberShape:
        """The features' shape, were they standardised by these constants."""
        full = 255.0 if self.graph_dtype == "uint8" else 1.0
        return NumberShape(self.feature_shape, scale, shift, full, self._rate_hz)

    def learned(self) -> dict[str, Any]:
        return {name: [float(value) for value in getattr(self, name).flatten().tolist()] for name in self.fitted}

    def pin(self, learned: Mapping[str, Any]) -> bool:
        values = {name: torch.tensor(learned[name]) for name in self.fitted}
        expected = self.scale.numel()
        wrong = [value.numel() for value in values.values() if value.numel() != expected]
        if wrong:
            raise ValueError(f"{wrong[0]} features, but the data has {expected}")
        same = True
        for name, value in values.items():
            own, theirs = getattr(self, name), value.reshape(self.scale.shape)
            if self.pinned:
                same &= torch.equal(own, theirs)
            else:
                own.copy_(theirs)
        self.pinned = True
        self._tell()
        return same

    def save(self, folder: Path) -> None:
        save_file({name: getattr(self, name) for name in self.fitted}, folder / "statistics.safetensors")

    def load(self, folder: Path) -> None:
        for name, value in load_file(folder / "statistics.safetensors").items():
            getattr(self, name).copy_(value)
        self._tell()


@dataclass(frozen=True)
class NoOptions:
    """For a front end without options."""
