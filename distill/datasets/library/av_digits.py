"""``av_digits``: a handwritten and a spoken digit. Everything ships with us, nothing is downloaded.

Images are the 1 797 scans that come with scikit-learn (Alpaydin and Kaynak, UCI ML repository,
CC BY 4.0), with sensor noise added. Speech is synthesised (see ``assets/synthesize_spoken_digits.py``)
and mixed with white, pink or babble noise at a random signal-to-noise ratio.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DatasetFile, ModalityFile, save_arrays
from distill.datasets.builder import DATASETS, DatasetBuilder
from distill.datasets.pairing import mix_at_snr, pair_within_class, place, to_pcm16
from distill.datasets.spec import Kind
from distill.datasets.splits import SplitRule, assign
from mst_edge.core.errors import UserError

SAMPLE_RATE_HZ = 8000
_SAMPLES = 8000
_BABBLE_TALKERS = 4


@dataclass(frozen=True)
class AvDigitsOptions:
    """What a recipe may set under ``dataset.options``.

    Attributes:
        pairs: how many image-speech pairs, over all splits.
        snr_db: lowest and highest signal-to-noise ratio of the speech.
        image_noise: standard deviation of the noise on the image, as a share of full scale.
    """

    pairs: int = 4000
    snr_db: tuple[float, float] = (-12.0, 3.0)
    image_noise: float = 0.45

    def __post_init__(self) -> None:
        if self.pairs < 100:
            raise UserError(f"pairs must be at least 100, received {self.pairs}", where="dataset.options.pairs")
        if self.snr_db[0] > self.snr_db[1]:
            raise UserError(f"snr_db must be [low, high], received {list(self.snr_db)}", where="dataset.options")
        if self.image_noise < 0:
            raise UserError("image_noise must not be negative", where="dataset.options.image_noise")


@DATASETS.register("av_digits")
class AvDigits(DatasetBuilder):
    """Digit image (8, 8) uint8 and one second of speech (8000,) int16 at 8 kHz; 10 classes."""

    summary = "digit image + synthesised spoken digit; ships with mst-edge"
    licence = "images CC BY 4.0 (UCI optical digits); speech CC0"
    Options: ClassVar[type] = AvDigitsOptions
    groupings = ("recording", "speaker")

    def build(self, options: AvDigitsOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        images, image_target = _scans()
        clips, clip_target, speakers = _speech()
        by_speaker = speakers if rule.by == "speaker" else None
        image_split = assign(image_target, None, rule)
        clip_split = assign(clip_target, by_speaker, rule)
        pairs = pair_within_class(image_target, image_split, clip_target, clip_split, rule, options.pairs)
        rng = np.random.default_rng([rule.seed, 2])
        babble = [[clips[i] for i in np.flatnonzero(clip_split == code)] for code in range(3)]
        audio = np.stack(
            [
                _noisy(clips[clip], babble[split], options.snr_db, rng)
                for clip, split in zip(pairs.second, pairs.split, strict=True)
            ]
        )
        noise = rng.normal(0.0, 255.0 * options.image_noise, (len(pairs.first), *images.shape[1:]))
        image = np.clip(np.round(images[pairs.first] * (255.0 / 16.0) + noise), 0, 255).astype(np.uint8)
        about = DatasetFile(
            name="av_digits",
            classes=[str(digit) for digit in range(10)],
            modalities={
                "image": ModalityFile(kind=Kind.IMAGE),
                "audio": ModalityFile(kind=Kind.AUDIO, sample_rate_hz=SAMPLE_RATE_HZ),
            },
            groups={"image_recording": "image_recording.npy", "audio_recording": "audio_recording.npy"},
            split="split.npy",
            licence=self.licence,
            source="scikit-learn load_digits; eSpeak NG 1.51",
        )
        arrays: dict[str, NDArray[Any]] = {
            "image": image,
            "audio": audio,
            "target": pairs.target,
            "split": pairs.split,
            "image_recording": pairs.first,
            "audio_recording": pairs.second,
        }
        save_arrays(out, arrays, about)


def _scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """``(1797, 8, 8)`` grey values 0..16 and ``(1797,)`` digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)


def _speech() -> tuple[list[NDArray[np.float64]], NDArray[np.int64], NDArray[np.str_]]:
    """Clips of various lengths in [-1, 1], their digits and their speakers."""
    import soundfile

    assets = resources.files("distill.datasets.assets")
    wave, _ = soundfile.read(io.BytesIO(assets.joinpath("spoken_digits.flac").read_bytes()))
    table = assets.joinpath("spoken_digits.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    clips = [wave[int(row["start"]) : int(row["start"]) + int(row["samples"])] for row in rows]
    target = np.array([int(row["digit"]) for row in rows])
    return clips, target, np.array([row["speaker"] for row in rows])


def _noisy(
    clip: NDArray[np.float64],
    talkers: list[NDArray[np.float64]],
    snr_db: tuple[float, float],
    rng: np.random.Generator,
) -> NDArray[np.int16]:
    speech = place(clip, _SAMPLES, rng)
    kind = rng.integers(3)
    if kind == 0:
        noise = rng.normal(size=_SAMPLES)
    elif kind == 1:
        noise = _pink(rng)
    else:
        chosen = rng.integers(len(talkers), size=_BABBLE_TALKERS)
        noise = np.sum([place(np.tile(talkers[talker], 3), _SAMPLES, rng) for talker in chosen], axis=0)
    level = rng.uniform(0.1, 0.5)
    return to_pcm16(mix_at_snr(speech * level, noise, float(rng.uniform(*snr_db))))


def _pink(rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise whose power falls by 3 dB per octave."""
    spectrum = np.fft.rfft(rng.normal(size=_SAMPLES))
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), _SAMPLES)
