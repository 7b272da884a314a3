"""Tiny transformers, over a sequence of vectors and over the patches of a map, and the block that others build on."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from distill.networks.encoders import Classifier, scaled
from distill.networks.registry import NETWORKS

_HEAD_WIDTH = 16
_MOST_TOKENS = 64


class EncoderBlock(nn.Module):
    """Pre-norm transformer block (Xiong and others, arXiv 2002.04745): self-attention, then a perceptron.

    ReLU, not GELU: one integer operation on a device instead of an error function in float.

    Args:
        dim: width of a token; a multiple of ``heads``.
        hidden: width inside the perceptron.
        dropout: on what each of the two parts adds.
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self._dim, self._heads = dim, heads
        self.norm1 = nn.LayerNorm(dim)
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, hidden)
        self.narrow = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """``(B, T, dim)`` to the same.

        Args:
            visible: ``(B, T)`` bool, the tokens that may be attended to (at least one of a sample); None for all.
        """
        x = x + self.dropout(self._attend(self.norm1(x), visible))
        return x + self.dropout(self.narrow(torch.relu(self.widen(self.norm2(x)))))

    def _attend(self, x: Tensor, visible: Tensor | None) -> Tensor:
        # Written out, and with the batch as the only open axis: torch's fused attention exports to a graph
        # that computes shapes as it runs.
        time, head = x.shape[1], self._dim // self._heads
        heads = self.queries_keys_values(x).reshape(-1, time, 3, self._heads, head).permute(2, 0, 3, 1, 4)
        scores = heads[0] @ (heads[1] * head**-0.5).transpose(2, 3)
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None, None, :], torch.finfo(scores.dtype).min)
        attended = torch.softmax(scores, dim=3) @ heads[2]
        return self.project(attended.transpose(1, 2).reshape(-1, time, self._dim))


def position_table(time: int, dim: int) -> Tensor:
    """``(time, dim)`` sines and cosines, wavelengths from 2 pi to 20 000 pi (Vaswani and others, arXiv 1706.03762)."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    phase = torch.arange(time)[:, None] * rate
    return torch.stack([torch.sin(phase), torch.cos(phase)], dim=2).flatten(1)


def heads_of(dim: int) -> int:
    """Attention heads for tokens of width ``dim``: 16 values each."""
    return max(1, dim // _HEAD_WIDTH)


class _TokenClassifier(Classifier):
    """Blocks over tokens with a static table of positions, mean over tokens, one hidden layer, head."""

    maskable = ("tokens", "squeeze")
    positions: Tensor

    def __init__(self, tokens: int, dim: int, depth: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("positions", position_table(tokens, dim), persistent=False)
        self.blocks = nn.ModuleList(EncoderBlock(dim, heads_of(dim), 2 * dim, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.tokens = ChannelsFirst()
        self.embedding_dim = dim
        self.squeeze = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, num_outputs)

    def patches_of(self, x: Tensor) -> Tensor:
        """``(batch, dim, tokens)``."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, embedding_dim)`` features."""
        tokens = self.patches_of(x).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        pooled = self.tokens(self.norm(tokens)).mean(dim=2)
        return self.dropout(torch.relu(self.squeeze(pooled)))


@NETWORKS.register("transformer")
class SequenceTransformer(_TokenClassifier):
    """Tiny transformer for ``(channels, time)``: strided, overlapping patches of time are its tokens.

    Args:
        width: multiplies the 64 values of a token.
        depth: number of blocks.
        stride: time steps from one token to the next; 0 takes the least that gives at most 64 tokens.
        dropout: in the blocks and before the head.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        width: float = 1.0,
        depth: int = 2,
        stride: int = 0,
        dropout: float = 0.1,
    ) -> None:
        channels, time = input_shape
        stride = stride or math.ceil(time / _MOST_TOKENS)
        dim = scaled(64, width, _HEAD_WIDTH)
        super().__init__(math.ceil(time / stride), dim, depth, num_outputs, dropout)
        self.patches = nn.Conv1d(channels, dim, 2 * stride - 1, stride, padding=stride - 1)

    def patches_of(self, x: Tensor) -> Tensor:
        return self.patches(x)


@NETWORKS.register("vit")
class VisionTransformer(_TokenClassifier):
    """Tiny vision transformer (Dosovitskiy and others, arXiv 2010.11929) for ``(channels, height, width)``.

    Square patches that do not overlap are its tokens; there is no class token, the mean is classified. A map that is
    no multiple of the patch is padded with zeros on the right and at the bottom.

    Args:
        width: multiplies the 96 values of a token.
        depth: number of blocks.
        patch: side of a patch; 0 takes the least that gives at most 64 tokens.
        dropout: in the blocks and before the head.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        width: float = 1.0,
        depth: int = 4,
        patch: int = 0,
        dropout: float = 0.1,
    ) -> None:
        channels, height, map_width = input_shape

        def grid(side: int) -> tuple[int, int]:
            return math.ceil(height / side), math.ceil(map_width / side)

        patch = patch or next(side for side in itertools.count(1) if math.prod(grid(side)) <= _MOST_TOKENS)
        rows, columns = grid(patch)
        dim = scaled(96, width, _HEAD_WIDTH)
        super().__init__(rows * columns, dim, depth, num_outputs, dropout)
        self._padding = (0, columns * patch - map_width, 0, rows * patch - height)
        self.patches = nn.Conv2d(channels, dim, patch, patch)

    def patches_of(self, x: Tensor) -> Tensor:
        return self.patches(nn.functional.pad(x, self._padding)).flatten(2)


class ChannelsFirst(nn.Module):
    """``(B, T, C)`` to ``(B, C, T)``: the layout in which a layer may be masked."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
