"""What the shape of features says beside sizes, where they are numbers that a device recorded."""

from __future__ import annotations

from collections.abc import Sequence


class NumberShape(tuple[int, ...]):
    """A feature shape that knows how features came of what was recorded: ``feature = recorded * scale + shift``.

    Attributes:
        scale, shift: one per feature that was standardised by itself (of pictures, per channel).
        full: the largest number that is recorded: 255 of bytes, else 1.
        rate_hz: of a waveform; None of the rest.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    full: float
    rate_hz: int | None

    def __new__(
        cls,
        shape: Sequence[int],
        scale: Sequence[float],
        shift: Sequence[float],
        full: float = 1.0,
        rate_hz: int | None = None,
    ) -> NumberShape:
        made = super().__new__(cls, shape)
        made.scale, made.shift, made.full, made.rate_hz = tuple(scale), tuple(shift), full, rate_hz
        return made

    def __getnewargs__(self) -> tuple[object, ...]:
        """What a copy is made from."""
        return (tuple(self), self.scale, self.shift, self.full, self.rate_hz)
