"""ESC-10 environmental sounds (Piczak, ACM MM 2015, CC BY 3.0): 400 clips of about 5 s in 5 folds."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.datasets.readers import AudioFiles, pcm_digest, resample
from distill.datasets.sources import Home, Source
from mst_edge.core.errors import UserError

_COMMIT = "553c8f1743b9dba6b282e1323c3ca8fa76923448"
_MAX_SECONDS_OFF = 0.05
_MAX_RMS_OFF = 0.05  # relative


@dataclass(frozen=True)
class NoiseClip:
    """One clip: ``wave`` is ``(samples,)`` in [-1, 1] at the rate that was asked for; ``fold`` is 1..5."""

    fold: int
    wave: NDArray[np.float64]


def _facts() -> dict[str, dict[str, str]]:
    """Clip key (fold-freesound-take) to its digest at 16 kHz, duration and level."""
    text = resources.files(__package__).joinpath("esc10_content.csv").read_text(encoding="utf-8")
    return {row["clip"]: row for row in csv.DictReader(text.splitlines())}


def _key(stem: str) -> str:
    """ESC-10 names clips 1-100032-A, ESC-50 adds the class: 1-100032-A-0."""
    return "-".join(stem.split("-")[:3])


def check_esc10(path: Path) -> None:
    """Proves the decoded content.

    16 kHz FLAC must match sample for sample. The original Ogg Vorbis is lossy and decoders differ in
    the last bits, so there duration and level must match.
    """
    with AudioFiles(path) as archive:
        stems = {_key(stem): stem for stem in archive.stems()}
        for clip, facts in _facts().items():
            if clip not in stems:
                raise UserError(f"lacks clip {clip}", where=path)
            pcm, rate = archive.read(stems[clip])
            if archive.extension(stems[clip]) == ".flac":
                same = pcm_digest(pcm) == facts["pcm_sha256_16"]
            else:
                rms = float(np.sqrt(np.mean((pcm / 32768.0) ** 2)))
                same = (
                    abs(len(pcm) / rate - float(facts["seconds"])) <= _MAX_SECONDS_OFF
                    and abs(rms - float(facts["rms"])) <= _MAX_RMS_OFF * float(facts["rms"]) + 1e-4
                )
            if not same:
                raise UserError(f"clip {clip} differs from the published recording", where=path)


SOURCE = Source(
    name="ESC-10",
    files=("esc10/esc10_16khz_flac.zip", "esc10/esc10_ogg.zip"),
    homes=(Home(f"https://github.com/karoldvl/ESC-10/archive/{_COMMIT}.zip", "esc10/esc10_ogg.zip"),),
    check=check_esc10,
)


def read_esc10(root: Path, fetch: str, rate_hz: int) -> Iterator[NoiseClip]:
    """All clips at ``rate_hz``, in the order of their names."""
    with AudioFiles(SOURCE.locate(root, fetch)) as archive:
        stems = {_key(stem): stem for stem in archive.stems()}
        for clip in sorted(_facts()):
            pcm, rate = archive.read(stems[clip])
            yield NoiseClip(int(clip[0]), resample(pcm / 32768.0, rate, rate_hz))
