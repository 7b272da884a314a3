"""Shows a stream: lines for people, JSON for machines, a live picture in a terminal."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import deque
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.runtime import Bundle, memory_mb

from .decide import Event
from .stream import Counters, Step, Stream

if TYPE_CHECKING:
    from rich.console import Console, Group

_QUIET_DBFS = -70.0
_METER, _BAR = 40, 30


class View(AbstractContextManager["View"]):
    """One line per event on standard output; notes and a summary of each source on standard error."""

    def begin(self, name: str, stream: Stream) -> None:
        """A new source."""
        self._name, self._noted = name, set[str]()

    def show(self, step: Step, stream: Stream) -> None:
        """One window."""
        for event in step.events:
            self.event(event)
        for text in troubles(stream.counters):
            if text not in self._noted:
                self._noted.add(text)
                self.note(f"{self._name}: {text}")

    def end(self, stream: Stream) -> None:
        """The source is over."""
        counters = stream.counters
        if counters.not_numbers:
            self.note(f"{self._name}: {counters.not_numbers} samples were no numbers")
        if stream.hearing and not counters.inferred:
            self.note(f"{self._name} is silent")
        self.note(f"{self._name}: {summary(counters)}")

    def event(self, event: Event) -> None:
        """Something was there."""
        print(f"{self._name}  {line(event)}", flush=True)

    def note(self, text: str) -> None:
        """Something that a person should know."""
        print(f"note: {text}", file=sys.stderr)

    def error(self, error: Exception) -> None:
        """A source that failed; others go on."""
        print(f"error: {error}", file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        return None


class JsonView(View):
    """JSON lines: ``type`` is ``event`` or ``summary``."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def event(self, event: Event) -> None:
        print(json.dumps({"type": "event", "file": self._name, **event.record()}), flush=True)

    def end(self, stream: Stream) -> None:
        record = {name: round(value, 6) for name, value in stream.counters.record().items()}
        memory = {name: round(value, 1) for name, value in memory_mb().items()}
        about = {"build": self._bundle.build.id, "memory_mb": memory}
        print(json.dumps({"type": "summary", "file": self._name, **record, **about}), flush=True)


class LiveView(View):
    """A picture that is drawn anew ten times a second: level, probabilities, latest events, counters."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=console or Console(), refresh_per_second=10, transient=False)
        self._events: deque[str] = deque(maxlen=6)
        self._level = _QUIET_DBFS

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, step: Step, stream: Stream) -> None:
        super().show(step, stream)
        self._live.update(self.picture(step, stream))

    def event(self, event: Event) -> None:
        self._events.append(line(event))

    def note(self, text: str) -> None:
        self._live.console.print(f"note: {text}", markup=False, highlight=False)

    def error(self, error: Exception) -> None:
        self._live.console.print(f"error: {error}", markup=False, highlight=False)

    def picture(self, step: Step, stream: Stream) -> Group:
        """Level, probabilities and counters after ``step``."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table as Grid
        from rich.text import Text

        rows = Grid.grid(padding=(0, 2))
        order = np.argsort(-step.smoothed, kind="stable")[:10]
        for k in sorted(order.tolist()):
            share = float(step.smoothed[k])
            rows.add_row(stream.labels[k], Text("█" * round(share * _BAR), "green"), f"{share:4.0%}")
        parts: list[Any] = [rows]
        if stream.hearing:
            parts.insert(0, Text(meter(step.level_db, step.floor_db, hearing=step.hearing)))
        parts += [Text(text) for text in self._events]
        parts.append(Text(summary(stream.counters), "dim"))
        return Group(Panel(Group(*parts), title=self._name, title_align="left"))


def view_of(bundle: Bundle, *, as_json: bool, live: bool | None = None) -> View:
    """JSON lines where asked for; else the live view in a terminal, and lines elsewhere."""
    if as_json:
        return JsonView(bundle)
    if not (sys.stdout.isatty() if live is None else live):
        return View()
    if importlib.util.find_spec("rich") is None:
        print("note: there is a live view with rich (pip install rich)", file=sys.stderr)
        return View()
    return LiveView()


def line(event: Event) -> str:
    """An event for people."""
    guess = f"  ({event.guess}?)" if event.guess != event.label else ""
    when = f"{event.start_s:7.2f} - {event.end_s:6.2f} s"
    return f"{when}  {event.label:>8}  {event.confidence:6.1%}  {event.latency_ms:6.0f} ms later{guess}"


def meter(level_db: float, floor_db: float, *, hearing: bool) -> str:
    """Level of the input as a bar from -70 dBFS to 0; ``|`` is the noise floor."""

    def place(value: float) -> int:
        return round(_METER * min(1.0, max(0.0, 1 - value / _QUIET_DBFS)))

    bar = list("▮" * place(level_db) + "·" * (_METER - place(level_db)))
    bar[min(place(floor_db), _METER - 1)] = "|"
    return f"{''.join(bar)} {level_db:6.1f} dBFS  {'hears' if hearing else 'quiet'}"


def summary(counters: Counters) -> str:
    """Counters for people."""
    return (
        f"{counters.seconds:.1f} s, {counters.events} events, {counters.unknown} unknown, "
        f"{counters.inferred} of {counters.windows} windows inferred, {counters.dropped} samples dropped, "
        f"real-time factor {counters.record()['real_time_factor']:.4f}"
    )


def troubles(counters: Counters) -> list[str]:
    """What is wrong with the input so far."""
    found = []
    if counters.clipped:
        found.append("clipped: its loudest samples are cut off, lower the gain where it is recorded")
    if counters.not_numbers:
        found.append("holds samples that are no numbers (NaN or infinity): silence, or the last row, stands for them")
    if counters.dropped:
        found.append("lost samples on the way: silence stands for them")
    return found
