"""Says what happens in videos, folders of pictures or before a camera, frame by frame, in memory that does not grow."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.frames import PICTURES, Frame, camera, picture, video
from apps.runtime import Answer, Bundle, BundleError, Prediction, memory_mb
from apps.runtime.clips import VIDEOS, fit_frame
from apps.runtime.follow import Follower, StepFollower, WindowFollower

_TOLERANCE_S = 1e-3  # containers round times to a millisecond


def main(arguments: list[str]) -> int:
    """``mst-edge app watch BUNDLE FILE... | --camera CAMERA``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mst-edge app watch", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle whose student sees clips")
    parser.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="videos, clips in .npy, folders of pictures or of videos"
    )
    parser.add_argument("--camera", metavar="CAMERA", help="number or device of a camera, or the URL of one")
    parser.add_argument("--rate", type=float, metavar="HZ", help="frames per second, where the bundle does not say")
    parser.add_argument("--run-on", action="store_true", help="do not begin anew after the frames of a clip")
    parser.add_argument("--window", action="store_true", help="the bundle's own build over the last frames instead")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="with --window, answer every N frames")
    parser.add_argument("--frames", type=int, metavar="N", help="stop after so many frames")
    parser.add_argument("--min-confidence", type=float, default=0.0, help="say '?' below this (0 to 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object per answer")
    chosen = parser.parse_intermixed_args(arguments)
    if bool(chosen.files) == bool(chosen.camera):
        parser.error("give files, or --camera")
    if chosen.every < 1 or (chosen.rate is not None and not chosen.rate > 0):
        parser.error("--every and --rate must be positive")
    failed = False
    with Bundle.open(chosen.bundle) as bundle:
        follower = follower_of(bundle, window=chosen.window, every=chosen.every)
        for note in bundle.notes:
            print(f"note: {note}", file=sys.stderr)
        rate_hz = _rate(follower.rate_hz, chosen.rate)
        for name, frames in _sources(chosen.files, chosen.camera):
            try:
                follower.reset()
                _follow(follower, bundle, name, at_rate(frames, rate_hz), chosen)
            except BundleError as error:
                print(f"error: {error}", file=sys.stderr)
                failed = True
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
                break
    return 2 if failed else 0


def follower_of(bundle: Bundle, *, window: bool, every: int) -> Follower:
    """What follows the frames: the model of one frame where the bundle has one, else its build over the last frames.

    Raises:
        BundleError: its student sees no clips of pictures.
    """
    spec = bundle.manifest.input
    if spec.kind != "video" or spec.dtype != "uint8" or spec.sizes[-1] not in (1, 3):
        raise BundleError("its student does not see clips of pictures", where=bundle.folder)
    if window:
        return WindowFollower(bundle, every)
    if bundle.manifest.stream is None:
        bundle.notes.append("its student does not stream: the last frames are read anew for every answer")
        return WindowFollower(bundle, every)
    return StepFollower(bundle)


def at_rate(frames: Iterator[Frame], rate_hz: float | None) -> Iterator[Frame]:
    """The frames on screen at the middles of so many parts of every second, as clips for training were sampled.

    Frames without times, or where no rate is known, are all taken.
    """
    count, gap_s = 0, 0.0
    shown: Frame | None = None
    for frame in frames:
        if frame.time_s is None or rate_hz is None:
            yield frame
            continue
        if shown is not None and shown.time_s is not None:
            gap_s = frame.time_s - shown.time_s
            while (count + 0.5) / rate_hz + _TOLERANCE_S < frame.time_s:
                yield shown
                count += 1
        shown = frame
    if shown is None or shown.time_s is None or rate_hz is None:
        return
    while count == 0 or (count + 0.5) / rate_hz + _TOLERANCE_S < shown.time_s + gap_s:
        yield shown
        count += 1


def _rate(of_bundle: float | None, said: float | None) -> float | None:
    if said is None and of_bundle is None:
        print("note: the bundle does not say how many frames a second has: all are taken", file=sys.stderr)
    return said or of_bundle


def _sources(files: list[Path], address: str | None) -> Iterator[tuple[str, Iterator[Frame]]]:
    """Streams by name; each file is one, and so is a folder of pictures."""
    if address is not None:
        yield f"camera {address}", camera(address)
    for path in files:
        if path.is_dir():
            yield from _in_folder(path)
        else:
            yield str(path), _frames_of(path)


def _in_folder(folder: Path) -> Iterator[tuple[str, Iterator[Frame]]]:
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES | VIDEOS | {".npy"})
    pictures = [file for file in found if file.suffix.lower() in PICTURES]
    if pictures:
        yield str(folder), (Frame(next(picture(file)).pixels, number) for number, file in enumerate(pictures))
    for file in found:
        if file not in pictures:
            yield str(file), _frames_of(file)
    if not found:
        raise BundleError("holds no picture and no video", where=folder)


def _frames_of(path: Path) -> Iterator[Frame]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _of_array(path)
    return picture(path) if suffix in PICTURES else video(path)


def _of_array(path: Path) -> Iterator[Frame]:
    from apps.runtime.inputs import read_array

    clip = read_array(path)
    if clip.ndim != 4 or clip.dtype != np.uint8 or clip.shape[-1] not in (1, 3):
        raise BundleError(f"holds {clip.shape} {clip.dtype}, no frames of a clip", where=path)
    for number, frame in enumerate(clip):
        yield Frame(frame, number)


def _fitted(frame: Frame, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """As the student's clips are; what has their size already is left as it is."""
    if frame.pixels.shape == shape:
        return frame.pixels
    return fit_frame(np.repeat(frame.pixels, 3, 2) if frame.pixels.shape[2] == 1 else frame.pixels, shape)


def _follow(follower: Follower, bundle: Bundle, name: str, frames: Iterator[Frame], chosen: Any) -> None:
    shape = bundle.manifest.input.sizes[1:]
    count = 0
    for frame in frames:
        # A student that streams was taught on clips that begin with nothing before them.
        if isinstance(follower, StepFollower) and follower.seen == follower.steps and not chosen.run_on:
            follower.reset()
        said = follower.push(_fitted(frame, shape))
        count += 1
        if said is not None:
            _say(name, frame, said, follower, chosen)
        if chosen.frames is not None and count >= chosen.frames:
            return
    if count < follower.steps:
        print(f"note: {name} has {count} of the {follower.steps} frames of a clip", file=sys.stderr)


def _say(name: str, frame: Frame, said: Answer, follower: Follower, chosen: Any) -> None:
    memory = {key: round(value, 1) for key, value in memory_mb().items()}
    unsure = isinstance(said, Prediction) and said.confidence < chosen.min_confidence
    if chosen.json:
        record = {"file": name, "frame": frame.number, "time_s": frame.time_s, "seen": follower.seen, **said.record()}
        record |= {"label": "?"} if unsure else {}
        record |= {"latency_ms": round(said.latency_ms, 4), "build": follower.build, "memory_mb": memory}
        print(json.dumps(record), flush=True)
        return
    text = "?" if unsure else said.text()
    number = "" if frame.number is None else f"{frame.number:6d}"
    print(f"{name} {number}  {text}  {said.latency_ms:7.3f} ms  {memory.get('now', 0):6.1f} MB", flush=True)
