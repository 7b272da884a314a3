from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict

from mst_edge.core.border import parse, read_yaml
from mst_edge.core.errors import UserError, unknown_name


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    learning_rate: float = 0.1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    many: dict[str, Inner] = {}
    rows: list[Inner] = []
    name: str


def test_user_error_is_one_line_with_place_and_fix():
    error = UserError("is\n broken", where="file.npy", fix="mend it")
    assert str(error) == "file.npy: is broken; mend it"


def test_unknown_name_names_the_closest_and_lists_all():
    text = str(unknown_name("network", "lenet", ["lenet5", "tcn"]))
    assert "did you mean 'lenet5'?" in text
    assert "lenet5, tcn" in text


def test_unknown_name_says_none_when_nothing_is_known():
    assert "Known: none" in str(unknown_name("app", "x", []))


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"name": "x", "inner": {"learning_rat": 1}}, "inner.learning_rat"),
        ({"name": "x", "many": {"a": {"learning_rat": 1}}}, "many.a.learning_rat"),
        ({"name": "x", "rows": [{"learning_rat": 1}]}, "rows.0.learning_rat"),
    ],
)
def test_parse_names_the_closest_key_when_a_key_is_unknown(data, key):
    with pytest.raises(UserError) as caught:
        parse(Outer, data, where="r.yaml")
    assert f"unknown key '{key}'" in str(caught.value)
    assert "did you mean 'learning_rate'?" in str(caught.value)


def test_parse_prefers_the_misspelt_key_to_the_missing_one():
    with pytest.raises(UserError, match="unknown key 'nam'.*did you mean 'name'"):
        parse(Outer, {"nam": "x"}, where="r.yaml")


def test_parse_says_what_it_received_when_a_value_has_the_wrong_type():
    with pytest.raises(UserError, match=r"inner.learning_rate: .*received 'fast'"):
        parse(Outer, {"name": "x", "inner": {"learning_rate": "fast"}}, where="r.yaml")


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_parse_refuses_what_is_no_mapping(data):
    with pytest.raises(UserError, match="expected keys and values"):
        parse(Outer, data, where="r.yaml")


def test_read_yaml_says_the_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(UserError, match=r"r\.yaml:\d+: not valid YAML"):
        read_yaml(path)


def test_read_yaml_says_when_there_is_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")


def test_read_yaml_builds_no_python_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(path)
