"""Small general encoders, sized by the shape they read: what ``network: auto`` picks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.networks.registry import NETWORKS


def scaled(width: int, multiplier: float, divisor: int = 8) -> int:
    """``width`` times ``multiplier``, rounded to a multiple of ``divisor`` that int8 kernels like."""
    return max(divisor, int(width * multiplier / divisor + 0.5) * divisor)


class Classifier(nn.Module):
    """An encoder and a linear head: ``embed`` gives ``(batch, embedding_dim)``, ``forward`` logits."""

    embedding_dim: int
    head: nn.Linear

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, embedding_dim)`` features."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


def _conv_bn(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
    )


@NETWORKS.register("small_cnn")
class SmallCnn(Classifier):
    """Plain CNN for ``(channels, height, width)``: halves the map until its short side is 4 or less."""

    maskable = ("stages", "squeeze")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, height, map_width = input_shape
        layers: list[nn.Module] = []
        side, c_in, c_out = min(height, map_width), channels, scaled(16, width)
        while True:
            layers.append(_conv_bn(c_in, c_out))
            if side <= 4 or len(layers) >= 10:
                break
            layers.append(nn.MaxPool2d(2))
            side, c_in, c_out = side // 2, c_out, min(2 * c_out, scaled(128, width))
        self.stages = nn.Sequential(*layers)
        self.embedding_dim = scaled(64, width)
        self.squeeze = nn.Linear(c_out, self.embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        pooled = self.stages(x).mean(dim=(2, 3))
        return self.dropout(torch.relu(self.squeeze(pooled)))


@NETWORKS.register("tcn")
class Tcn(Classifier):
    """Temporal convolution network for ``(channels, time)``: strided residual blocks, mean over time."""

    maskable = ("blocks", "squeeze")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, time = input_shape
        hidden = scaled(32, width)
        self.stem = nn.Conv1d(channels, hidden, 3, padding=1)
        blocks: list[nn.Module] = []
        while time > 8 and len(blocks) < 6:
            blocks.append(_TemporalBlock(hidden, min(2 * hidden, scaled(128, width))))
            hidden, time = min(2 * hidden, scaled(128, width)), (time + 1) // 2
        self.blocks = nn.Sequential(*blocks)
        self.embedding_dim = scaled(64, width)
        self.squeeze = nn.Linear(hidden, self.embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        pooled = self.blocks(torch.relu(self.stem(x))).mean(dim=2)
        return self.dropout(torch.relu(self.squeeze(pooled)))


class _TemporalBlock(nn.Module):
    """Strided convolution, then a convolution, with a strided shortcut: halves the time axis."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.reduce = nn.Conv1d(c_in, c_out, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm1d(c_out)
        self.refine = nn.Conv1d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(c_out)
        self.shortcut = nn.Conv1d(c_in, c_out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.reduce(x)))
        return torch.relu(self.norm2(self.refine(y)) + self.shortcut(x))


@NETWORKS.register("mlp")
class Mlp(Classifier):
    """Two hidden layers for ``(features,)``."""

    maskable = ("hidden", "squeeze")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(input_shape[0], scaled(128, width))
        self.embedding_dim = scaled(64, width)
        self.squeeze = nn.Linear(scaled(128, width), self.embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.hidden(x)))
        return self.dropout(torch.relu(self.squeeze(hidden)))


@NETWORKS.register("ds_cnn")
class DsCnn(Classifier):
    """Depthwise-separable CNN for keyword spotting (Zhang and others, arXiv 1711.07128; MLPerf Tiny).

    Args:
        width: multiplies the 64 channels.
        blocks: depthwise-separable blocks after the first convolution.
    """

    maskable = ("blocks",)

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        width: float = 1.0,
        blocks: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], channels, (10, 4), stride=2, padding=(5, 1), bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(_conv_bn(channels, channels, groups=channels), _conv_bn(channels, channels, 1))
                for _ in range(blocks)
            )
        )
        self.embedding_dim = channels
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        return self.dropout(self.blocks(self.stem(x)).mean(dim=(2, 3)))
