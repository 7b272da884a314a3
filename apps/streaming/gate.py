"""Tells sound from background by its level, so that a network runs only where there is something to hear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAME_S = 0.02
_QUIETEST_DBFS = -70.0  # below this nothing is sound, and the floor does not fall further
_LOUDEST_START_DBFS = -45.0  # a stream may begin amid a word: the floor is not taken from that


@dataclass(frozen=True)
class GateRule:
    """When the gate opens and closes.

    Attributes:
        open_db: above the noise floor, from which a frame is sound.
        close_db: above the noise floor, below which sound ends (hysteresis).
        least_s: how long sound must last to open the gate: a click is none.
        hangover_s: how long the gate stays open after sound ended.
        rise_db_per_s: how fast the noise floor follows a background that grew louder; to one that fell it falls at
            once, by half of the difference every frame.
    """

    open_db: float = 9.0
    close_db: float = 5.0
    least_s: float = 0.06
    hangover_s: float = 0.3
    rise_db_per_s: float = 4.0


class Gate:
    """Adaptive noise floor with hysteresis and hangover, in frames of 20 ms.

    Attributes:
        open: whether there is sound now, or was until ``hangover_s`` ago.
        opened: whether it was open at some time since ``reset``.
        start: where the latest sound began, in samples since the stream began.
        end: where it ended, as far as is known.
        level_db, floor_db: of the last frame, and of the background; relative to full scale.
    """

    def __init__(self, rate_hz: float, rule: GateRule | None = None) -> None:
        self.rule = rule or GateRule()
        self.open = self.opened = False
        self.start = self.end = 0
        self.level_db = self.floor_db = _QUIETEST_DBFS
        self._frame = max(1, round(FRAME_S * rate_hz))
        self._least = max(1, round(self.rule.least_s / FRAME_S))
        self._hangover = round(self.rule.hangover_s / FRAME_S)
        self._rest = np.empty(0, np.float32)
        self._place = 0  # where the next frame begins
        self._loud = self._quiet = 0  # frames of sound, and of none, in a row

    def push(self, samples: NDArray[np.float32]) -> None:
        """Listens to ``samples`` ``(n,)``; a frame counts when it is whole."""
        held = np.concatenate([self._rest, samples])
        whole = len(held) // self._frame * self._frame
        self._rest = held[whole:]
        if whole:
            power = np.square(held[:whole], dtype=np.float64).reshape(-1, self._frame).mean(axis=1)
            for level in (10 * np.log10(power + 1e-12)).tolist():
                self._hear(level)

    def reset(self) -> None:
        """Forgets that it was open."""
        self.opened = self.open

    def _hear(self, level: float) -> None:
        self.level_db = level
        if not self._place:
            self.floor_db = min(max(level, _QUIETEST_DBFS), _LOUDEST_START_DBFS)
        above = level - self.floor_db
        loud = above > (self.rule.close_db if self.open else self.rule.open_db) and level > _QUIETEST_DBFS
        self._follow(level)
        self._place += self._frame
        self._loud, self._quiet = (self._loud + 1, 0) if loud else (0, self._quiet + 1)
        if self._loud >= self._least and not self.open:
            self.open = self.opened = True
            self.start = self._place - self._loud * self._frame
        if self.open and loud:
            self.end = self._place
        elif self._quiet > self._hangover:
            self.open = False

    def _follow(self, level: float) -> None:
        if level < self.floor_db:
            self.floor_db = max(_QUIETEST_DBFS, (self.floor_db + level) / 2)
        else:
            self.floor_db = min(level, self.floor_db + self.rule.rise_db_per_s * FRAME_S)
