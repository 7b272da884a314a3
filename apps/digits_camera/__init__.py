"""Reads handwritten digits in pictures, videos or from a camera: finds the ink in uneven light, frames each digit."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.digits_camera.find import Digit, Framing, find_digits
from apps.digits_camera.ink import Box
from apps.digits_camera.overlay import Film, Output, marked_picture
from apps.frames import Frame, camera, expanded, picture, video
from apps.runtime import Bundle, BundleError
from apps.runtime.clips import VIDEOS

_RECENT = 30  # pictures that the rate is told of
_PLAYED_RATE = 25.0  # pictures per second of the video that is written


@dataclass(frozen=True)
class Read:
    """One digit: where it is, what it was taken for."""

    box: Box
    label: str
    confidence: float


def main(arguments: list[str]) -> int:
    """``mst-edge app digits-camera BUNDLE FILE...``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mst-edge app digits-camera", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a bundle whose student sees grey pictures")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="pictures, videos, or folders of them")
    parser.add_argument("--camera", metavar="CAMERA", help="number or device of a camera, or the URL of one")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write pictures and videos with what was read there")
    parser.add_argument("--as-is", action="store_true", help="only resize: the picture is framed already")
    parser.add_argument("--min-confidence", type=float, default=0.0, help="say '?' below this (0 to 1)")
    parser.add_argument("--frames", type=int, help="stop after so many pictures of a camera or video")
    parser.add_argument("--json", action="store_true", help="one JSON object per picture")
    chosen = parser.parse_intermixed_args(arguments)
    if bool(chosen.files) == bool(chosen.camera):
        parser.error("give files, or --camera")
    with ExitStack() as stack:
        bundle = stack.enter_context(Bundle.open(chosen.bundle))
        reader = DigitReader(bundle, as_is=chosen.as_is, min_confidence=chosen.min_confidence)
        for note in bundle.notes:
            print(f"note: {note}", file=sys.stderr)
        out = stack.enter_context(Output(chosen.out)) if chosen.out else None
        failed = False
        for name, source in _sources(chosen.files, chosen.camera):
            try:
                _read_all(reader, name, source, out, chosen.frames, as_json=chosen.json)
            except BundleError as error:
                print(f"error: {error}", file=sys.stderr)
                failed = True
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
                break
    return 2 if failed else 0


class DigitReader:
    """A bundle's student, given the digits of a picture one by one.

    Raises:
        BundleError: its student does not read grey pictures.
    """

    def __init__(self, bundle: Bundle, *, as_is: bool = False, min_confidence: float = 0.0) -> None:
        spec = bundle.manifest.input
        if spec.kind != "image" or spec.dtype != "uint8" or len(spec.sizes) != 2:
            raise BundleError(f"its student reads {spec.kind}, no grey pictures", where=bundle.folder)
        bundle.load()
        self._bundle, self._as_is, self._least = bundle, as_is, min_confidence
        self._framing = Framing.of(bundle.reference_inputs())

    def read(self, frame: Frame) -> tuple[list[Read], float]:
        """What is written there, in reading order, and how many ms the student took for it."""
        found, took_ms = [], 0.0
        for digit in self._digits(frame):
            said = self._bundle.predict(digit.sample)
            label = said.label if said.confidence >= self._least else "?"
            found.append(Read(digit.box, label, said.confidence))
            took_ms += said.latency_ms
        return found, took_ms

    def _digits(self, frame: Frame) -> list[Digit]:
        if not self._as_is:
            return find_digits(frame.grey, self._framing)
        from PIL import Image

        rows, columns = self._framing.shape
        whole: Any = Image.fromarray(frame.grey).resize((columns, rows), Image.Resampling.BILINEAR)
        return [Digit(Box(0, 0, *frame.grey.shape), np.asarray(whole, dtype=np.uint8))]


def _sources(files: list[Path], address: str | None) -> Iterator[tuple[str, Iterator[Frame]]]:
    if address is not None:
        yield f"camera {address}", camera(address)
        return
    for file in expanded(files):
        yield str(file), video(file) if file.suffix.lower() in VIDEOS else picture(file)


def _read_all(
    reader: DigitReader, name: str, source: Iterator[Frame], out: Output | None, most: int | None, *, as_json: bool
) -> None:
    """Reads every picture of one source, tells, and writes what it looks like."""
    stem = Path(name.rsplit("://", 1)[-1]).stem.replace(" ", "-") or "camera"
    film: Film | None = None
    recent = deque([time.perf_counter()], maxlen=_RECENT)
    with ExitStack() as stack:
        for frame in source:
            begin = time.perf_counter()
            found, student_ms = reader.read(frame)
            recent.append(time.perf_counter())
            all_ms = (recent[-1] - begin) * 1e3
            rate = (len(recent) - 1) / (recent[-1] - recent[0])
            _say(name, frame, found, {"latency_ms": student_ms, "all_ms": all_ms, "fps": rate}, as_json=as_json)
            if out is not None:
                line = f"student {student_ms:.2f} ms, all {all_ms:.1f} ms, {rate:.1f} pictures/s"
                marked = marked_picture(frame.pixels, [(one.box, one.label, one.confidence) for one in found], line)
                if frame.number is None:
                    out.picture(stem, marked)
                else:
                    film = film or stack.enter_context(out.film(stem, _PLAYED_RATE))
                    film.add(marked)
            if most is not None and frame.number is not None and frame.number + 1 >= most:
                return


def _say(name: str, frame: Frame, found: list[Read], took: dict[str, float], *, as_json: bool) -> None:
    label = "".join(one.label for one in found)
    if as_json:
        confidence = min((one.confidence for one in found), default=0.0)
        record = {"file": name, "frame": frame.number, "label": label, "confidence": confidence}
        digits = [{**asdict(one), "confidence": round(one.confidence, 6)} for one in found]
        print(json.dumps({**record, "digits": digits, **{key: round(ms, 4) for key, ms in took.items()}}), flush=True)
        return
    where = name if frame.number is None else f"{name} {frame.number:5d}"
    sure = " ".join(f"{one.confidence:.0%}" for one in found)
    print(f"{where}  {label or '-':>6}  {sure:14}  {took['latency_ms']:7.3f} ms  {took['fps']:5.1f} fps", flush=True)
