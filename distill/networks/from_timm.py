"""MobileNetV3-small and ResNet-18 from timm (an extra), with fresh weights: nothing is fetched."""

from __future__ import annotations

from torch import Tensor, nn

from distill.networks.encoders import Classifier, scaled
from distill.networks.registry import NETWORKS
from mst_edge.core.extras import import_extra

_NAMES = {0.5: "mobilenetv3_small_050", 0.75: "mobilenetv3_small_075", 1.0: "mobilenetv3_small_100"}
_LEAST_LAST_SIDE = 4
_LEAST_SIDE = 96  # 32 times 3: the last side is 3 or less


@NETWORKS.register("mobilenet_v3_small")
class MobileNetV3Small(Classifier):
    """MobileNetV3-small (Howard and others, arXiv 1905.02244) for ``(channels, height, width)``.

    It halves a map five times. The first of these steps keep the size instead, as many as it takes for the short side
    of the last map to be 4 or more (as far as the input's is): 28 x 28 ends as 4 x 4, not as 1 x 1. From a short side
    of 97 on everything is as published.

    Args:
        width: 0.5, 0.75 or 1.
        dropout: before the head.

    Raises:
        UserError: timm is not installed.
    """

    maskable = ("trunk.blocks", "trunk.conv_head")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.2
    ) -> None:
        super().__init__()
        if width not in _NAMES:
            raise ValueError(f"width must be one of {', '.join(map(str, _NAMES))}, received {width}")
        channels, *sides = input_shape
        timm = import_extra("timm")
        self.trunk = timm.create_model(_NAMES[width], pretrained=False, in_chans=channels, num_classes=0)
        self.trunk.global_pool = _MapMean()
        _keep_sides(self.trunk, min(sides))
        self.embedding_dim = self.trunk.head_hidden_size
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, embedding_dim)`` features."""
        return self.dropout(self.trunk.forward_head(self.trunk.forward_features(x), pre_logits=True))


@NETWORKS.register("resnet18")
class ResNet18(Classifier):
    """ResNet-18 (He and others, arXiv 1512.03385) for ``(channels, height, width)``.

    It halves a map five times. The pooling after the first convolution, and then its stride, are left out
    where the short side of the last map would be below 4. From a short side of 97 on everything is as published.

    Args:
        width: multiplies the channels of all blocks; the first convolution keeps its 64.
        dropout: before the head.

    Raises:
        UserError: timm is not installed.
    """

    maskable = ("trunk.layer2", "trunk.layer3", "trunk.layer4")

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, width: float = 1.0, dropout: float = 0.2
    ) -> None:
        super().__init__()
        channels, *sides = input_shape
        blocks = tuple(scaled(each, width) for each in (64, 128, 256, 512))
        timm = import_extra("timm")
        self.trunk = timm.create_model("resnet18", pretrained=False, in_chans=channels, num_classes=0, channels=blocks)
        self.trunk.global_pool = nn.Identity()
        if min(sides) <= _LEAST_SIDE:
            self.trunk.maxpool = nn.Identity()
        if min(sides) <= _LEAST_SIDE // 2:
            self.trunk.conv1.stride = (1, 1)
        self.embedding_dim = self.trunk.num_features
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.embedding_dim, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, embedding_dim)`` features."""
        return self.dropout(self.trunk.forward_features(x).mean(dim=(2, 3)))


class _MapMean(nn.Module):
    """The mean over positions; torch's adaptive pooling exports to a graph that computes shapes as it runs."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)


def _keep_sides(trunk: nn.Module, side: int) -> None:
    """Takes the stride from as many of the first strided convolutions as a short side of ``side`` needs."""
    strided = [layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    while strided and (side + 1) // 2 >= _LEAST_LAST_SIDE:
        side = (side + 1) // 2
        strided.pop()
    for layer in strided:
        layer.stride = (1, 1)
