from __future__ import annotations

import pytest

from mst_edge.core.files import (
    atomic_path,
    read_json,
    remove_leftovers,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)


def test_write_text_replaces_the_file(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path, failure):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(failure), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_path_replaces_a_folder_whole(tmp_path):
    folder = tmp_path / "f"
    for content in ("old", "new"):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [file.name for file in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_atomic_path_leaves_no_folder_when_filling_it_fails(tmp_path):
    with pytest.raises(ValueError, match="full"), atomic_path(tmp_path / "f") as temporary:
        temporary.mkdir()
        (temporary / "part").write_text("x")
        raise ValueError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_write_json_refuses_nan_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ä": [1, None]}


def test_hashes_are_sha256(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1})


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in ("model.onnx", ".hidden", ".notes.tmp", "a/x.1234abcd.tmp")]
    left = [tmp_path / name for name in (".model.onnx.1234abcd.tmp", "a/.b.json.00ff00ff.old")]
    for path in [*kept, *left]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    (tmp_path / "a" / ".cpu.89abcdef.tmp").mkdir()
    (tmp_path / "a" / ".cpu.89abcdef.tmp" / "manifest.json").write_text("x")
    remove_leftovers(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
    assert not (tmp_path / "a" / ".cpu.89abcdef.tmp").exists()
