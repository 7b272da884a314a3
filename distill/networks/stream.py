"""Networks that read a clip frame by frame in constant memory, and say at its end what they say of the whole."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.networks.encoders import Classifier, halving_stages, scaled
from distill.networks.registry import NETWORKS

_KERNEL = 3
_MOST_BLOCKS = 5


class CausalBlock(nn.Module):
    """A residual convolution along time that looks back alone: ``(B, C, time)`` to as many steps.

    What was before the first step counts as zeros, in a clip by padding and in a stream by the state that it begins
    with, which is why both give the same (the stream buffers of MoViNets: Kondratyuk and others, arXiv 2103.11511).

    Attributes:
        past: steps that the state holds.
    """

    def __init__(self, c_in: int, c_out: int, dilation: int) -> None:
        super().__init__()
        self.past = (_KERNEL - 1) * dilation
        self.conv = nn.Conv1d(c_in, c_out, _KERNEL, padding=self.past, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm1d(c_out)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv1d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        # The convolution pads both ends: what looked ahead is cut off.
        looked_back = self.conv(x)[:, :, : x.shape[2]]
        return torch.relu(self.norm(looked_back) + self.shortcut(x))

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """One step ``(B, C, 1)`` and the ``past`` steps before it, ``(B, C, past)``: what ``forward`` gives for it, and
        the steps before the next one."""
        seen = torch.cat([past, x], dim=2)
        looked_back = functional.conv1d(seen, self.conv.weight, dilation=self.conv.dilation)
        return torch.relu(self.norm(looked_back) + self.shortcut(x)), seen[:, :, 1:]


@NETWORKS.register("stream_cnn")
class StreamCnn(Classifier):
    """For clips ``(channels, time, height, width)``: ``small_cnn`` on every frame, causal convolutions along them, the
    mean over the clip.

    It is ``Streaming`` (``distill/networks/registry.py``): ``step`` takes one frame and gives, after ``time`` of them,
    what ``forward`` gives for the clip; later, the answer for the last ``time`` frames, whose context reaches further
    back.
    """

    maskable = ("frames", "blocks", "squeeze")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, self._time, *sides = input_shape
        self.stages, self._channels = halving_stages((channels, *sides), width)
        self.frames = nn.Identity()
        hidden = scaled(64, width)
        count = 1
        while 1 + (_KERNEL - 1) * (2**count - 1) < self._time and count < _MOST_BLOCKS:
            count += 1
        sizes = [self._channels, *[hidden] * count]
        blocks = [CausalBlock(c, d, 2**n) for n, (c, d) in enumerate(pairwise(sizes))]
        self.blocks = nn.Sequential(*blocks)
        self.embedding_dim = scaled(64, width)
        self.squeeze = nn.Linear(hidden, self.embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)
        # By part of the state: steps that are kept, each of so many channels. The last are averaged.
        pasts = [(c, block.past) for c, block in zip(sizes[:-1], blocks, strict=True)]
        self._parts = [*pasts, (hidden, self._time)]
        self.state_size = sum(c * steps for c, steps in self._parts) + 1  # and how many frames were seen

    def embed(self, x: Tensor) -> Tensor:
        frames = self._encoded(x.transpose(1, 2).flatten(0, 1))
        frames = self.frames(frames.reshape(-1, self._time, self._channels).transpose(1, 2))
        return self._summary(self.blocks(frames).mean(dim=2))

    def step(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        sizes = [channels * steps for channels, steps in self._parts]
        *pasts, recent, seen = torch.split(state, [*sizes, 1], dim=1)
        x = self.frames(self._encoded(frame).unsqueeze(2))
        kept = []
        for block, past, (channels, steps) in zip(self.blocks, pasts, self._parts[:-1], strict=True):
            assert isinstance(block, CausalBlock)
            x, later = block.step(x, past.reshape(-1, channels, steps))
            kept.append(later.flatten(1))
        channels, steps = self._parts[-1]
        recent = torch.cat([recent.reshape(-1, channels, steps)[:, :, 1:], x], dim=2)
        seen = (seen + 1).clamp(max=float(steps))
        logits = self.head(self._summary(recent.sum(dim=2) / seen))
        return logits, torch.cat([*kept, recent.flatten(1), seen], dim=1)

    def _encoded(self, pictures: Tensor) -> Tensor:
        return self.stages(pictures).mean(dim=(2, 3))

    def _summary(self, pooled: Tensor) -> Tensor:
        return self.dropout(torch.relu(self.squeeze(pooled)))
