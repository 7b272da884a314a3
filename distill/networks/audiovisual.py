"""The networks of the RAVDESS and VGGSound-50k benchmarks, layer by layer as MST-Distill's reference uses them.

Clips are ``(channels, time, height, width)``, sound is ``(channels, time)``. Both kinds of trunk are flattened, so a
network fits one length of clip. The weights start as torch's layers do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from distill.networks.encoders import Classifier
from distill.networks.registry import NETWORKS


class _ClipTrunk(nn.Module):
    """Blocks of Conv3d, batch norm, ReLU and, in the first ``pooled`` of them, max pooling that halves every axis."""

    def __init__(self, shape: tuple[int, ...], widths: Sequence[int], pooled: int) -> None:
        super().__init__()
        channels, *sides = shape
        blocks: list[nn.Module] = []
        for index, (a, b) in enumerate(pairwise((channels, *widths))):
            blocks.append(nn.Sequential(nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU()))
            if index < pooled:
                blocks.append(nn.MaxPool3d(2))
                sides = [side // 2 for side in sides]
        self.blocks = nn.Sequential(*blocks)
        self.features = widths[-1] * sides[0] * sides[1] * sides[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).flatten(1)


class _SoundTrunk(nn.Module):
    """Blocks of Conv1d, batch norm, ReLU and max pooling to a third."""

    def __init__(self, shape: tuple[int, ...], widths: Sequence[int]) -> None:
        super().__init__()
        channels, time = shape
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(a, b, 3, padding=1), nn.BatchNorm1d(b), nn.ReLU(), nn.MaxPool1d(3))
                for a, b in pairwise((channels, *widths))
            )
        )
        self.features = widths[-1] * (time // 3 ** len(widths))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).flatten(1)


class _ThreeLinear(Classifier):
    """What all six networks end in: linear layers to 320, 160 and the outputs, with ReLU between them."""

    maskable = ("hidden1", "hidden2")

    def _end(self, features: int, num_outputs: int) -> None:
        if features == 0:
            raise ValueError("too small: its poolings leave nothing")
        self.hidden1 = nn.Linear(features, 320)
        self.hidden2 = nn.Linear(320, 160)
        self.embedding_dim = 160
        self.head = nn.Linear(160, num_outputs)

    def _hidden(self, features: Tensor) -> Tensor:
        return torch.relu(self.hidden2(torch.relu(self.hidden1(features))))


class _OneTrunk(_ThreeLinear):
    def __init__(self, trunk: _ClipTrunk | _SoundTrunk, num_outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self._end(trunk.features, num_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """``(batch, 160)`` features."""
        return self._hidden(self.trunk(x))


class _TwoTrunks(_ThreeLinear):
    """Sound and clip, flattened and joined in this order; told apart by their number of axes."""

    multimodal = True

    def __init__(self, sound: tuple[str, _SoundTrunk], clip: tuple[str, _ClipTrunk], num_outputs: int) -> None:
        super().__init__()
        self._sound, self.sound = sound
        self._clip, self.clip = clip
        self._end(self.sound.features + self.clip.features, num_outputs)

    def embed(self, inputs: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        """``(batch, 160)`` features."""
        joined = torch.cat([self.sound(inputs[self._sound]), self.clip(inputs[self._clip])], dim=1)
        return self._hidden(joined)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self.head(self.embed(inputs))


def _sound_and_clip(input_shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    ranks = {len(shape): name for name, shape in input_shapes.items()}
    if len(input_shapes) != 2 or set(ranks) != {2, 4}:
        raise ValueError("expected sound (channels, time) and a clip (channels, time, height, width)")
    return ranks[2], ranks[4]


@NETWORKS.register("ravdess_visual")
class RavdessVisual(_OneTrunk):
    """Three 3-D convolutions for clips of 3 x 15 x 224 x 224; 6 084 420 parameters with eight outputs."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__(_ClipTrunk(input_shape, (6, 12, 24), pooled=3), num_outputs)


@NETWORKS.register("ravdess_audio")
class RavdessAudio(_OneTrunk):
    """Three convolutions over time for 15 coefficients x 156 frames; 575 848 parameters with eight outputs."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__(_SoundTrunk(input_shape, (32, 128, 256)), num_outputs)


@NETWORKS.register("ravdess_teacher")
class RavdessTeacher(_TwoTrunks):
    """Both trunks of RAVDESS under one head; 6 607 300 parameters with eight outputs."""

    def __init__(self, input_shapes: Mapping[str, tuple[int, ...]], num_outputs: int) -> None:
        sound, clip = _sound_and_clip(input_shapes)
        super().__init__(
            (sound, _SoundTrunk(input_shapes[sound], (32, 128, 256))),
            (clip, _ClipTrunk(input_shapes[clip], (6, 12, 24), pooled=3)),
            num_outputs,
        )


@NETWORKS.register("vggsound_visual")
class VggSoundVisual(_OneTrunk):
    """Three 3-D convolutions for 512 x 10 x 7 x 7 features of a VGG-19; 4 761 549 parameters with 141 outputs."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__(_ClipTrunk(input_shape, (256, 128, 64), pooled=2), num_outputs)


@NETWORKS.register("vggsound_audio")
class VggSoundAudio(_OneTrunk):
    """Three convolutions along 10 x 128 features of a VGGish; 164 797 parameters with 141 outputs."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__(_SoundTrunk(input_shape, (16, 32, 64)), num_outputs)


@NETWORKS.register("vggsound_teacher")
class VggSoundTeacher(_TwoTrunks):
    """Both trunks of VGGSound-50k under one head; 4 851 965 parameters with 141 outputs."""

    def __init__(self, input_shapes: Mapping[str, tuple[int, ...]], num_outputs: int) -> None:
        sound, clip = _sound_and_clip(input_shapes)
        super().__init__(
            (sound, _SoundTrunk(input_shapes[sound], (16, 32, 64))),
            (clip, _ClipTrunk(input_shapes[clip], (256, 128, 64), pooled=2)),
            num_outputs,
        )
