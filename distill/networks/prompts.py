"""What a network of class prompts that look at a video is made of (X-CLIP; Ni and others, arXiv 2208.02816).

The prompt generator computes what ``XCLIPPromptGenerator`` of ``transformers`` does, and has the same parameter names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.networks.transformer import EncoderBlock, heads_of

_SMALL_STD = 0.02
_ALPHA = 0.1


class PromptGenerator(nn.Module):
    """What a video adds to class prompts: cross-attention from prompts to its tokens, then a residual perceptron.

    Args:
        dim: width of a prompt and of a token; a multiple of ``heads``.
        layers: residual blocks.
        dropout: inside the attention and the perceptron.
    """

    def __init__(self, dim: int, heads: int, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(dim)
        self.decoder = nn.ModuleList(_PromptBlock(dim, heads, dropout) for _ in range(layers))
        self.alpha = nn.Parameter(torch.full((dim,), _ALPHA))

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """``(B, K, dim)`` prompts and ``(B, T, dim)`` tokens to what is to be added to the prompts."""
        tokens = self.layernorm(tokens)
        for block in self.decoder:
            prompts = block(prompts, tokens)
        return self.alpha * prompts


class _PromptBlock(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.cross_attn = _CrossAttention(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), _QuickGelu(), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        prompts = prompts + self.cross_attn(self.norm1(prompts), tokens)
        return prompts + self.mlp(self.norm3(prompts))


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._dim, self._heads = dim, heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q = self._split(self.q_proj(queries)) * (self._dim // self._heads) ** -0.5
        weights = self.attn_drop(torch.softmax(q @ self._split(self.k_proj(tokens)).transpose(2, 3), dim=3))
        attended = weights @ self._split(self.v_proj(tokens))
        return self.proj_drop(self.proj(attended.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        """``(B, N, dim)`` to ``(B, heads, N, dim / heads)``."""
        return x.reshape(-1, x.shape[1], self._heads, self._dim // self._heads).transpose(1, 2)


class _QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Integration(nn.Module):
    """Multi-frame integration: a transformer over tokens ``(B, T, dim)`` with a residual, then their mean ``(B, dim)``.

    Args:
        tokens: T. depth: encoder blocks; X-CLIP has one.
    """

    def __init__(self, tokens: int, dim: int, depth: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(tokens, dim) * _SMALL_STD)
        self.blocks = nn.ModuleList(EncoderBlock(dim, heads_of(dim), 4 * dim, dropout) for _ in range(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens + self.positions
        for block in self.blocks:
            x = block(x)
        return (tokens + x).mean(dim=1)
