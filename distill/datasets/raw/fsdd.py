"""Free Spoken Digit Dataset (Jakobovski and others, CC BY-SA 4.0): 3 000 utterances of 6 speakers at 8 kHz."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.datasets.readers import AudioFiles, pcm_digest
from distill.datasets.sources import Home, Source
from mst_edge.core.errors import UserError

SAMPLE_RATE_HZ = 8000
_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"


@dataclass(frozen=True)
class Utterance:
    """One recording: ``pcm`` is ``(samples,)`` 16-bit at 8 kHz."""

    digit: int
    speaker: str
    take: int
    pcm: NDArray[np.int16]


def _digests() -> dict[str, str]:
    """Clip stem to the digest of its PCM."""
    text = resources.files(__package__).joinpath("fsdd_pcm_sha256.csv").read_text(encoding="utf-8")
    return {row["clip"]: row["pcm_sha256_16"] for row in csv.DictReader(text.splitlines())}


def check_fsdd(path: Path) -> None:
    """Proves that every utterance decodes to the published samples, whatever the archive's container."""
    expected = _digests()
    with AudioFiles(path) as archive:
        missing = sorted(set(expected) - set(archive.stems()))
        if missing:
            raise UserError(f"lacks {len(missing)} utterances, the first is {missing[0]}", where=path)
        for stem, digest in expected.items():
            pcm, rate = archive.read(stem)
            if rate != SAMPLE_RATE_HZ or pcm_digest(pcm) != digest:
                raise UserError(f"utterance {stem} differs from the published recording", where=path)


SOURCE = Source(
    name="Free Spoken Digit Dataset",
    files=("fsdd/recordings_flac.zip", "fsdd/recordings_wav.zip"),
    homes=(
        Home(
            f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{_COMMIT}.zip",
            "fsdd/recordings_wav.zip",
        ),
    ),
    check=check_fsdd,
)


def read_fsdd(root: Path, fetch: str) -> Iterator[Utterance]:
    """All utterances in the order of their names."""
    with AudioFiles(SOURCE.locate(root, fetch)) as archive:
        for stem in sorted(_digests()):
            digit, speaker, take = stem.split("_")
            yield Utterance(int(digit), speaker, int(take), archive.read(stem)[0])
