"""The networks of the AV-MNIST benchmark, layer by layer as MST-Distill's reference uses them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from distill.networks.registry import NETWORKS


class _LeNetTrunk(nn.Module):
    """LeNet-5 up to its 84 features, after their ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.fc1 = nn.Linear(120, 84)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.avg_pool2d(torch.relu(self.conv2(x)), 2)
        return torch.relu(self.fc1(torch.relu(self.conv3(x)).flatten(1)))


@NETWORKS.register("lenet5")
class LeNet5(nn.Module):
    """LeNet-5 for 28 x 28 images; 61 706 parameters with one channel and ten outputs."""

    maskable = ("trunk.conv3", "trunk.fc1")

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.trunk = _LeNetTrunk(input_shape[0])
        self.embedding_dim = 84
        self.fc2 = nn.Linear(84, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, 84)`` features."""
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.embed(x))


@NETWORKS.register("avmnist_audio_cnn")
class AvMnistAudioCnn(nn.Module):
    """Three-layer CNN for 112 x 112 spectrograms; 343 562 parameters with ten outputs."""

    maskable = ("conv2", "conv3")

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.embedding_dim = 128 * (height // 8) * (width // 8)
        self.fc = nn.Linear(self.embedding_dim, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, embedding_dim)`` features."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.relu(nn.functional.max_pool2d(conv(x), 2))  # the same as the other way round, on a quarter
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embed(x))


@NETWORKS.register("avmnist_teacher")
class AvMnistTeacher(nn.Module):
    """Intermediate fusion of an image of 28 x 28 and a spectrogram; 1 809 752 parameters.

    Modalities are told apart by their height: 28 is the image.
    """

    multimodal = True
    maskable = ("fused", "fusion1")

    def __init__(self, input_shapes: Mapping[str, tuple[int, ...]], num_outputs: int) -> None:
        super().__init__()
        images = [name for name, shape in input_shapes.items() if shape[1:] == (28, 28)]
        if len(input_shapes) != 2 or len(images) != 1:
            raise ValueError("expected one 28 x 28 image and one spectrogram")
        (self._image,) = images
        (self._audio,) = (name for name in input_shapes if name != self._image)
        self.image = _LeNetTrunk(input_shapes[self._image][0])
        widths = (input_shapes[self._audio][0], 32, 64, 128, 256, 512)
        self.audio = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.fused = nn.Identity()
        self.fusion1 = nn.Linear(84 + 512, 298)
        self.fusion2 = nn.Linear(298, num_outputs)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        x = inputs[self._audio]
        for index, conv in enumerate(self.audio):
            x = conv(x)
            if index < 4:
                x = nn.functional.max_pool2d(x, 2)
            x = torch.relu(x)
        fused = self.fused(torch.cat([self.image(inputs[self._image]), x.mean(dim=(2, 3))], dim=1))
        return self.fusion2(self.fusion1(fused))
