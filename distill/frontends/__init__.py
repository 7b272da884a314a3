"""Front ends: what a device records, turned into what a network reads.

A front end has no learned weights. What it knows of the data comes from the training split alone. It has two
parts: ``host`` is plain code on the device's CPU, which hands an array to the graph (only text needs it: a
tokenizer); ``forward`` is part of the exported graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.runtime.tokenizer import AnyTokenizer
from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends.base import Frontend, NoOptions, Standardiser
from distill.frontends.numbers import SequenceScale, VectorScale
from distill.frontends.pictures import ImageOptions, ImageScale, VideoScale
from distill.frontends.sounds import LogMel, LogMelOptions, RawOptions, RawWave
from distill.frontends.texts import TokenIds, TokenizerOptions
from distill.video_inputs.base import VideoOptions

__all__ = [
    "Frontend",
    "ImageOptions",
    "ImageScale",
    "LogMel",
    "LogMelOptions",
    "NoOptions",
    "RawOptions",
    "RawWave",
    "SequenceScale",
    "Standardiser",
    "TokenIds",
    "TokenizerOptions",
    "VectorScale",
    "VideoOptions",
    "VideoScale",
    "frontend_options",
    "make_frontend",
]

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
