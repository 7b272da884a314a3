"""``avmnist``: MNIST image and spoken digit in environmental noise, in the manner of the AV-MNIST benchmark.

As there (Vielzeuf and others, ECCV workshops 2018; MultiBench, NeurIPS 2021): the image keeps only the
principal components that hold 25 % of the energy, the audio is a one-second utterance with an
environmental sound mixed in, and the two are paired at random within a class. Unlike there, the
components are fitted on training images only, and no image, utterance or noise clip is ever in two
splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distill.datasets.arrays import DatasetFile, ModalityFile, save_arrays
from distill.datasets.builder import DATASETS, DatasetBuilder, require_root
from distill.datasets.pairing import Pairs, mix_at_snr, pair_within_class, place, to_pcm16
from distill.datasets.raw import esc10, fsdd, mnist
from distill.datasets.spec import Kind
from distill.datasets.splits import SplitRule, assign
from mst_edge.core.errors import UserError

SAMPLE_RATE_HZ = fsdd.SAMPLE_RATE_HZ
_SAMPLES = SAMPLE_RATE_HZ
_FETCH = "mst-edge data fetch avmnist"
# ESC-10's folds hold different source recordings: three for training noise, one each for val and test.
_SPLIT_OF_FOLD = {1: 0, 2: 0, 3: 0, 4: 1, 5: 2}


@dataclass(frozen=True)
class AvMnistOptions:
    """What a recipe may set under ``dataset.options``.

    Attributes:
        pairs: how many image-speech pairs, over all splits.
        image_energy: share of the images' variance that the kept principal components hold.
        snr_db: lowest and highest signal-to-noise ratio of the speech.
    """

    pairs: int = 6000
    image_energy: float = 0.25
    snr_db: tuple[float, float] = (-10.0, 5.0)

    def __post_init__(self) -> None:
        if self.pairs < 100:
            raise UserError(f"pairs must be at least 100, received {self.pairs}", where="dataset.options.pairs")
        if not 0 < self.image_energy <= 1:
            raise UserError(
                f"image_energy must be in (0, 1], received {self.image_energy}",
                where="dataset.options.image_energy",
            )
        if self.snr_db[0] > self.snr_db[1]:
            raise UserError(f"snr_db must be [low, high], received {list(self.snr_db)}", where="dataset.options")


@DATASETS.register("avmnist")
class AvMnist(DatasetBuilder):
    """Digit image (28, 28) uint8 and one second of noisy speech (8000,) int16 at 8 kHz; 10 classes."""

    summary = "MNIST image + spoken digit (FSDD) in environmental noise (ESC-10)"
    licence = "MNIST: commonly cited as CC BY-SA 3.0; FSDD: CC BY-SA 4.0; ESC-10: CC BY 3.0"
    Options: ClassVar[type] = AvMnistOptions
    groupings = ("recording", "speaker")
    sources = (*mnist.SOURCES, fsdd.SOURCE, esc10.SOURCE)

    def build(self, options: AvMnistOptions, rule: SplitRule, data_root: Path | None, out: Path) -> None:
        root = require_root(data_root, "avmnist")
        images, image_target = mnist.read_mnist(root, _FETCH)
        utterances = list(fsdd.read_fsdd(root, _FETCH))
        digits = np.array([utterance.digit for utterance in utterances])
        speakers = np.array([utterance.speaker for utterance in utterances])
        image_split = assign(image_target, None, rule)
        speech_split = assign(digits, speakers if rule.by == "speaker" else None, rule)
        pairs = pair_within_class(image_target, image_split, digits, speech_split, rule, options.pairs)
        arrays: dict[str, NDArray[Any]] = {
            "image": _keep_energy(images, pairs, options.image_energy),
            "audio": _noisy_speech(utterances, root, pairs, options.snr_db, rule.seed),
            "target": pairs.target,
            "split": pairs.split,
            "image_recording": pairs.first,
            "audio_recording": pairs.second,
            "speaker": speakers[pairs.second],
        }
        about = DatasetFile(
            name="avmnist",
            classes=[str(digit) for digit in range(10)],
            modalities={
                "image": ModalityFile(kind=Kind.IMAGE),
                "audio": ModalityFile(kind=Kind.AUDIO, sample_rate_hz=SAMPLE_RATE_HZ),
            },
            groups={name: f"{name}.npy" for name in ("image_recording", "audio_recording", "speaker")},
            split="split.npy",
            licence=self.licence,
            source="MNIST, Free Spoken Digit Dataset, ESC-10",
        )
        save_arrays(out, arrays, about)


def _keep_energy(images: NDArray[np.uint8], pairs: Pairs, energy: float) -> NDArray[np.uint8]:
    """Images of the pairs, projected on the fewest components that hold ``energy`` of the variance.

    Components and mean come from the training pairs' images alone.
    """
    flat = images[pairs.first].reshape(len(pairs.first), -1).astype(np.float64)
    train = flat[pairs.split == 0]
    mean = train.mean(axis=0)
    _, singular, components = np.linalg.svd(train - mean, full_matrices=False)
    held = np.cumsum(singular**2) / np.sum(singular**2)
    kept = components[: int(np.searchsorted(held, energy)) + 1]
    projected = (flat - mean) @ kept.T @ kept + mean
    return np.clip(np.round(projected), 0, 255).astype(np.uint8).reshape(-1, *images.shape[1:])


def _noisy_speech(
    utterances: list[fsdd.Utterance], root: Path, pairs: Pairs, snr_db: tuple[float, float], seed: int
) -> NDArray[np.int16]:
    noises: list[list[NDArray[np.float64]]] = [[], [], []]
    for clip in esc10.read_esc10(root, _FETCH, SAMPLE_RATE_HZ):
        noises[_SPLIT_OF_FOLD[clip.fold]].append(clip.wave)
    rng = np.random.default_rng([seed, 2])
    out = np.empty((len(pairs.second), _SAMPLES), dtype=np.int16)
    for row, (which, split) in enumerate(zip(pairs.second, pairs.split, strict=True)):
        pcm = utterances[which].pcm / 32768.0
        speech = place(pcm * (0.3 / max(np.abs(pcm).max(), 1e-6)), _SAMPLES, rng)
        noise = noises[split][rng.integers(len(noises[split]))]
        snr = float(rng.uniform(*snr_db))
        out[row] = to_pcm16(mix_at_snr(speech, _segment(noise, rng), snr))
    return out


def _segment(noise: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """One second of the clip where it is not silent (ESC pads short sounds with digital silence)."""
    for _ in range(10):
        piece = place(noise, _SAMPLES, rng)
        if np.mean(piece**2) > 0.1 * np.mean(noise**2):
            return piece
    loudest = int(np.argmax(np.convolve(noise**2, np.ones(_SAMPLES), "valid"))) if len(noise) > _SAMPLES else 0
    return place(noise[loudest : loudest + _SAMPLES], _SAMPLES, rng)
