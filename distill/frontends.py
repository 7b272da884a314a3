"""Front ends: what a device records, turned into what a network reads.

A front end has no learned weights. What it knows of the data comes from the training split alone. It has two
parts: ``host`` is plain code on the device's CPU, which hands an array to the graph (only text needs it: a
tokenizer); ``forward`` is part of the exported graph.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import apps.runtime.tokenizer as tokenizer_module
import apps.runtime.tokenizer_json as tokenizer_json_module
from apps.runtime.tokenizer import FIRST_MERGE, TOKENIZER, AnyTokenizer, Tokenizer, parse_tokenizer, read_tokenizer
from apps.runtime.tokenizer_json import JsonTokenizer
from distill import mels as mels_module
from distill import tokens as tokens_module
from distill.datasets.spec import Kind, ModalitySpec
from distill.mels import LogMelOptions, fourier_rows, mel_bank
from distill.shapes import NumberShape
from distill.tokens import TokenShape, learn_merges
from distill.video_inputs import base as video_inputs_module
from distill.video_inputs.base import VideoOptions, make_video_input
from mst_edge.core.errors import UserError
from mst_edge.core.files import write_text

_MIN_STD = 1e-4
_MOST_TOKENS = 4096


class Frontend(nn.Module):
    """Base of all front ends. ``forward`` takes what ``host`` returns, with a batch axis, as the graph does.

    Attributes:
        graph_shape, graph_dtype: of one sample as the graph takes it.
        feature_shape, feature_dtype: of one sample as networks read it; numbers have a ``NumberShape`` once it is known
            how they are standardised.
        tokenizer: what the host part consists of, where there is one; None before it was fitted.
        augmented_as: kind of modality whose augmentations its features take, where it is not its own.
        code: the files whose text decides what the features of a sample are.
        fitted: buffers that ``fit`` sets.
        pinned: what ``fit`` would learn was given, for good; ``fit`` changes nothing then.
        in_place: whether features are no more than the sample's own values: they are computed batch by batch then.
        moves: whether training may move what is seen: the last two axes of the features are those of one picture.
    """

    kind: ClassVar[Kind]
    augmented_as: ClassVar[Kind | None] = None
    code: tuple[Path, ...] = (Path(__file__),)
    fitted: ClassVar[tuple[str, ...]] = ()
    feature_dtype: ClassVar[str] = "float32"
    graph_shape: tuple[int, ...]
    graph_dtype: str
    feature_shape: tuple[int, ...]
    tokenizer: AnyTokenizer | None = None
    pinned = False
    in_place = False
    moves = True

    def host(self, raw: NDArray[Any]) -> NDArray[Any]:
        """What reaches the graph, ``(batch, *graph_shape)``, of samples as ``Dataset.read`` delivers them."""
        return raw

    def use(self, tokenizer: AnyTokenizer) -> None:
        """Takes a tokenizer that was fitted before."""
        raise TypeError(f"{type(self).__name__} has no tokenizer")

    @abstractmethod
    def fit(self, blocks: Iterable[Any]) -> None:
        """Learns from the training split: blocks of its raw samples, one in memory at a time."""

    @abstractmethod
    def learned(self) -> dict[str, Any]:
        """What ``fit`` learned, JSON-able."""

    @abstractmethod
    def pin(self, learned: Mapping[str, Any]) -> bool:
        """Takes what another front end learned for good, as a trained network expects it.

        Returns:
            False where something else is pinned already.

        Raises:
            ValueError: it does not fit the data; says how.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what ``fit`` learned into ``folder``."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Takes what ``save`` wrote."""

    def key(self) -> list[object]:
        """JSON-able: what features depend on beside the data and the code."""
        constants = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            if self.pinned or name not in self.fitted:
                constants.update(name.encode() + value.numpy().tobytes())
        return [type(self).__qualname__, list(self.feature_shape), constants.hexdigest()]


class Standardiser(Frontend):
    """Standardises features to mean 0 and deviation 1 over the training split, in the graph.

    Subclasses write ``transform`` and the axes that share one mean.
    """

    fitted = ("scale", "shift")
    scale: Tensor
    shift: Tensor

    def __init__(self, spec: ModalitySpec, stats_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.graph_shape = spec.shape
        self.graph_dtype = "uint8" if spec.dtype == "uint8" else "float32"
        self._rate_hz = spec.sample_rate_hz
        self.register_buffer("scale", torch.ones(stats_shape))
        self.register_buffer("shift", torch.zeros(stats_shape))

    @abstractmethod
    def transform(self, raw: Tensor) -> Tensor:
        """Raw batch to features, before standardisation."""

    def forward(self, raw: Tensor) -> Tensor:
        # Written as OpenVINO would rewrite it: what it rewrites loses the mark that keeps it in f32.
        return self.transform(raw) * self.scale + self.shift

    @torch.no_grad()
    def fit(self, blocks: Iterable[Any]) -> None:
        """Sets scale and shift from raw blocks; sums in float64, one block in memory at a time.

        Changes nothing where they are pinned.
        """
        if self.pinned:
            return
        shape = self.scale.shape
        count, total, squares = 0, torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        for raw in blocks:
            values = self.transform(torch.as_tensor(raw)).double()
            axes = [0, *(axis + 1 for axis, size in enumerate(shape) if size == 1)]
            total += values.sum(dim=axes, keepdim=True)[0].reshape(shape)
            squares += values.square().sum(dim=axes, keepdim=True)[0].reshape(shape)
            count += values.numel() // max(1, math.prod(shape))
        mean = total / count
        # A constant feature has no deviation: it is centred and left at its scale.
        deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
        scale = 1 / deviation.clamp_min(_MIN_STD)
        self.scale.copy_(scale)
        self.shift.copy_(-mean * scale)
        self._tell()

    def _tell(self) -> None:
        """Lets the features' shape say how they are standardised."""
        self.feature_shape = self.shape_under(**self.learned())

    def shape_under(self, scale: Sequence[float], shift: Sequence[float]) -> NumberShape:
        """The features' shape, were they standardised by these constants."""
        full = 255.0 if self.graph_dtype == "uint8" else 1.0
        return NumberShape(self.feature_shape, scale, shift, full, self._rate_hz)

    def learned(self) -> dict[str, Any]:
        return {name: [float(value) for value in getattr(self, name).flatten().tolist()] for name in self.fitted}

    def pin(self, learned: Mapping[str, Any]) -> bool:
        values = {name: torch.tensor(learned[name]) for name in self.fitted}
        expected = self.scale.numel()
        wrong = [value.numel() for value in values.values() if value.numel() != expected]
        if wrong:
            raise ValueError(f"{wrong[0]} features, but the data has {expected}")
        same = True
        for name, value in values.items():
            own, theirs = getattr(self, name), value.reshape(self.scale.shape)
            if self.pinned:
                same &= torch.equal(own, theirs)
            else:
                own.copy_(theirs)
        self.pinned = True
        self._tell()
        return same

    def save(self, folder: Path) -> None:
        save_file({name: getattr(self, name) for name in self.fitted}, folder / "statistics.safetensors")

    def load(self, folder: Path) -> None:
        for name, value in load_file(folder / "statistics.safetensors").items():
            getattr(self, name).copy_(value)
        self._tell()


@dataclass(frozen=True)
class NoOptions:
    """For a front end without options."""


class ImageScale(Standardiser):
    """``(B, H, W)`` or ``(B, H, W, C)``, uint8 or float, to standardised ``(B, C, H, W)``.

    Bytes are not brought to [0, 1] first: standardising does that as well, in one product.
    """

    kind = Kind.IMAGE
    Options = NoOptions

    def __init__(self, spec: ModalitySpec, options: NoOptions) -> None:
        height, width, *rest = spec.shape
        channels = rest[0] if rest else 1
        super().__init__(spec, (channels, 1, 1))
        self.feature_shape = (channels, height, width)

    def transform(self, raw: Tensor) -> Tensor:
        channels_first = raw.reshape(-1, *self.feature_shape) if raw.ndim == 3 else raw.permute(0, 3, 1, 2)
        return channels_first.float()


class LogMel(Standardiser):
    """``(B, samples)`` waveform in [-1, 1] to a log-mel spectrogram ``(B, 1, mels, frames)``.

    The short-time Fourier transform is a convolution with fixed weights: it exports to any runtime and
    agrees with an FFT to float precision. Frames are not padded at the ends, so that a stream and a file
    give the same frames.
    """

    kind = Kind.AUDIO
    Options = LogMelOptions
    code = (Path(__file__), Path(mels_module.__file__))
    fourier: Tensor
    bank: Tensor

    def __init__(self, spec: ModalitySpec, options: LogMelOptions) -> None:
        where = f"modalities.{spec.name}"
        if spec.sample_rate_hz is None:
            raise UserError("the sample rate is not known", where=where, fix="give sample_rate_hz in dataset.yaml")
        n_fft = options.n_fft or options.window
        frames = 1 + (spec.shape[0] - options.window) // options.hop
        if not 0 < options.window <= n_fft or options.hop < 1 or frames < 1:
            raise UserError(
                f"window {options.window}, hop {options.hop} and n_fft {n_fft} do not fit {spec.shape[0]} samples",
                where=where,
            )
        super().__init__(spec, (1, options.mels, 1))
        self.feature_shape = (1, options.mels, frames)
        self._hop = options.hop
        self._samples = spec.shape[0]
        bank = mel_bank(options.mels, n_fft, spec.sample_rate_hz, options.low_hz, options.high_hz)
        if not (bank.sum(axis=1) > 0).all():
            empty = int(np.argmin(bank.sum(axis=1) > 0))
            raise UserError(
                f"mel band {empty} of {options.mels} falls between two of the {n_fft}-point transform's lines",
                where=where,
                fix="raise n_fft, or take fewer mels",
            )
        self.register_buffer("fourier", torch.from_numpy(fourier_rows(options.window, n_fft))[:, None])
        floor = 10 ** (options.floor_db / 10)
        self.register_buffer("bank", torch.from_numpy(bank / floor)[:, :, None])

    def transform(self, raw: Tensor) -> Tensor:
        # reshape, not unsqueeze: OpenVINO drops the keep-in-f32 mark from the latter.
        lines = nn.functional.conv1d(raw.reshape(-1, 1, self._samples), self.fourier, stride=self._hop)
        real, imaginary = lines.chunk(2, dim=1)
        mel = nn.functional.conv1d(real * real + imaginary * imaginary, self.bank)
        # In units of the floor, so that 1 is added and not 1e-8: torch's ONNX exporter (2.13) takes the
        # latter for zero and drops it.
        return torch.log(mel + 1).reshape(-1, *self.feature_shape)


@dataclass(frozen=True)
class RawOptions:
    """A waveform without analysis."""

    features: Literal["raw"] = "raw"


class RawWave(Standardiser):
    """``(B, samples)`` waveform in [-1, 1] to itself, standardised: ``(B, 1, samples)``."""

    kind = Kind.AUDIO
    augmented_as = Kind.SEQUENCE
    Options = RawOptions

    def __init__(self, spec: ModalitySpec, options: RawOptions) -> None:
        super().__init__(spec, (1, 1))
        self.feature_shape = (1, *spec.shape)

    def transform(self, raw: Tensor) -> Tensor:
        return raw.reshape(-1, *self.feature_shape)


class SequenceScale(Standardiser):
    """``(B, time, channels)`` to ``(B, channels, time)``, standardised per channel."""

    kind = Kind.SEQUENCE
    Options = NoOptions

    def __init__(self, spec: ModalitySpec, options: NoOptions) -> None:
        time, channels = spec.shape
        super().__init__(spec, (channels, 1))
        self.feature_shape = (channels, time)

    def transform(self, raw: Tensor) -> Tensor:
        return raw.float().transpose(1, 2)


class VectorScale(Standardiser):
    """``(B, features)``, standardised per feature."""

    kind = Kind.VECTOR
    Options = NoOptions

    def __init__(self, spec: ModalitySpec, options: NoOptions) -> None:
        super().__init__(spec, spec.shape)
        self.feature_shape = spec.shape

    def transform(self, raw: Tensor) -> Tensor:
        return raw.float()


class VideoScale(Standardiser):
    """``(B, time, height, width, C)``, uint8 or float, to what an input strategy makes of it, standardised per channel.

    Frames of pictures (3 channels) or maps of features (hundreds) alike.
    """

    kind = Kind.VIDEO
    Options = VideoOptions

    def __init__(self, spec: ModalitySpec, options: VideoOptions) -> None:
        video_input = make_video_input(options.input, options.options, spec.shape, f"modalities.{spec.name}")
        super().__init__(spec, video_input.statistics_shape)
        self._options, self._input = options, video_input
        self.feature_shape = video_input.feature_shape
        self.in_place = video_input.in_place and self.graph_dtype == "uint8"
        self.moves = video_input.moves
        own = Path(inspect.getfile(type(video_input)))
        self.code = (*type(self).code, Path(video_inputs_module.__file__), own)

    def transform(self, raw: Tensor) -> Tensor:
        return self._input(raw.float())

    def of_frame(self, raw: Tensor) -> Tensor | None:
        """``(B, height, width, C)`` to one time step ``(B, C, height, width)`` of the features; None where the strategy
        does not look at frames one by one."""
        frame = self._input.of_frame(raw.float())
        return None if frame is None else frame * self.scale[:, 0] + self.shift[:, 0]

    @property
    def taken(self) -> tuple[int, ...]:
        """Which frames of a clip are looked at, where ``of_frame`` is known."""
        return self._input.taken

    def key(self) -> list[object]:
        return [*super().key(), asdict(self._options)]


@dataclass(frozen=True)
class TokenizerOptions:
    """How texts become token ids.

    Attributes:
        vocabulary: most token ids; the tokenizer has fewer where the training texts hold fewer patterns.
        max_tokens: ids per sample: shorter texts are padded, longer ones lose their end.
        lower_case: whether case is ignored.
        tokenizer: ``hf:path-or-name`` takes that model's own; ``vocabulary`` and ``lower_case`` are its matter then.
    """

    vocabulary: int = 2000
    max_tokens: int = 64
    lower_case: bool = True
    tokenizer: str = ""


class TokenIds(Frontend):
    """Texts to token ids ``(B, max_tokens)`` int32, by a tokenizer fitted on training texts, or by a language model's
    own, which is pinned; all on the host."""

    kind = Kind.TEXT
    Options = TokenizerOptions
    code = (
        Path(__file__),
        Path(tokens_module.__file__),
        Path(tokenizer_module.__file__),
        Path(tokenizer_json_module.__file__),
    )
    feature_dtype = "int32"
    graph_dtype = "int32"

    def __init__(self, spec: ModalitySpec, options: TokenizerOptions) -> None:
        super().__init__()
        where = f"modalities.{spec.name}"
        if options.vocabulary < FIRST_MERGE:
            raise UserError(
                f"vocabulary must be at least {FIRST_MERGE}: bytes and special tokens, received {options.vocabulary}",
                where=where,
            )
        if not 1 <= options.max_tokens <= _MOST_TOKENS:
            raise UserError(f"max_tokens must be 1 to {_MOST_TOKENS}, received {options.max_tokens}", where=where)
        self._options = options
        self.graph_shape = (options.max_tokens,)
        self.feature_shape = TokenShape(options.max_tokens, options.vocabulary)

    def use(self, tokenizer: AnyTokenizer) -> None:
        """Takes a fitted tokenizer; ids are below its vocabulary from then on."""
        self.tokenizer = tokenizer
        own = (tokenizer.padding, tokenizer.identity) if isinstance(tokenizer, JsonTokenizer) else ()
        self.feature_shape = TokenShape(tokenizer.max_tokens, tokenizer.vocabulary, *own)

    def fit(self, blocks: Iterable[Any]) -> None:
        if self.pinned:
            return
        options = self._options
        assert not options.tokenizer, "a model's own tokenizer is pinned first"
        texts = (str(text) for block in blocks for text in block)
        merges = learn_merges(texts, options.vocabulary, lower_case=options.lower_case)
        self.use(Tokenizer(merges, options.max_tokens, options.lower_case))

    def learned(self) -> dict[str, Any]:
        assert self.tokenizer is not None, "fit comes first"
        return {"tokenizer": self.tokenizer.to_json()}

    def pin(self, learned: Mapping[str, Any]) -> bool:
        theirs = parse_tokenizer(json.loads(learned["tokenizer"]))
        same = not self.pinned or self.tokenizer == theirs
        if not self.pinned:
            self.use(theirs)
            self.pinned = True
        return same

    def save(self, folder: Path) -> None:
        assert self.tokenizer is not None, "fit comes first"
        write_text(folder / TOKENIZER, self.tokenizer.to_json())

    def load(self, folder: Path) -> None:
        self.use(read_tokenizer(folder / TOKENIZER))

    def key(self) -> list[object]:
        return [*super().key(), asdict(self._options), self.learned() if self.pinned else None]

    def host(self, raw: NDArray[Any]) -> NDArray[Any]:
        assert self.tokenizer is not None, "fit comes first"
        return self.tokenizer.encode_all(raw)

    def forward(self, raw: Tensor) -> Tensor:
        return raw


_BY_KIND: dict[Kind, Any] = {
    cls.kind: cls for cls in (ImageScale, LogMel, SequenceScale, VectorScale, VideoScale, TokenIds)
}
_FRONTENDS: tuple[Any, ...] = (*_BY_KIND.values(), RawWave)


def frontend_options(kind: Kind, said: Mapping[str, Any] | None = None) -> type:
    """The dataclass of options that the front end of ``kind`` takes.

    Args:
        said: what is said of the front end; of sounds, ``features: raw`` asks for the waveform itself.
    """
    raw = kind is Kind.AUDIO and (said or {}).get("features") == "raw"
    return RawOptions if raw else _BY_KIND[kind].Options


def make_frontend(spec: ModalitySpec, options: object, tokenizer: AnyTokenizer | None = None) -> Frontend:
    """The front end for a modality; ``options`` is an instance of ``frontend_options(spec.kind)``.

    Args:
        tokenizer: of a text front end that was fitted before.
    """
    fitting = [cls for cls in _FRONTENDS if cls.kind is spec.kind and cls.Options is type(options)]
    frontend: Frontend = fitting[0](spec, options)
    if tokenizer is not None:
        frontend.use(tokenizer)
    return frontend
