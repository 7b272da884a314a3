"""``ravdess``: eight emotions, spoken and on the face, by 24 actors.

Sound is brought to 16 kHz and to one length. Clips last 2.9 to 5.3 s, with about one second of silence
before and after 0.9 to 3.0 s of speech, so the stretch with the most energy is taken (the rule by which a
device fits a file as well): at 3 s it holds the whole speech of every clip, where the file's middle would
cut 1 clip in 80. Levels stay as recorded: an angry voice is loud. Pictures of the face, where asked for, are
taken evenly over the same stretch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DatasetFile, ModalityFile, arrays_folder
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.files import fit_length, fit_start
from distill.datasets.raw import ravdess, ravdess_video
from distill.datasets.raw.ravdess_video import Span
from distill.datasets.readers import resample
from distill.datasets.sources import Source
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
        face: ``action_units`` (35 numbers), or ``frames`` of the video.
        frames: how many pictures of the face.
        frame_size: their height and width.
        crop: ``center``, the central square, or ``boxes`` as ``ravdess/face_boxes.csv`` says.
    """

    seconds: float = 3.0
    actors: tuple[int, ...] = ()
    face: Literal["action_units", "frames"] = "action_units"
    frames: int = 15
    frame_size: int = 224
    crop: Literal["center", "boxes"] = "center"

    def __post_init__(self) -> None:
        if not 0.1 <= self.seconds <= 10:
            raise UserError(f"seconds must be in 0.1..10, received {self.seconds}", where="dataset.options.seconds")
        unknown = sorted(set(self.actors) - set(ravdess.ACTORS))
        if unknown:
            raise UserError(f"there is no actor {unknown[0]}, only 1..24", where="dataset.options.actors")
        for name in ("frames", "frame_size"):
            if getattr(self, name) < 1:
                raise UserError(f"must be positive, received {getattr(self, name)}", where=f"dataset.options.{name}")


@DATASETS.register("ravdess")
class Ravdess(DatasetBuilder):
    """Speech ``audio`` (seconds * 16000,) int16 and ``face``: (35,) float32 action units, or frames; 8 classes."""

    summary = "emotional speech + facial action units of 24 actors (RAVDESS)"
    licence = "CC BY-NC-SA 4.0 (non-commercial)"
    Options: ClassVar[type] = RavdessOptions
    groupings = ("actor", RANDOM, REFERENCE)
    sources = (ravdess.AUDIO, ravdess.ACTION_UNIT_FILES)

    def needs(self, options: RavdessOptions) -> Sequence[Source]:
        if options.face == "action_units":
            return self.sources
        videos = [ravdess_video.VIDEOS[actor] for actor in options.actors or ravdess.ACTORS]
        return (ravdess.AUDIO, *videos, *([ravdess_video.BOXES] if options.crop == "boxes" else []))

    def build(self, options: RavdessOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        root = require_root(data_root, "ravdess")
        clips = ravdess.clips_of(options.actors or ravdess.ACTORS)
        target = np.array([clip.emotion for clip in clips])
        actor = np.array([clip.actor for clip in clips])
        length = round(options.seconds * SAMPLE_RATE_HZ)
        about = DatasetFile(
            name="ravdess",
            classes=list(ravdess.EMOTIONS),
            modalities={
                "audio": ModalityFile(kind=Kind.AUDIO, sample_rate_hz=SAMPLE_RATE_HZ),
                "face": ModalityFile(kind=Kind.VECTOR if options.face == "action_units" else Kind.VIDEO),
            },
            groups={"actor": "actor.npy"},
            split="split.npy",
            licence=self.licence,
            source="RAVDESS speech; OpenFace action units",
        )
        with arrays_folder(out, about) as writer:
            spans: list[Span] = []
            sound = ravdess.read_speech(ravdess.AUDIO.locate(root, _FETCH), clips, SAMPLE_RATE_HZ)
            writer.stream("audio", (len(clips), length), np.int16, _fitted(sound, length, spans))
            if options.face == "action_units":
                units = ravdess.read_action_units(ravdess.ACTION_UNIT_FILES.locate(root, _FETCH), clips)
                writer.stream("face", (len(clips), len(ravdess.ACTION_UNITS)), np.float32, units)
            else:
                faces = _faces(root, clips, spans, options)
                shape = (len(clips), options.frames, options.frame_size, options.frame_size, 3)
                writer.stream("face", shape, np.uint8, faces)
            writer.save("target", target)
            writer.save("actor", actor)
            writer.save("split", split_codes(target, {"actor": actor}, rule))


def _fitted(
    clips: Iterator[tuple[NDArray[np.int16], int]], length: int, spans: list[Span]
) -> Iterator[NDArray[np.int16]]:
    """Clips at one rate and of one length; notes in ``spans`` where each was cut."""
    for pcm, rate in clips:
        wave = resample(pcm.astype(np.float64), rate, SAMPLE_RATE_HZ)
        start = fit_start(wave, length)
        spans.append(Span(start / SAMPLE_RATE_HZ, length / SAMPLE_RATE_HZ, len(wave) / SAMPLE_RATE_HZ))
        yield np.clip(np.round(fit_length(wave, length)), -32768, 32767).astype(np.int16)


def _faces(
    root: Path, clips: Sequence[ravdess.Clip], spans: Sequence[Span], options: RavdessOptions
) -> Iterator[NDArray[np.uint8]]:
    return ravdess_video.read_faces(
        root, _FETCH, clips, spans, options.frames, options.frame_size, boxes=options.crop == "boxes"
    )
