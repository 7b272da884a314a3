"""BC-ResNet: broadcasted residual learning for keyword spotting (Kim and others, arXiv 2106.04140)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.networks.encoders import Classifier
from distill.networks.registry import NETWORKS

_SUB_BANDS = 5
# Stages of the paper's table 1: channels as a multiple of 8 tau, blocks, whether the mels are halved.
_STAGES = ((1.0, 2, False), (1.5, 2, True), (2.0, 4, True), (2.5, 4, False))


class SubSpectralNorm(nn.Module):
    """Batch norm with statistics of its own for every sub-band of the mels (Chang and others, arXiv 2103.13620).

    Five sub-bands as in the paper, or the largest smaller number that divides ``mels``.
    """

    def __init__(self, channels: int, mels: int) -> None:
        super().__init__()
        self._shape = (channels, mels)
        self._bands = next(bands for bands in range(min(_SUB_BANDS, mels), 0, -1) if mels % bands == 0)
        self.norm = nn.BatchNorm2d(channels * self._bands)

    def forward(self, x: Tensor) -> Tensor:
        channels, mels = self._shape
        frames = x.shape[3]
        bands = x.reshape(-1, channels * self._bands, mels // self._bands, frames)
        return self.norm(bands).reshape(-1, channels, mels, frames)


class _Broadcast(nn.Module):
    """A residual block: convolution along the mels, then along time over the mean of the mels, added to every mel.

    A block that changes the number of channels or of mels has a 1 x 1 convolution in front and no identity path.

    Args:
        mels: of the output.
        dilation: in frames, of the convolution along time.
    """

    def __init__(self, c_in: int, c_out: int, mels: int, halves: bool, dilation: int, dropout: float) -> None:
        super().__init__()
        self._identity = c_in == c_out
        self.widen = (
            nn.Identity()
            if self._identity
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())
        )
        self.along_mels = nn.Sequential(
            nn.Conv2d(c_out, c_out, (3, 1), (1 + halves, 1), (1, 0), groups=c_out, bias=False),
            SubSpectralNorm(c_out, mels),
        )
        self.along_time = nn.Sequential(
            nn.Conv2d(c_out, c_out, (1, 3), 1, (0, dilation), (1, dilation), groups=c_out, bias=False),
            nn.BatchNorm2d(c_out),
            nn.SiLU(),
            nn.Conv2d(c_out, c_out, 1, bias=False),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        mels = self.along_mels(self.widen(x))
        y = mels + self.along_time(mels.mean(dim=2, keepdim=True))
        return torch.relu(x + y if self._identity else y)


@NETWORKS.register("bc_resnet")
class BcResNet(Classifier):
    """Keyword spotting in ``(channels, mels, frames)``; BC-ResNet-tau of the paper is ``width: tau``.

    With 40 mels and 12 outputs it has the paper's size: 9.2 thousand parameters for ``width`` 1, 321 thousand for 8.

    Args:
        width: the paper's tau; multiplies all channels, 8 to 32.
        dropout: of whole channels inside the blocks.
    """

    maskable = ("stages", "mix")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        channels, mels, _ = input_shape
        base = 8 * width
        c_in, mels = int(2 * base), (mels + 1) // 2
        self.stem = nn.Sequential(nn.Conv2d(channels, c_in, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(c_in), nn.ReLU())
        blocks: list[nn.Module] = []
        for index, (multiple, count, halves) in enumerate(_STAGES):
            c_out = int(multiple * base)
            for number in range(count):
                halve = halves and number == 0
                mels = (mels + 1) // 2 if halve else mels
                blocks.append(_Broadcast(c_in, c_out, mels, halve, 2**index, dropout))
                c_in = c_out
        self.stages = nn.Sequential(*blocks)
        self.embedding_dim = int(4 * base)
        self.gather = nn.Conv2d(c_in, c_in, (min(5, mels), 5), padding=(0, 2), groups=c_in, bias=False)
        self.mix = nn.Conv2d(c_in, self.embedding_dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(self.embedding_dim)
        self.head = nn.Linear(self.embedding_dim, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, embedding_dim)`` features."""
        return torch.relu(self.norm(self.mix(self.gather(self.stages(self.stem(x)))))).mean(dim=(2, 3))
