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


def halving_stages(input_shape: tuple[int, ...], width: float) -> tuple[nn.Sequential, int]:
    """Convolutions of 16 to 128 channels with max pooling between them, and the channels of the last.

    A map with a short side of 128 or more is halved by the first convolution already, which costs a quarter then.
    """
    channels, height, map_width = input_shape
    side, c_in, c_out = min(height, map_width), channels, scaled(16, width)
    stride = 2 if side >= 128 else 1
    side //= stride
    layers: list[nn.Module] = [_conv_bn(c_in, c_out, stride=stride)]
    while side > 4 and len(layers) < 10:
        side, c_in, c_out = side // 2, c_out, min(2 * c_out, scaled(128, width))
        layers += [nn.MaxPool2d(2), _conv_bn(c_in, c_out)]
    return nn.Sequential(*layers), c_out


@NETWORKS.register("small_cnn")
class SmallCnn(Classifier):
    """Plain CNN for ``(channels, height, width)``: halves the map until its short side is 4 or less."""

    maskable = ("stages", "squeeze")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.stages, c_out = halving_stages(input_shape, width)
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
        self.blocks, hidden = temporal_blocks(hidden, time, width)
        self.embedding_dim = scaled(64, width)
        self.squeeze = nn.Linear(hidden, self.embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        pooled = self.blocks(torch.relu(self.stem(x))).mean(dim=2)
        return self.dropout(torch.relu(self.squeeze(pooled)))


def temporal_blocks(hidden: int, time: int, width: float) -> tuple[nn.Sequential, int]:
    """Blocks that halve ``(hidden, time)`` until at most 8 steps are left, and the channels of the last."""
    blocks: list[nn.Module] = []
    while time > 8 and len(blocks) < 6:
        wider = min(2 * hidden, scaled(128, width))
        blocks.append(_TemporalBlock(hidden, wider))
        hidden, time = wider, (time + 1) // 2
    return nn.Sequential(*blocks), hidden


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


@NETWORKS.register("clip_cnn")
class ClipCnn(Classifier):
    """For clips ``(channels, time, height, width)``: ``small_cnn`` on every frame, then ``tcn`` along the frames.

    Convolutions over two axes and over one run on every device; those over three do not.
    """

    maskable = ("frames", "blocks", "squeeze")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, self._time, *sides = input_shape
        self.stages, self._channels = halving_stages((channels, *sides), width)
        self.frames = nn.Identity()
        self.blocks, hidden = temporal_blocks(self._channels, self._time, width)
        self.embedding_dim = scaled(64, width)
        self.squeeze = nn.Linear(hidden, self.embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, embedding_dim)`` features."""
        frames = self.stages(x.transpose(1, 2).flatten(0, 1)).mean(dim=(2, 3))
        frames = self.frames(frames.reshape(-1, self._time, self._channels).transpose(1, 2))
        return self.dropout(torch.relu(self.squeeze(self.blocks(frames).mean(dim=2))))


@NETWORKS.register("ds_cnn")
class DsCnn(Classifier):
    """Depthwise-separable CNN for keyword spotting (Zhang and others, arXiv 1711.07128; MLPerf Tiny).

    The first kernel spans 4 mels and 10 frames of ``(channels, mels, frames)``, or a smaller map whole. For 10 mels,
    49 frames and 12 outputs it has 23 180 parameters: MLPerf Tiny's 23 756 less 576 biases that batch norm cancels.

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
        mels, frames = min(4, input_shape[1]), min(10, input_shape[2])
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], channels, (mels, frames), 2, ((mels - 1) // 2, frames // 2), bias=False),
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
