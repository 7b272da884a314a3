"""The space of students, what is refused in it, and the verdict on a score."""

from __future__ import annotations

from random import Random

import pytest

from mst_edge.core.errors import UserError
from mst_edge.recipe import SearchSection, load_recipe
from mst_edge.search.prove import spread_out
from mst_edge.search.space import Candidate, Space, settled
from mst_edge.search.study import SearchOptions, Study
from mst_edge.search.verdict import choose, correlations, judge_score
from tests.conftest import write_arrays, write_small_recipe, write_vectors

NETWORKS = {"tcn": {"width": [0.25, 0.5]}, "transformer": {"width": 0.5, "depth": [1, 2, 3]}}


class Silent:
    """Nobody listens."""

    def step(self, text): ...

    def busy(self, text): ...


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    return write_small_recipe(folder / "small.yaml", write_arrays(folder / "data"), search={"networks": NETWORKS})


def _space(**said) -> Space:
    return Space(SearchSection(networks=NETWORKS, **said))


def test_a_space_is_every_combination_once():
    space = _space(features={"mels": [24, 40]})
    labels = [candidate.label for candidate in space]
    assert len(space) == len(labels) == len(set(labels)) == (2 + 3) * 2
    assert labels[:2] == ["tcn width=0.25, mels=24", "tcn width=0.25, mels=40"]
    assert "transformer width=0.5 depth=3, mels=40" in labels
    assert len({candidate.key for candidate in space}) == 10
    assert all(Candidate.from_dict(candidate.to_dict()) == candidate for candidate in space)


def test_draws_and_mutants_stay_in_the_space_and_mutants_differ_in_one_thing():
    space, random = _space(features={"mels": [24, 40]}), Random(0)
    every, seen = set(space), set()
    for _ in range(300):
        parent = space.draw(random)
        child = space.mutated(parent, random)
        assert {parent, child} <= every
        assert child != parent
        seen |= {parent, child}
        if child.network == parent.network:
            ours, theirs = ({*one.options, *one.features} for one in (child, parent))
            assert len(ours - theirs) == 1
        else:
            assert child.features == parent.features
    assert seen == every


def test_every_value_is_among_those_that_are_built_one_by_one():
    space = _space(features={"mels": [24, 40]})
    found = list(space.one_by_one())
    assert {value for one, _ in found for value in [*one.options, *one.features]} == {
        value for one in space for value in [*one.options, *one.features]
    }
    places = {one.label: where for one, where in found}
    assert places["transformer width=0.5 depth=3, mels=24"] == "search.networks.transformer.depth"
    assert places["tcn width=0.25, mels=40"] == "search.features.mels"


def test_a_settled_recipe_has_the_candidate_as_its_student_and_nothing_else_new(recipe):
    parsed = load_recipe(recipe)
    candidate = Candidate("tcn", (("width", 0.25),), (("mels", 24),))
    found = settled(parsed, candidate)
    assert (found.student.network, found.student.options) == ("tcn", {"width": 0.25})
    assert found.modalities == {"signal": {"mels": 24}}
    restored = {"student": parsed.student, "modalities": parsed.modalities}
    assert found.model_copy(update=restored) == parsed


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("networks={tcnn: {}}", "search.networks.tcnn: unknown network 'tcnn'; did you mean 'tcn'"),
        ("networks={tcn: {widht: [1]}}", "search.networks.tcn: unknown option of Tcn 'widht'; did you mean 'width'"),
        ("networks={tcn: {width: []}}", "search.networks.tcn.width: expected at least one value"),
        ("networks={tcn: {width: [1, 1]}}", "search.networks.tcn.width: 1 is there twice; name each value once"),
        ("networks={tcn: {width: [[1]]}}", "search.networks.tcn.width: [1] is no single value; list plain values"),
        ("networks={fusion: {}}", "search.networks.fusion: reads several modalities; a student reads one"),
        ("networks={small_cnn: {}}", "search.networks.small_cnn: small_cnn: small_cnn cannot read features"),
        ("networks={tcn: {width: [1, wide]}}", "search.networks.tcn.width: tcn width=wide: tcn cannot read features"),
        ("features={mels: [24]}", "search.features.mels: unknown option 'mels'"),
        ("similarity=channels", "search.similarity: tcn width=0.25: 128 and 16 channels cannot be compared one by one"),
        ("prove.method=lone", "search.prove.method: lone distils nothing, so it proves nothing; use kd"),
        ("prove.method=kdd", "search.prove.method: unknown method 'kdd'; did you mean 'kd'"),
        ("prove.epochs=1", "search.prove.epochs: Input should be greater than or equal to 2"),
        ("strategy=random", "search.strategy: Input should be 'auto', 'exhaustive' or 'evolution'"),
        ("networks={}", "search.networks: Dictionary should have at least 1 item"),
    ],
)
def test_what_is_wrong_with_a_search_is_said_in_one_line(recipe, tmp_path, setting, says):
    with pytest.raises(UserError) as told:
        Study(load_recipe(recipe, [f"search.{setting}"]), tmp_path / "out", SearchOptions(), Silent())
    assert says in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("search=null", "search: the recipe says of no students to choose from"),
        ("targets=[jetson-orin-nano]", "search: a search measures on a target, and none of jetson-orin-nano is"),
    ],
)
def test_a_search_needs_a_space_and_a_machine(recipe, tmp_path, setting, says):
    with pytest.raises(UserError, match=says):
        Study(load_recipe(recipe, [setting]), tmp_path / "out", SearchOptions(), Silent())


def test_a_search_needs_a_teacher(tmp_path):
    data = write_vectors(tmp_path / "data", modalities=1)
    alone = {"method": "lone", "compare": []}
    said = {"student": {"modality": "a"}, "distill": alone, "search": {"networks": {"mlp": {"width": [0.5, 1]}}}}
    recipe = write_small_recipe(tmp_path / "small.yaml", data, **said)
    with pytest.raises(UserError, match="teachers: there is no teacher, with which students are compared; name"):
        Study(load_recipe(recipe), tmp_path / "out", SearchOptions(), Silent())


def test_combinations_that_cannot_be_built_are_left_out_where_others_with_the_same_values_can(recipe, tmp_path):
    setting = "search.networks={tests.mst_edge.search.test_space:Picky: {a: [1, 2], b: [1, 2]}}"
    study = Study(load_recipe(recipe, [setting]), tmp_path / "out", SearchOptions(), Silent())
    assert dict(study.first.options) == {"a": 1, "b": 1}
    assert [dict(one.options) for one in study.left_out] == [{"a": 2, "b": 2}]


class Picky:
    """A network that takes two options one by one, and not together."""

    def __new__(cls, input_shape, num_outputs, a=1, b=1):
        from distill.networks.encoders import Tcn

        if a == b == 2:
            raise ValueError("a and b are too large together")
        return Tcn(input_shape, num_outputs, width=0.25)


def test_candidates_to_prove_are_spread_over_the_ranking_with_both_ends():
    ranked = [Candidate(str(number)) for number in range(30)]
    found = [int(one.network) for one in spread_out(ranked, 4)]
    assert found == [0, 10, 19, 29]
    assert spread_out(ranked, 99) == ranked
    assert spread_out(ranked, 1) == ranked[:1]
    assert spread_out(ranked, 0) == []


def test_a_score_is_trusted_only_where_it_orders_enough_candidates_better_than_what_costs_nothing():
    accuracy = [float(number) for number in range(14)]
    good, size = accuracy[:], [*accuracy[::2], *accuracy[1::2]]
    assert judge_score(correlations({"score": good, "parameters": size}, accuracy), 14)["trusted"]
    for columns, count, reason in (
        ({"score": size, "parameters": good}, 14, "what costs nothing orders them better: parameters (+1.00)"),
        ({"score": good[::-1], "parameters": size}, 14, "asked are a tau of 0.5 and an interval above 0"),
        ({"score": good[:11], "parameters": size[:11]}, 11, "12 candidates are the least that tell"),
    ):
        found = judge_score(correlations(columns, accuracy[:count]), count)
        assert not found["trusted"]
        assert found["text"].startswith("the score is not recommended here: tau ")
        assert reason in found["text"]
    assert "no candidate was trained" in judge_score({}, 0)["text"]
    assert "one candidate was trained" in judge_score({}, 1)["text"]


def _row(key, score, short_by=0.0, accuracy=None):
    return {"key": key, "score": score, "short_by": short_by, "accuracy": accuracy}


def test_accuracy_decides_where_the_score_is_not_trusted_and_goals_come_first():
    rows = [_row("a", -1.0), _row("b", -2.0, accuracy=0.5), _row("c", -3.0, accuracy=0.9), _row("d", 0.0, 0.1, 0.99)]
    assert choose(rows, trusted=False)[:2] == ("c", "accuracy")
    assert choose(rows, trusted=True)[:2] == ("a", "score")
    assert choose([rows[0], rows[3]], trusted=False)[:2] == ("a", "score")
    key, by, text = choose([_row("e", 0.0, 0.3), _row("f", -1.0, 0.2)], trusted=False)
    assert (key, by) == ("f", "score")
    assert "misses latency or size goals, as all do" in text
