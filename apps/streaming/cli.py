"""What command lines of apps on streams share."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from apps.runtime import Bundle, BundleError
from apps.runtime.audio import SampleFormat

from .decide import Rule
from .gate import GateRule
from .source import FORMATS, Microphone, RawSound, SoundFile, Source, in_real_time
from .stream import Stream
from .view import View, view_of

T = TypeVar("T")


@dataclass(frozen=True)
class Choices:
    """What was asked for on the command line."""

    bundle: Path
    files: list[Path]
    microphone: str | None
    rate: int
    format: str
    channels: int
    timeout: float | None
    real_time: bool
    json: bool
    rule: Rule
    gate: GateRule | None
    gain_db: float


def parse(name: str, about: str | None, arguments: list[str], rule: Rule, gate: GateRule) -> Choices:
    """Reads the arguments of an app on sound whose defaults are ``rule`` and ``gate``."""
    parser = argparse.ArgumentParser(prog=f"mst-edge app {name}", description=about)
    parser.add_argument("bundle", type=Path, help="a bundle whose student listens")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="sound files; - is standard input, raw PCM")
    parser.add_argument(
        "--microphone", nargs="?", const="", metavar="DEVICE", help="listen; DEVICE as `python -m sounddevice` lists it"
    )
    parser.add_argument("--rate", type=int, default=16000, help="Hz, of standard input (%(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="s16", help="of standard input (%(default)s)")
    parser.add_argument("--channels", type=int, default=1, help="of standard input (%(default)s)")
    parser.add_argument("--timeout", type=float, metavar="S", help="error where the input gives nothing for so long")
    parser.add_argument("--real-time", action="store_true", help="play files as slowly as they were recorded")
    decision_arguments(parser, rule)
    parser.add_argument(
        "--open-db", type=float, default=gate.open_db, help="sound is so much louder than the background"
    )
    parser.add_argument("--no-gate", action="store_true", help="infer every window, silence too")
    parser.add_argument("--gain-db", type=float, default=0.0, help="make the input louder first")
    said = parser.parse_intermixed_args(arguments)  # FILE may stand behind options
    if not said.files and said.microphone is None:
        parser.error("give files, - for standard input, or --microphone")
    return Choices(
        bundle=said.bundle,
        files=said.files,
        microphone=said.microphone,
        rate=said.rate,
        format=said.format,
        channels=said.channels,
        timeout=said.timeout,
        real_time=said.real_time,
        json=said.json,
        rule=decision_rule(said, rule),
        gate=None if said.no_gate else replace(gate, open_db=said.open_db, close_db=min(gate.close_db, said.open_db)),
        gain_db=said.gain_db,
    )


def decision_arguments(parser: argparse.ArgumentParser, rule: Rule) -> None:
    """What decides, with the defaults of ``rule``; and ``--json``."""
    parser.add_argument("--json", action="store_true", help="one JSON object per event and source")
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[LABEL=]P",
        help=f"smoothed probability from which a class is believed, of all or of one ({rule.threshold})",
    )
    parser.add_argument("--smooth", type=float, default=rule.smooth_s, metavar="S", help="average over (%(default)s)")
    parser.add_argument("--hold", type=int, default=rule.hold, metavar="N", help="windows that agree (%(default)s)")


def decision_rule(said: argparse.Namespace, rule: Rule) -> Rule:
    """``rule`` as the arguments change it.

    Raises:
        BundleError: an argument is out of range.
    """
    if said.smooth < 0 or said.hold < 1:
        raise BundleError(
            f"received {said.smooth} and {said.hold}", where="--smooth, --hold", fix="0 s, 1 window or more"
        )
    return with_thresholds(replace(rule, smooth_s=said.smooth, hold=said.hold), said.threshold)


def with_thresholds(rule: Rule, said: list[str]) -> Rule:
    """``0.9`` for all classes, ``seven=0.9`` for one."""
    common, single = rule.threshold, dict(rule.thresholds)
    for text in said:
        label, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            raise BundleError(f"{text!r} is no probability", where="--threshold", fix="say 0.9, or seven=0.9") from None
        if label:
            single[label] = number
        else:
            common = number
    return replace(rule, threshold=common, thresholds=single)


def open_bundle(choices: Choices) -> Bundle:
    """The bundle, loaded.

    Raises:
        BundleError: it is none, or its student does not listen.
    """
    with contextlib.ExitStack() as stack:
        bundle = stack.enter_context(Bundle.open(choices.bundle))
        if bundle.manifest.input.kind != "audio":
            raise BundleError(f"its student reads {bundle.manifest.input.kind}, not sound", where=choices.bundle)
        bundle.load()
        for note in bundle.notes:
            print(f"note: {note}", file=sys.stderr)
        stack.pop_all()
    return bundle


def sources(choices: Choices, rate_hz: int) -> list[Callable[[], Source]]:
    """What opens what to listen to, in order; the microphone, at the student's rate, last."""
    opening: list[Callable[[], Source]] = []
    for path in choices.files:
        if str(path) == "-":
            layout = SampleFormat(*FORMATS[choices.format], choices.channels, choices.rate, "standard input")
            opening.append(partial(RawSound, sys.stdin.buffer, layout, choices.timeout))
        else:
            opening.append(partial(SoundFile, path))
    if choices.microphone is not None:
        opening.append(partial(Microphone, rate_hz, choices.microphone or None, choices.timeout or 3.0))
    return opening


def listen(choices: Choices) -> int:
    """Follows every source with the bundle's student and shows what it hears; returns the exit code.

    A source that cannot be read, or breaks off, is told, and the others go on: exit code 2 then.
    """
    with open_bundle(choices) as bundle, view_of(bundle, as_json=choices.json) as view:
        choices.rule.by_label(bundle.manifest.labels)

        def hear(opened: Callable[[], Source]) -> None:
            source = opened()
            stream = Stream(bundle, source.rate_hz, rule=choices.rule, gate=choices.gate, gain_db=choices.gain_db)
            follow(source, stream, view, real_time=choices.real_time)

        return each(sources(choices, bundle.manifest.input.sample_rate_hz or 0), hear, view)


def each(found: Iterable[T], follow_one: Callable[[T], None], view: View) -> int:
    """Follows one after another, till Ctrl-C; one that fails is told, and the exit code is 2 then, else 0."""
    failed = False
    with contextlib.suppress(KeyboardInterrupt):
        for one in found:
            try:
                follow_one(one)
            except BundleError as error:
                failed = True
                view.error(error)
    return 2 if failed else 0


def follow(source: Source, stream: Stream, view: View, *, real_time: bool = False) -> None:
    """Shows what ``stream`` makes of ``source``; the summary also where the source breaks off."""
    view.begin(source.name, stream)
    blocks = source.blocks()
    try:
        for block in in_real_time(blocks, source.rate_hz or stream.rate_hz) if real_time else blocks:
            for step in stream.push(block):
                view.show(step, stream)
        for step in stream.finish():
            view.show(step, stream)
    finally:
        view.end(stream)
