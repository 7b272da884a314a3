"""The networks of the CrisisMMD-V2 benchmark, layer by layer as MST-Distill's reference uses them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.networks.encoders import Classifier
from distill.networks.registry import NETWORKS


class _Trunk(nn.Module):
    """Two linear layers, to 1 024 and 512, each with ReLU."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(features, 1024)
        self.hidden2 = nn.Linear(1024, 512)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.hidden2(torch.relu(self.hidden1(x))))


@NETWORKS.register("crisismmd_mlp")
class CrisisMmdMlp(Classifier):
    """For one embedding vector; with eight outputs 2 627 080 parameters for 2 048 values, 1 316 360 for 768."""

    maskable = ("trunk.hidden1", "trunk.hidden2")

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        (features,) = input_shape
        self.trunk = _Trunk(features)
        self.embedding_dim = 512
        self.head = nn.Linear(512, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, 512)`` features."""
        return self.trunk(x)


@NETWORKS.register("crisismmd_teacher")
class CrisisMmdTeacher(nn.Module):
    """One trunk per embedding vector, joined in the dataset's order; 4 593 416 parameters for 2 048 and 768 values."""

    multimodal = True
    maskable = ("fusion1", "fusion2")

    def __init__(self, input_shapes: Mapping[str, tuple[int, ...]], num_outputs: int) -> None:
        super().__init__()
        self.trunks = nn.ModuleDict({name: _Trunk(*shape) for name, shape in input_shapes.items()})
        self.fusion1 = nn.Linear(512 * len(self.trunks), 512)
        self.fusion2 = nn.Linear(512, 256)
        self.head = nn.Linear(256, num_outputs)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        joined = torch.cat([trunk(inputs[name]) for name, trunk in self.trunks.items()], dim=1)
        return self.head(torch.relu(self.fusion2(torch.relu(self.fusion1(joined)))))
