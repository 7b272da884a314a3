from __future__ import annotations

import pytest
import yaml

from distill.datasets.library.av_digits import AvDigitsOptions
from mst_edge.core.errors import UserError
from mst_edge.recipe import Recipe, find_recipe, load_recipe, parse_options, require_same
from mst_edge.stages.goals import goals_of, protocol_of
from targets import measure
from targets.gate import AccuracyGoal, Goals, LatencyGoal
from tests.conftest import ROOT

MINIMAL = {"name": "x", "dataset": {"name": "av_digits"}, "student": {"modality": "audio"}}


def _write(tmp_path, recipe):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_minimal_recipe_has_sensible_defaults(tmp_path):
    recipe = load_recipe(_write(tmp_path, MINIMAL))
    assert recipe.targets == ("cpu",)
    assert recipe.distill.method == "mst"
    assert recipe.distill.compare == ("lone", "kd")
    assert recipe.goals.accuracy.max_relative_drop_percent == 1.0
    assert recipe.goals.min_int8_speedup == 1.1


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_and_is_found_by_its_name(path):
    assert load_recipe(path).name == path.stem
    assert find_recipe(path.stem) == path


def test_a_resolved_recipe_loads_to_itself(tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "av_digits.yaml")
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml())
    again = load_recipe(path)
    assert again == recipe
    assert again.sha256() == recipe.sha256()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"distil": {}}, "unknown key 'distil'; did you mean 'distill'"),
        ({"distill": {"epoch": {}}}, "unknown key 'distill.epoch'; did you mean 'epochs'"),
        ({"distill": {"epochs": {"distill": 0}}}, "distill.epochs.distill: .*received 0"),
        ({"distill": {"optimizer": {"name": "lion"}}}, "distill.optimizer.name"),
        ({"goals": {"latency": {"p95_ms": 1}}}, "unknown key 'goals.latency.p95_ms'; did you mean 'p9"),
        ({"goals": {"latency": {"p90_ms": -1}}}, "goals.latency.p90_ms"),
        ({"goals": {"targets": {"cpu": {"min_speed": 2}}}}, "unknown key 'goals.targets.cpu.min_speed'; did you mean"),
        ({"dataset": {}}, "dataset: give either name or path"),
        ({"dataset": {"name": "a", "path": "b"}}, "dataset: give either name or path"),
        ({"student": {}}, "key 'student.modality' is missing"),
        ({"name": "a/b"}, "name: "),
        ({"targets": []}, "targets"),
        ({"seed": -1}, "seed"),
        ({"quantize": {"schemes": "int4"}}, "quantize.schemes"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(tmp_path, change, says):
    with pytest.raises(UserError, match=says) as caught:
        load_recipe(_write(tmp_path, {**MINIMAL, **change}))
    assert str(tmp_path / "r.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_override_keys(tmp_path):
    path = _write(tmp_path, MINIMAL)
    recipe = load_recipe(path, ["distill.epochs.distill=3", "goals.latency={p90_ms: 2.5}", "seed=7"], ["cpu", "cpu2"])
    assert recipe.distill.epochs.distill == 3
    assert recipe.goals.latency.p90_ms == 2.5
    assert recipe.seed == 7
    assert recipe.targets == ("cpu", "cpu2")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("seed", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("name.x=3", "name in name.x holds a value"),
        ("seed=[1", "value of seed is not valid YAML"),
        ("distill.epochs.distil=3", "did you mean 'distill'"),
    ],
)
def test_wrong_settings_are_told(tmp_path, setting, says):
    with pytest.raises(UserError, match=says):
        load_recipe(_write(tmp_path, MINIMAL), [setting])


def test_a_target_is_held_to_its_own_goals_and_else_to_those_of_all(tmp_path):
    own = {"accuracy": {"min": 0.8}, "latency": {"p90_ms": 5}, "max_size_mb": 2, "min_int8_speedup": 0}
    goals = {"accuracy": {"confident": True}, "latency": {"p50_ms": 1, "p90_ms": 2}, "min_speedup": 1.5}
    recipe = load_recipe(_write(tmp_path, {**MINIMAL, "goals": {**goals, "targets": {"jetson-orin-nano": own}}}))
    assert goals_of(recipe, "cpu") == Goals(
        accuracy=AccuracyGoal(confident=True), latency=LatencyGoal(p50_ms=1, p90_ms=2), min_speedup=1.5
    )
    assert goals_of(recipe, "jetson-orin-nano") == Goals(
        accuracy=AccuracyGoal(min=0.8, confident=True),
        latency=LatencyGoal(p50_ms=1, p90_ms=5),
        max_size_mb=2,
        min_speedup=1.5,
        min_int8_speedup=0,
    )


def test_data_paths_are_relative_to_the_recipe(tmp_path):
    recipe = load_recipe(_write(tmp_path, {**MINIMAL, "dataset": {"path": "my/data"}}))
    assert recipe.dataset.path == (tmp_path / "my" / "data").resolve()


def test_unknown_recipes_list_the_shipped(tmp_path):
    with pytest.raises(UserError, match="unknown recipe 'av_digit'; did you mean 'av_digits'"):
        find_recipe("av_digit")
    with pytest.raises(UserError, match="no such recipe file; shipped recipes: av_digits"):
        find_recipe(str(tmp_path / "none.yaml"))


def test_options_of_plug_ins_are_checked():
    assert parse_options(AvDigitsOptions, {"pairs": 200, "snr_db": [-3, 3]}, where="o").snr_db == (-3.0, 3.0)
    with pytest.raises(UserError, match="unknown option 'pair'; did you mean 'pairs'"):
        parse_options(AvDigitsOptions, {"pair": 3}, where="dataset.options")
    with pytest.raises(UserError, match=r"dataset\.options\.pairs: .*received 'many'"):
        parse_options(AvDigitsOptions, {"pairs": "many"}, where="dataset.options")


def test_another_recipe_is_told_by_its_first_difference(tmp_path):
    recipe = load_recipe(_write(tmp_path, MINIMAL))
    require_same(recipe, recipe.to_dict(), "run")
    other = load_recipe(_write(tmp_path, MINIMAL), ["distill.batch_size=8"])
    with pytest.raises(UserError, match="distill.batch_size is 8, was 64"):
        require_same(other, recipe.to_dict(), "run")


def test_recipes_do_not_change():
    recipe = Recipe.model_validate(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_mlperf_asks_for_the_rules_minima_and_quick_for_the_recipes(tmp_path):
    path = _write(tmp_path, {**MINIMAL, "measure": {"min_runs": 20, "min_seconds": 0.05}})
    quick = protocol_of(load_recipe(path))
    assert (quick.name, quick.min_runs, quick.min_seconds, quick.offline_samples) == ("quick", 20, 0.05, 0)
    official = protocol_of(load_recipe(path, ["measure.protocol=mlperf"]))
    assert official == measure.MLPERF
    longer = protocol_of(load_recipe(path, ["measure.protocol=mlperf", "measure.min_seconds=3600"]))
    assert (longer.min_runs, longer.min_seconds, longer.max_seconds) == (1024, 3600, 3600)
