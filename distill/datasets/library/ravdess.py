"""``ravdess``: eight emotions, spoken and on the face, by 24 actors.

Sound is brought to 16 kHz and to one length. Clips last 2.9 to 5.3 s, with about one second of silence
before and after 0.9 to 3.0 s of speech, so the stretch with the most energy is taken (the rule by which a
device fits a file as well): at 3 s it holds the whole speech of every clip, where the file's middle would
cut 1 clip in 80. Levels stay as recorded: an angry voice is loud.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DatasetFile, ModalityFile, arrays_folder
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.files import fit_length
from distill.datasets.raw import ravdess
from distill.datasets.readers import resample
from distill.datasets.spec import Kind
from distill.datasets.splits import RANDOM, REFERENCE, SplitRule, split_codes
from mst_edge.core.errors import UserError

SAMPLE_RATE_HZ = 16000
_FETCH = "mst-edge data fetch ravdess"


@dataclass(frozen=True)
class RavdessOptions:
    """What a recipe may set under ``dataset.options``.

    Attributes:
        seconds: length of the sound; of longer clips the stretch with the most energy is taken.
        actors: which of the 24 actors; empty for all.
    """

    seconds: float = 3.0
    actors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0.1 <= self.seconds <= 10:
            raise UserError(f"seconds must be in 0.1..10, received {self.seconds}", where="dataset.options.seconds")
        unknown = sorted(set(self.actors) - set(ravdess.ACTORS))
        if unknown:
            raise UserError(f"there is no actor {unknown[0]}, only 1..24", where="dataset.options.actors")


@DATASETS.register("ravdess")
class Ravdess(DatasetBuilder):
    """Speech ``audio`` (seconds * 16000,) int16 and ``face`` (35,) float32 action units; 8 classes."""

    summary = "emotional speech + facial action units of 24 actors (RAVDESS)"
    licence = "CC BY-NC-SA 4.0 (non-commercial)"
    Options: ClassVar[type] = RavdessOptions
    groupings = ("actor", RANDOM, REFERENCE)
    sources = (ravdess.AUDIO, ravdess.ACTION_UNIT_FILES)

    def build(self, options: RavdessOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        root = require_root(data_root, "ravdess")
        clips = ravdess.clips_of(options.actors or ravdess.ACTORS)
        target = np.array([clip.emotion for clip in clips])
        actor = np.array([clip.actor for clip in clips])
        face = np.stack(list(ravdess.read_action_units(ravdess.ACTION_UNIT_FILES.locate(root, _FETCH), clips)))
        length = round(options.seconds * SAMPLE_RATE_HZ)
        about = DatasetFile(
            name="ravdess",
            classes=list(ravdess.EMOTIONS),
            modalities={
                "audio": ModalityFile(kind=Kind.AUDIO, sample_rate_hz=SAMPLE_RATE_HZ),
                "face": ModalityFile(kind=Kind.VECTOR),
            },
            groups={"actor": "actor.npy"},
            split="split.npy",
            licence=self.licence,
            source="RAVDESS speech; OpenFace action units",
        )
        with arrays_folder(out, about) as writer:
            audio = ravdess.read_speech(ravdess.AUDIO.locate(root, _FETCH), clips, SAMPLE_RATE_HZ)
            writer.stream("audio", (len(clips), length), np.int16, _fitted(audio, length))
            small: dict[str, NDArray[Any]] = {
                "face": face,
                "target": target,
                "actor": actor,
                "split": split_codes(target, {"actor": actor}, rule),
            }
            for name, array in small.items():
                writer.save(name, array)


def _fitted(clips: Iterator[tuple[NDArray[np.int16], int]], length: int) -> Iterator[NDArray[np.int16]]:
    for pcm, rate in clips:
        wave = fit_length(resample(pcm.astype(np.float64), rate, SAMPLE_RATE_HZ), length)
        yield np.clip(np.round(wave), -32768, 32767).astype(np.int16)
