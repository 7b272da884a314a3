"""Looking for the best of many: all of them, or by evolution. Knows nothing of networks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Protocol, TypeVar

T = TypeVar("T", bound=Hashable)
T_co = TypeVar("T_co", covariant=True)
# How good a candidate is; larger is better. None: it cannot be had.
Fitness = tuple[float, ...]
Rate = Callable[[Sequence[T]], Sequence[Fitness | None]]
_BATCH = 8
_TRIES = 50


class Population(Protocol[T]):
    """What evolution draws from."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T]: ...

    def draw(self, random: Random) -> T:
        """Any member."""

    def mutated(self, parent: T, random: Random) -> T:
        """A neighbour of ``parent``."""


@dataclass(frozen=True)
class Budget:
    """What ends a search: members rated, and the clock.

    Attributes:
        out_of_time: asked before each batch but the first.
    """

    most: int
    out_of_time: Callable[[], bool]


def exhaust(space: Iterable[T], rate: Rate[T], out_of_time: Callable[[], bool]) -> str:
    """Rates all members, a batch at a time; returns why it ended."""
    members = iter(space)
    rated = any_found = False
    while batch := list(islice(members, _BATCH)):
        if rated and any_found and out_of_time():
            return "time ran out before all candidates were rated"
        any_found |= any(fitness is not None for fitness in rate(batch))
        rated = True
    return "all candidates were rated"


def evolve(
    space: Population[T], rate: Rate[T], budget: Budget, seed: int, *, population: int = 16, tournament: int = 4
) -> str:
    """Aging evolution (Real and others, AAAI 2019, algorithm 1), which DisWOT searches with: the best of a few drawn
    from the population has a child that differs in one thing; the child joins, and the oldest goes.

    No member is rated twice: a child that was before joins at once, which keeps what is good alive, and costs nothing.
    Where that goes on for long, a member is drawn from anywhere. The same seed and the same fitness give the same
    search, so that one which was interrupted is repeated from what it rated. Children are rated a batch at a time, of
    which none is another's parent. It goes on until a member can be had.

    Returns:
        Why it ended.
    """
    random = Random(seed)
    living: deque[tuple[Fitness, T]] = deque(maxlen=population)
    rated: dict[T, Fitness | None] = {}

    def fresh(batch: Sequence[T]) -> T:
        for _ in range(_TRIES if len(rated) + len(batch) >= population and living else 0):
            contestants = random.sample(list(living), min(tournament, len(living)))
            child = space.mutated(max(contestants, key=lambda one: one[0])[1], random)
            if child not in rated and child not in batch:
                return child
            known = rated.get(child)
            if known is not None:
                living.append((known, child))
        for _ in range(_TRIES):
            stranger = space.draw(random)
            if stranger not in rated and stranger not in batch:
                return stranger
        return next(member for member in space if member not in rated and member not in batch)

    while len(rated) < min(budget.most, len(space)) or (not living and len(rated) < len(space)):
        if living and budget.out_of_time():
            return "time ran out"
        batch: list[T] = []
        for _ in range(min(_BATCH, max(1, budget.most - len(rated)), len(space) - len(rated))):
            batch.append(fresh(batch))
        for member, fitness in zip(batch, rate(batch), strict=True):
            rated[member] = fitness
            if fitness is not None:
                living.append((fitness, member))
    if len(rated) == len(space):
        return "all candidates were rated"
    return f"{len(rated)} candidates were rated, as many as asked for"
