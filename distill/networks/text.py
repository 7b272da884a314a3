"""Networks that read token ids ``(batch, max_tokens)``, 0 being padding, which nothing depends on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.networks.encoders import Classifier, scaled
from distill.networks.registry import NETWORKS
from distill.networks.transformer import ChannelsFirst, EncoderBlock, heads_of, position_table
from distill.tokens import TokenShape

_SMALL = 0.1


class _TextNetwork(Classifier):
    """An embedding per token, something between tokens, the mean over tokens, and a hidden layer."""

    reads_tokens = True
    maskable = ("tokens", "squeeze")

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, channels: int, dropout: float) -> None:
        super().__init__()
        assert isinstance(input_shape, TokenShape)
        self.embedding = nn.Embedding(input_shape.vocabulary, channels, padding_idx=0)
        nn.init.normal_(self.embedding.weight[1:], std=channels**-0.5)
        self.tokens = ChannelsFirst()
        self.embedding_dim = channels
        self.squeeze = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_outputs)

    def relate(self, x: Tensor, real: Tensor) -> Tensor:
        """What happens between tokens.

        Args:
            x: ``(batch, max_tokens, channels)``.
            real: ``(batch, max_tokens)`` bool: a token, not padding.
        """
        return x

    def embed(self, x: Tensor) -> Tensor:
        real = x != 0
        tokens = self.tokens(self.relate(self.dropout(self.embedding(x)), real))
        counted = real.float()
        # An empty text has no token to average: zeros.
        mean = (tokens * counted[:, None]).sum(dim=2) / counted.sum(dim=1, keepdim=True).clamp(min=1)
        return self.dropout(torch.relu(self.squeeze(mean)))


@NETWORKS.register("text_bag")
class TextBag(_TextNetwork):
    """The mean of the tokens' embeddings (Joulin and others, arXiv 1607.01759) and a hidden layer; order is lost."""

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.3
    ) -> None:
        super().__init__(input_shape, num_outputs, scaled(64, width), dropout)


@NETWORKS.register("text_transformer")
class TextTransformer(_TextNetwork):
    """A small transformer encoder over the tokens.

    Args:
        width: multiplies the 64 channels.
        depth: number of blocks.
    """

    positions: Tensor

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        width: float = 1.0,
        depth: int = 2,
        dropout: float = 0.3,
    ) -> None:
        channels = scaled(64, width, 16)
        super().__init__(input_shape, num_outputs, channels, dropout)
        self.register_buffer("positions", position_table(input_shape[0], channels) * _SMALL, persistent=False)
        self.blocks = nn.ModuleList(
            EncoderBlock(channels, heads_of(channels), 2 * channels, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)

    def relate(self, x: Tensor, real: Tensor) -> Tensor:
        x = x + self.positions
        for block in self.blocks:
            x = block(x, real)
        return self.norm(x)
