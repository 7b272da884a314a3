"""Entries of the cache are whole or absent; arrays are written so that a full disk can be told."""

from __future__ import annotations

import numpy as np
import pytest

from mst_edge.core.cache import clear, entries, entry_folder, journal, look_up, new_entry
from mst_edge.core.rows import npy_rows


def _keep(root, number, kind="tables"):
    folder = entry_folder(root, kind, {"number": number})
    with new_entry(folder, f"number {number}", {"number": number}) as temporary:
        (temporary / "data").write_bytes(bytes(number))
    return folder


def test_an_entry_says_what_it_is_and_what_it_depends_on(tmp_path):
    folder = _keep(tmp_path, 7)
    (entry,) = entries(tmp_path)
    assert (entry.kind, entry.folder, entry.what, entry.depends_on) == ("tables", folder, "number 7", {"number": 7})
    assert entry.bytes >= 7
    assert look_up(folder, "number 7", {"number": 7})
    assert not look_up(entry_folder(tmp_path, "tables", {"number": 8}), "number 8", {"number": 8})


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, failure):
    folder = entry_folder(tmp_path, "tables", {})
    with pytest.raises(failure), new_entry(folder, "x", {}) as temporary:
        (temporary / "data").write_text("half", encoding="utf-8")
        raise failure
    assert list(folder.parent.iterdir()) == []


def test_the_first_of_two_stays(tmp_path):
    folder = entry_folder(tmp_path, "tables", {})
    with new_entry(folder, "slow", {}) as slow:
        (slow / "by").write_text("slow", encoding="utf-8")
        with new_entry(folder, "fast", {}) as fast:
            (fast / "by").write_text("fast", encoding="utf-8")
    assert (folder / "by").read_text(encoding="utf-8") == "fast"
    assert list(folder.parent.iterdir()) == [folder]


def test_clearing_takes_what_a_killed_process_left_too(tmp_path):
    _keep(tmp_path, 1)
    kept = _keep(tmp_path, 2, "features")
    half = tmp_path / "tables" / ".0123.89abcdef.tmp"
    half.mkdir()
    (half / "data").write_bytes(bytes(1000))
    assert clear(tmp_path, ["tables"]) > 1000
    assert list((tmp_path / "tables").iterdir()) == []
    assert look_up(kept, "number 2", {"number": 2})


def test_rows_become_an_array(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
    with npy_rows(tmp_path / "a.npy", (6, 2, 2), np.float32) as append:
        append(rows[:4])
        append(np.asfortranarray(rows[4:]))
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r", allow_pickle=False), rows)


@pytest.mark.parametrize("blocks", [[5], [7], [4, 4]])
def test_a_wrong_number_of_rows_is_refused(tmp_path, blocks):
    with pytest.raises(ValueError, match="array of"), npy_rows(tmp_path / "a.npy", (6, 2), np.float32) as append:
        for count in blocks:
            append(np.zeros((count, 2)))


def test_who_asks_hears_what_made_the_difference(tmp_path):
    first = {"model": "aa", "machine": {"cpu": "x", "isa": ["avx2"]}, "threads": 1}
    for facts in (first, {**first, "model": "bb", "threads": 4}):
        with new_entry(entry_folder(tmp_path, "builds", facts), "net", facts):
            pass
    wanted = {**first, "machine": {"cpu": "x", "isa": ("avx2", "vnni")}}
    with journal() as lookups:
        assert look_up(entry_folder(tmp_path, "builds", first), "net", first)
        assert not look_up(entry_folder(tmp_path, "builds", wanted), "net", wanted)
        assert not look_up(entry_folder(tmp_path, "builds", {"model": "cc"}), "another net", {"model": "cc"})
    assert [(found.reused, found.differs) for found in lookups] == [
        (True, {}),
        (False, {"machine.isa": (["avx2"], ["avx2", "vnni"])}),  # not the other entry, of which more differs
        (False, {}),
    ]
    look_up(entry_folder(tmp_path, "builds", first), "net", first)
    assert len(lookups) == 3  # nobody listens any more
