"""Class folders and CSV tables of sound, picture, video, text and array files, turned into a folder of arrays.

Class folders: ``DATA/<class>/<stem>.wav`` beside ``DATA/<class>/<stem>.png``, files of one stem being one
sample; or ``DATA/<modality>/<class>/<stem>.wav``. A CSV has a column ``target`` (or ``label``), one column
of paths or of free text per modality, and optionally ``group`` and ``split``. A target column of numbers with a
fraction is to be regressed. docs/data.md has examples.
"""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apps.runtime.clips import VIDEOS
from distill.datasets.arrays import (
    DatasetFile,
    ModalityFile,
    load_npy,
    open_arrays,
    sounds_like_text,
    write_description,
)
from distill.datasets.clips import Clips, settle_clips
from distill.datasets.readers import resample
from distill.datasets.spec import SPLITS, Dataset, Kind
from distill.datasets.target import REGRESSION
from mst_edge.core.cache import cache_root
from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path, sha256_json
from mst_edge.core.rows import npy_rows

_AUDIO = {".wav", ".flac", ".ogg", ".mp3"}
_IMAGE = {".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"}
_TEXT = {".txt"}
_ARRAY = {".npy"}
_MEDIA = _AUDIO | _IMAGE | VIDEOS | _TEXT | _ARRAY
_MOST_CHARACTERS = 4000
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class FilesOptions:
    """How files become arrays of one shape; 0 or empty is decided by looking at the files.

    Attributes:
        sample_rate_hz: rate that all sound is resampled to.
        seconds: length that all sound is brought to: shorter is centred in silence, of longer the
            loudest stretch is taken.
        image_size: height and width that all pictures are resized to.
        image_channels: 1 for grey, 3 for colour.
        task: what the target column is; ``regression`` where every entry is a number and one has a fraction.
        max_chars: length that longer texts are cut to; undecided, the longest text's, at most 4000.
        frames: pictures taken of every video, at equal parts of it; undecided, as many as the shortest has, at most 16.
        frame_size: height and width that they are resized to.
        frame_channels: 1 for grey, 3 for colour; undecided, 3.
    """

    sample_rate_hz: int = 0
    seconds: float = 0.0
    image_size: tuple[int, ...] = ()
    image_channels: int = 0
    task: Literal["", "classification", "regression"] = ""
    max_chars: int = 0
    frames: int = 0
    frame_size: tuple[int, ...] = ()
    frame_channels: int = 0

    def __post_init__(self) -> None:
        where = "dataset.options"
        for name, size in (("image_size", self.image_size), ("frame_size", self.frame_size)):
            if size and (len(size) != 2 or min(size) < 1):
                raise UserError(f"{name} must be [height, width], received {list(size)}", where=where)
        for name, channels in (("image_channels", self.image_channels), ("frame_channels", self.frame_channels)):
            if channels not in (0, 1, 3):
                raise UserError(f"{name} must be 1 or 3, received {channels}", where=where)
        if min(self.seconds, self.sample_rate_hz, self.max_chars, self.frames) < 0:
            raise UserError("seconds, sample_rate_hz, max_chars and frames must be positive", where=where)


@dataclass(frozen=True)
class Listing:
    """The samples found: per sample its label, its files or texts by modality, and optionally group and split."""

    root: Path
    labels: list[str]
    files: dict[str, list[Path]]
    texts: dict[str, list[str]] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)


def open_any(path: Path, options: FilesOptions) -> Dataset:
    """Opens a folder of arrays, class folders, or a CSV; files are converted once and kept in the cache.

    Raises:
        UserError: nothing there that could be read as a dataset, or a file is damaged.
    """
    if path.is_dir() and (path / "target.npy").exists():
        if options != FilesOptions():
            raise UserError("a folder of arrays takes no options", where="dataset.options")
        return open_arrays(path)
    listing = list_files(path)
    options = settle(listing, options)
    stamp = {
        "options": asdict(options),
        "labels": listing.labels,
        "groups": listing.groups,
        "splits": listing.splits,
        "texts": listing.texts,
        "files": {
            name: [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            for name, files in listing.files.items()
        },
        "version": 1,
    }
    folder = cache_root() / "datasets" / f"{path.stem}-{sha256_json(stamp)[:16]}"
    if not folder.is_dir():
        _convert(listing, options, folder, path)
    return open_arrays(folder)


def list_files(path: Path) -> Listing:
    """Finds the samples of class folders or a CSV.

    Raises:
        UserError: neither, or a sample lacks a file of one modality (names it).
    """
    if path.is_file() and path.suffix.lower() == ".csv":
        found = _from_csv(path)
    elif path.is_dir():
        found = _from_folders(path)
    else:
        raise UserError("no such folder or CSV file", where=path)
    if not found.labels:
        raise UserError(
            "holds neither target.npy, nor class folders with sound, picture, video or text files",
            where=path,
            fix="see docs/data.md for the three layouts",
        )
    for files in found.files.values():
        for file in files:
            if kind_of(file) is not kind_of(files[0]):
                raise UserError(f"is of another type than {files[0].name}", where=file)
    return found


def settle(listing: Listing, options: FilesOptions) -> FilesOptions:
    """``options`` with every open value decided by the files: commonest rate and size, 95th percentile length.

    Of texts the longest counts, of videos the shortest.
    """
    kinds = {name: kind_of(files[0]) for name, files in listing.files.items()}
    lengths = [len(text) for texts in listing.texts.values() for text in texts]
    rate, seconds, size, channels = (
        options.sample_rate_hz,
        options.seconds,
        options.image_size,
        options.image_channels,
    )
    for name, files in listing.files.items():
        if kinds[name] is Kind.AUDIO and not (rate and seconds):
            about = [_audio_info(file) for file in files]
            rate = rate or Counter(found for found, _ in about).most_common(1)[0][0]
            seconds = seconds or min(10.0, round(float(np.percentile([s for _, s in about], 95)), 2)) or 0.1
        if kinds[name] is Kind.IMAGE and not (size and channels):
            shapes = Counter(_image_info(file) for file in files[:200])
            (width, height), mode = shapes.most_common(1)[0][0]
            scale = min(1.0, 96 / min(width, height))
            size = size or (max(1, round(height * scale)), max(1, round(width * scale)))
            channels = channels or (1 if mode in ("L", "1", "I;16") else 3)
        if kinds[name] is Kind.TEXT:
            lengths += [file.stat().st_size for file in files]  # no fewer bytes than characters
    longest = max(1, min(_MOST_CHARACTERS, max(lengths))) if lengths else 0
    clips = Clips(options.frames, tuple(options.frame_size), options.frame_channels)
    videos = [file for name, files in listing.files.items() if kinds[name] is Kind.VIDEO for file in files]
    if videos:
        clips = settle_clips(videos, clips)
    task, most = options.task or _task(listing.labels), options.max_chars or longest
    return FilesOptions(rate, seconds, tuple(size), channels, task, most, clips.frames, clips.size, clips.channels)


def _task(labels: Sequence[str]) -> Literal["", "regression"]:
    """Quantities have a fraction somewhere; whole numbers are classes unless the recipe says otherwise."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return ""
    return "" if all(number.is_integer() for number in numbers) else REGRESSION


def kind_of(file: Path) -> Kind | None:
    """Kind by file extension; None for arrays, whose shape decides."""
    kinds = ((_AUDIO, Kind.AUDIO), (_IMAGE, Kind.IMAGE), (VIDEOS, Kind.VIDEO), (_TEXT, Kind.TEXT))
    return next((kind for suffixes, kind in kinds if file.suffix.lower() in suffixes), None)


def fit_length(wave: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Exactly ``length`` samples: a shorter sound centred in silence, of a longer one the loudest stretch.

    The same rule by which a device fits a file to the student's window.
    """
    start = fit_start(wave, length)
    if len(wave) >= length:
        return wave[start : start + length]
    return np.pad(wave, (-start, length - len(wave) + start))


def fit_start(wave: NDArray[np.float64], length: int) -> int:
    """Where in ``wave`` begins what ``fit_length`` keeps; negative by the silence that goes before a shorter one."""
    if len(wave) <= length:
        return -((length - len(wave)) // 2)
    energy = np.concatenate([[0.0], np.cumsum(wave**2)])
    return int(np.argmax(energy[length:] - energy[:-length]))


def _from_csv(path: Path) -> Listing:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"not a CSV in UTF-8 ({error})", where=path, fix="save it as UTF-8") from None
    if not rows:
        raise UserError("holds no rows", where=path)
    columns = [column for column in rows[0] if column is not None]
    label = next((name for name in ("target", "label") if name in columns), None)
    if label is None:
        raise UserError(f"has no column target; its columns: {', '.join(columns)}", where=path)
    modalities = [name for name in columns if name not in (label, "group", "split")]
    if not modalities:
        raise UserError("has no column of files", where=path, fix="add one column per modality, holding paths or text")
    texts = [name for name in modalities if _holds_text(path, name, [row[name] or "" for row in rows])]
    files = [name for name in modalities if name not in texts]
    listing = Listing(path.parent, [], {name: [] for name in files}, {name: [] for name in texts})
    for number, row in enumerate(rows, start=2):
        for name in (label, *files):
            if not (row[name] or "").strip():
                raise UserError(f"column {name} is empty", where=f"{path}:{number}")
        for name in texts:
            listing.texts[name].append(row[name] or "")
        for name in files:
            file_path = path.parent / row[name].strip()
            if not file_path.is_file():
                raise UserError(f"no such file: {row[name]}", where=f"{path}:{number}")
            listing.files[name].append(file_path)
        listing.labels.append(row[label].strip())
        if "group" in columns:
            listing.groups.append((row["group"] or "").strip())
        if "split" in columns:
            listing.splits.append(_split_name((row["split"] or "").strip(), f"{path}:{number}"))
    return listing


def _holds_text(path: Path, column: str, values: Sequence[str]) -> bool:
    """Whether a CSV's column is free text: most of its values have several words, or its name says so.

    Raises:
        UserError: neither free text nor paths.
    """
    if any(Path(value.strip()).suffix.lower() in _MEDIA for value in values[:1]) or any(
        _is_file(path.parent, value.strip()) for value in values
    ):
        return False
    if sounds_like_text(column) or sum(len(value.split()) > 1 for value in values) > len(values) / 2:
        return True
    raise UserError(
        f"column {column} holds neither files nor free text; its first value: {values[0][:60]!r}",
        where=path,
        fix="remove it, call it group where it says which samples belong together, or text where a student reads it",
    )


def _is_file(folder: Path, said: str) -> bool:
    try:
        return bool(said) and (folder / said).is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL: a text
        return False


def _split_name(said: str, where: str) -> str:
    if said not in SPLITS:
        raise UserError(f"split {said!r} is none of {', '.join(SPLITS)}", where=where)
    return said


def _from_folders(path: Path) -> Listing:
    """Either layout: by class, then stem; or by modality, class, stem."""
    children = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if any(_media(child) for child in children):
        samples = {(child.name, stem): _by_type(files) for child in children for stem, files in _by_stem(child).items()}
    else:
        samples = {}
        for modality in children:
            for label in sorted(child for child in modality.iterdir() if child.is_dir()):
                for file in _media(label):
                    samples.setdefault((label.name, file.stem), {})[modality.name] = file
    return _complete(path, samples)


def _complete(path: Path, samples: Mapping[tuple[str, str], Mapping[str, Path]]) -> Listing:
    names = sorted({name for files in samples.values() for name in files})
    listing = Listing(path, [], {name: [] for name in names})
    for (label, stem), files in sorted(samples.items()):
        for name in names:
            if name not in files:
                raise UserError(
                    f"sample {label}/{stem} has no {name} file", where=path, fix="add it, or remove the sample"
                )
            listing.files[name].append(files[name])
        listing.labels.append(label)
    return listing


def _media(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _MEDIA)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    stems: dict[str, list[Path]] = {}
    for file in _media(folder):
        stems.setdefault(file.stem, []).append(file)
    return stems


def _by_type(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(_type_name(file), file)
        if other is not file:
            raise UserError(f"is of one kind with {other.name}, and of one stem", where=file, fix="rename one of them")
    return found


def _type_name(file: Path) -> str:
    kind = kind_of(file)
    return "array" if kind is None else kind.value


def _convert(listing: Listing, options: FilesOptions, folder: Path, source: Path) -> None:
    modalities, groups = {}, {}
    notes: list[str] = []
    clips = Clips(options.frames, options.frame_size, options.frame_channels)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, files in listing.files.items():
            kind, array = kind_of(files[0]), temporary / f"{name}.npy"
            rate = options.sample_rate_hz if kind is Kind.AUDIO else None
            if kind is Kind.VIDEO:
                written = clips.write(array, files)
                rate = written.rate_hz
                notes += written.notes(name, folder / written.table.name)
            else:
                _write_modality(array, files, kind, options)
            modalities[name] = ModalityFile(kind=kind, sample_rate_hz=rate)
        for name, texts in listing.texts.items():
            np.save(temporary / f"{name}.npy", np.array(texts, f"<U{options.max_chars}"))
            modalities[name] = ModalityFile(kind=Kind.TEXT)
        target, classes = _target(listing, options)
        np.save(temporary / "target.npy", target)
        if listing.groups:
            np.save(temporary / "group.npy", np.array(listing.groups))
            groups["group"] = "group.npy"
        if listing.splits:
            np.save(temporary / "split.npy", np.array([SPLITS.index(split) for split in listing.splits]))
        about = DatasetFile(
            name=source.stem,
            task=options.task or None,
            classes=classes,
            modalities=modalities,
            groups=groups,
            split="split.npy" if listing.splits else None,
            source=str(source),
            notes=notes,
        )
        write_description(temporary, about)


def _target(listing: Listing, options: FilesOptions) -> tuple[NDArray[Any], list[str] | None]:
    """Class numbers and their names, or numbers to be regressed."""
    if options.task == REGRESSION:
        return np.array([_number(label, row, listing.root) for row, label in enumerate(listing.labels)]), None
    classes = sorted(set(listing.labels))
    return np.array([classes.index(label) for label in listing.labels]), classes


def _number(label: str, row: int, root: Path) -> float:
    try:
        return float(label)
    except ValueError:
        raise UserError(
            f"target {label!r} of sample {row} is no number", where=root, fix="or set dataset.options.task"
        ) from None


def _write_modality(path: Path, files: Sequence[Path], kind: Kind | None, options: FilesOptions) -> None:
    first = _read(files[0], kind, options)
    with npy_rows(path, (len(files), *first.shape), first.dtype) as append:
        for file in files:
            sample = _read(file, kind, options)
            if sample.shape != first.shape:
                fix = "bring arrays to one shape; videos may differ in length" if kind is None else ""
                raise UserError(f"holds {sample.shape}, the files before it {first.shape}", where=file, fix=fix)
            append(sample[None])


def _read(file: Path, kind: Kind | None, options: FilesOptions) -> NDArray[Any]:
    if kind is Kind.AUDIO:
        return _read_audio(file, options)
    if kind is Kind.IMAGE:
        return _read_image(file, options)
    if kind is Kind.TEXT:
        return _read_text(file, options)
    return np.asarray(load_npy(file))


def _read_audio(file: Path, options: FilesOptions) -> NDArray[np.int16]:
    import soundfile

    try:
        wave, rate = soundfile.read(file, dtype="float64", always_2d=True)
    except soundfile.SoundFileError as error:
        raise UserError(f"cannot be decoded ({error})", where=file) from None
    if not len(wave) or not np.isfinite(wave).all():
        raise UserError("holds no sound, or NaN", where=file)
    mono = resample(wave.mean(axis=1), rate, options.sample_rate_hz)
    fitted = fit_length(mono, round(options.seconds * options.sample_rate_hz))
    return np.round(np.clip(fitted, -1, 1) * 32767).astype(np.int16)


def _audio_info(file: Path) -> tuple[int, float]:
    import soundfile

    try:
        info = soundfile.info(file)
    except soundfile.SoundFileError as error:
        raise UserError(f"cannot be decoded ({error})", where=file) from None
    return int(info.samplerate), float(info.duration)


def _read_image(file: Path, options: FilesOptions) -> NDArray[np.uint8]:
    height, width = options.image_size
    from PIL import Image

    with _picture(file) as image:
        try:
            resized = image.convert(_MODES[options.image_channels]).resize((width, height), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"damaged picture ({error})", where=file) from None
        return np.asarray(resized, dtype=np.uint8)


def _read_text(file: Path, options: FilesOptions) -> NDArray[np.str_]:
    try:
        return np.array(file.read_text(encoding="utf-8-sig"), f"<U{options.max_chars}")
    except UnicodeDecodeError as error:
        raise UserError(f"not text in UTF-8 ({error})", where=file, fix="save it as UTF-8") from None


def _image_info(file: Path) -> tuple[tuple[int, int], str]:
    with _picture(file) as image:
        return image.size, image.mode


def _picture(file: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(file)
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"not a picture ({error})", where=file) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise UserError("has more pixels than any camera: refused", where=file) from None
