"""Evolution on constructed spaces: it finds their best, repeats itself, and always ends with something."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mst_edge.search.evolution import Budget, evolve, exhaust

AXES, VALUES = 4, 6


class Grid:
    """Points of a grid; neighbours differ in one coordinate."""

    def __len__(self):
        return VALUES**AXES

    def __iter__(self):
        return itertools.product(range(VALUES), repeat=AXES)

    def draw(self, random: Random):
        return tuple(random.randrange(VALUES) for _ in range(AXES))

    def mutated(self, parent, random: Random):
        axis = random.randrange(AXES)
        return (*parent[:axis], (parent[axis] + random.randrange(1, VALUES)) % VALUES, *parent[axis + 1 :])


class Rated:
    """Counts what was rated; nothing may be rated twice."""

    def __init__(self, fitness):
        self._fitness, self.order = fitness, []

    def __call__(self, members):
        self.order += members
        assert len(set(self.order)) == len(self.order)
        return [self._fitness(member) for member in members]


def never() -> bool:
    return False


points = st.tuples(*[st.integers(0, VALUES - 1)] * AXES)


@settings(max_examples=40, deadline=None)
@given(points, st.integers(0, 1000))
def test_it_finds_the_best_of_a_space_whose_coordinates_each_have_a_best(best, seed):
    """With a third of the space rated, where drawing at random finds it in a third of the cases."""
    rated = Rated(lambda one: (-sum(abs(a - b) for a, b in zip(one, best, strict=True)),))
    evolve(Grid(), rated, Budget(len(Grid()) // 3, never), seed)
    assert best in rated.order


@settings(max_examples=10, deadline=None)
@given(points, st.integers(0, 1000))
def test_limits_come_before_the_score_and_what_cannot_be_had_never_breeds(best, seed):
    """Half the space misses a limit, though it scores far better, and some of the rest cannot be built."""

    def fitness(one):
        if sum(one) % 5 == 4 and one != best:
            return None
        distance = sum(abs(a - b) for a, b in zip(one, best, strict=True))
        over = float(one[0] > best[0])
        return (-over, 100.0 if over else -distance)

    rated = Rated(fitness)
    evolve(Grid(), rated, Budget(500, never), seed)
    found = max((one for one in rated.order if fitness(one)), key=fitness)
    assert found == best


def test_the_same_seed_gives_the_same_search_and_another_seed_another():
    orders = []
    for seed in (3, 3, 4):
        rated = Rated(lambda one: (float(one[0]),))
        assert evolve(Grid(), rated, Budget(60, never), seed) == "60 candidates were rated, as many as asked for"
        orders.append(rated.order)
    assert orders[0] == orders[1] != orders[2]


def test_a_budget_larger_than_the_space_rates_all_of_it_once():
    rated = Rated(lambda one: (0.0,))
    assert evolve(Grid(), rated, Budget(10**6, never), 0) == "all candidates were rated"
    assert sorted(rated.order) == sorted(Grid())


@pytest.mark.parametrize("only", [(5, 5, 5, 5), (0, 0, 0, 0)])
def test_it_goes_on_beyond_its_budget_until_something_can_be_had(only):
    rated = Rated(lambda one: (0.0,) if one == only else None)
    evolve(Grid(), rated, Budget(1, lambda: True), 0)
    assert only in rated.order
    rated = Rated(lambda one: (0.0,) if one == only else None)
    exhaust(Grid(), rated, lambda: True)
    assert only in rated.order


def test_time_ends_it_after_the_first_batch():
    rated = Rated(lambda one: (0.0,))
    assert evolve(Grid(), rated, Budget(500, lambda: True), 0) == "time ran out"
    assert 0 < len(rated.order) <= 16
    rated = Rated(lambda one: (0.0,))
    assert exhaust(Grid(), rated, lambda: True) == "time ran out before all candidates were rated"
    assert 0 < len(rated.order) <= 16
