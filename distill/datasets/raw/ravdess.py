"""RAVDESS speech (Livingstone and Russo, PLoS ONE 2018, CC BY-NC-SA 4.0): 24 actors, 60 clips each, 8 emotions.

A clip's name is seven two-digit fields: modality (01 audio and video, 03 audio), channel (01 speech),
emotion, intensity, statement, repetition, actor. The audio clip 03-* and the video clip 01-* with the same
other six fields are one performance.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.datasets.readers import AudioFiles, RawFiles, pcm_digest
from distill.datasets.sources import Home, Source
from mst_edge.core.errors import UserError

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
ACTORS = tuple(range(1, 25))
_INTENSITIES = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
_PRESENCES = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45)
ACTION_UNITS = (*(f"AU{unit:02}_r" for unit in _INTENSITIES), *(f"AU{unit:02}_c" for unit in _PRESENCES))
_MAX_SECONDS_OFF = 0.005
_MAX_RMS_OFF = 0.1  # relative; the 48 kHz original holds more than its 16 kHz copy
_SHOWN = 3


@dataclass(frozen=True)
class Clip:
    """One performance; ``key`` is its name without the field of the modality."""

    key: str

    @property
    def audio(self) -> str:
        """Stem of its sound file."""
        return f"03-{self.key}"

    @property
    def video(self) -> str:
        """Stem of its video file, and of what was computed from that."""
        return f"01-{self.key}"

    @property
    def emotion(self) -> int:
        """Class number: position in ``EMOTIONS``."""
        return int(self.key.split("-")[1]) - 1

    @property
    def actor(self) -> int:
        """1..24."""
        return int(self.key.split("-")[5])


def clips_of(actors: Sequence[int]) -> list[Clip]:
    """All 60 clips of each actor, sorted by name; neutral speech has no strong intensity."""
    return [
        Clip(f"01-{emotion:02}-{intensity:02}-{statement:02}-{take:02}-{actor:02}")
        for emotion, intensity, statement, take in product(range(1, 9), (1, 2), (1, 2), (1, 2))
        for actor in sorted(set(actors))
        if (emotion, intensity) != (1, 2)
    ]


def check_audio(path: Path) -> None:
    """Proves the decoded content of every clip.

    The 16 kHz copy must match sample for sample; of the 48 kHz original, duration and level must.
    """
    with AudioFiles(path) as files:
        require_all(files, [clip.audio for clip in clips_of(ACTORS)], "clips", path)
        facts = _facts()
        differing = [stem for stem, fact in facts.items() if not _is_published(files, stem, fact)]
    if differing:
        raise UserError(f"{_count(differing, 'clips')} differ from the published recordings", where=path)


def check_face(path: Path) -> None:
    """Proves that every clip has plausible action units: finite, intensities 0..5, presences 0..1."""
    for _ in read_action_units(path, clips_of(ACTORS)):
        pass


AUDIO = Source(
    name="RAVDESS speech",
    files=(
        "ravdess/ravdess_speech_16khz_flac.zip",
        "ravdess/Audio_Speech_Actors_01-24.zip",
        "ravdess/Audio_Speech_Actors_01-24",
    ),
    homes=(
        Home(
            "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip",
            "ravdess/Audio_Speech_Actors_01-24.zip",
        ),
    ),
    check=check_audio,
)

ACTION_UNIT_FILES = Source(
    name="RAVDESS facial action units",
    files=(
        "ravdess/face_action_units.npz",
        "ravdess/FacialTracking_Actors_01-24.zip",
        "ravdess/FacialTracking_Actors_01-24",
    ),
    homes=(
        Home(
            "https://zenodo.org/records/3255102/files/FacialTracking_Actors_01-24.zip",
            "ravdess/FacialTracking_Actors_01-24.zip",
        ),
    ),
    check=check_face,
)


def read_speech(path: Path, clips: Sequence[Clip], least_rate_hz: int) -> Iterator[tuple[NDArray[np.int16], int]]:
    """``(samples,)`` 16-bit PCM and rate of each clip, in the order of ``clips``, one in memory at a time.

    Raises:
        UserError: a clip is missing, damaged, or sampled below ``least_rate_hz``; names it.
    """
    with AudioFiles(path) as files:
        require_all(files, [clip.audio for clip in clips], "clips", path)
        for clip in clips:
            pcm, rate = files.read(clip.audio)
            if rate < least_rate_hz:
                raise UserError(
                    f"is sampled at {rate} Hz, at least {least_rate_hz} Hz are needed", where=files.where(clip.audio)
                )
            yield pcm, rate


def read_action_units(path: Path, clips: Sequence[Clip]) -> Iterator[NDArray[np.float32]]:
    """``(35,)`` per clip, named by ``ACTION_UNITS``: 17 intensities (0..5) and 18 presences (0..1), mean over frames.

    ``path`` is an npz with one row per clip (``au``, ``names``, ``audio_file``), or an archive or a folder
    of OpenFace tables 01-*.csv, of which frames count where a face was tracked.

    Raises:
        UserError: a clip has no row or table, its label contradicts its name, or a value is out of range.
    """
    for clip, units in _rows_of_npz(path, clips) if _is_npz(path) else _rows_of_tables(path, clips):
        high = np.where([name.endswith("_r") for name in ACTION_UNITS], 5.0, 1.0)
        bad = np.flatnonzero(~((units >= 0) & (units <= high)))  # NaN is bad as well
        if len(bad):
            raise UserError(
                f"{ACTION_UNITS[bad[0]]} of clip {clip.video} is {units[bad[0]]}, expected 0..{high[bad[0]]:g}",
                where=path,
            )
        yield units


def _is_npz(path: Path) -> bool:
    """By its content: a file that is being fetched has another name."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return "au.npy" in file.namelist()


def _rows_of_npz(path: Path, clips: Sequence[Clip]) -> Iterator[tuple[Clip, NDArray[np.float32]]]:
    held = _load_npz(path)
    if held["au"].shape != (len(held["audio_file"]), len(held["names"])):
        raise UserError(f"au has shape {held['au'].shape}, which names and audio_file contradict", where=path)
    names = [str(name) for name in held["names"]]
    absent = [name for name in ACTION_UNITS if name not in names]
    if absent:
        raise UserError(f"lacks {_count(absent, 'action units')}", where=path)
    columns = [names.index(name) for name in ACTION_UNITS]
    row_of = {Path(str(file)).stem: row for row, file in enumerate(held["audio_file"])}
    require_all(row_of, [clip.audio for clip in clips], "clips", path)
    for clip in clips:
        row = row_of[clip.audio]
        if int(held["emotion"][row]) != clip.emotion:
            raise UserError(f"row {row} says emotion {held['emotion'][row]} of clip {clip.audio}", where=path)
        yield clip, held["au"][row, columns].astype(np.float32)


def _load_npz(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in ("au", "names", "audio_file", "emotion")}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"not a readable npz of action units ({error})", where=path) from None


def _rows_of_tables(path: Path, clips: Sequence[Clip]) -> Iterator[tuple[Clip, NDArray[np.float32]]]:
    with RawFiles(path, (".csv",)) as files:
        require_all(files, [clip.video for clip in clips], "tables", path)
        for clip in clips:
            yield clip, _mean_of_table(files.content(clip.video), files.where(clip.video))


def _mean_of_table(content: bytes, where: str) -> NDArray[np.float32]:
    """Mean over the frames of an OpenFace table in which a face was tracked."""
    rows = csv.reader(io.StringIO(content.decode("utf-8", errors="replace")))
    header = next(rows, [])
    column = {name.strip(): index for index, name in enumerate(header)}
    absent = [name for name in ACTION_UNITS if name not in column]
    if absent:
        raise UserError(f"lacks {_count(absent, 'columns')}", where=where)
    wanted = [column[name] for name in ACTION_UNITS]
    success = column.get("success")
    total, frames = np.zeros(len(wanted)), 0
    for number, row in enumerate(rows, start=2):
        try:
            if success is None or float(row[success]):
                total += [float(row[index]) for index in wanted]
                frames += 1
        except (ValueError, IndexError) as error:
            raise UserError(f"not a row of numbers ({error})", where=f"{where}:{number}") from None
    if not frames:
        raise UserError("no frame has a tracked face", where=where)
    return (total / frames).astype(np.float32)


def _facts() -> dict[str, dict[str, str]]:
    """Sound file's stem to the digest of its PCM at 16 kHz, its duration and its level."""
    text = resources.files(__package__).joinpath("ravdess_content.csv").read_text(encoding="utf-8")
    return {row["clip"]: row for row in csv.DictReader(text.splitlines())}


def _is_published(files: AudioFiles, stem: str, fact: Mapping[str, str]) -> bool:
    pcm, rate = files.read(stem)
    if rate == 16000 and files.extension(stem) == ".flac":
        return pcm_digest(pcm) == fact["pcm_sha256_16"]
    rms = float(np.sqrt(np.mean((pcm / 32768.0) ** 2)))
    return (
        abs(len(pcm) / rate - float(fact["seconds"])) <= _MAX_SECONDS_OFF
        and abs(rms - float(fact["rms"])) <= _MAX_RMS_OFF * float(fact["rms"]) + 1e-4
    )


def require_all(held: Container[str], wanted: Sequence[str], what: str, where: Path) -> None:
    """Makes sure that ``held`` has every name.

    Raises:
        UserError: it lacks some; counts them and names the first.
    """
    missing = [stem for stem in wanted if stem not in held]
    if missing:
        raise UserError(f"lacks {_count(missing, what)}", where=where)


def _count(names: Sequence[str], what: str) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"
