"""Triage of texts: the categories are those of the offline evaluation, and no text does anything to a terminal."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as fuzzed
from hypothesis import settings
from hypothesis import strategies as st

from apps.runtime import BundleError
from apps.runtime.lines import CUT, FORMATS, NO_TEXT, NOT_UTF8, format_of, read_lines
from apps.runtime.terminal import printable
from apps.runtime.tokenizer import Tokenizer, read_tokenizer
from apps.triage import EMPTY, TOO_LONG, UNSURE, main
from distill.datasets.raw import crisismmd
from mst_edge.cli.apps import run_app
from tests.apps.bundles import bayes, mood_bundle, sound_bundle, text_bundle
from tests.conftest import ROOT
from tests.texts import make_texts

HOSTILE = "fire \x1b[2J\x1b]0;owned\x07 \x9b31m \x08\x08 \u202e\u2066 \u0085 \u2028 \x00 \x7f \u200f end"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return text_bundle(tmp_path_factory.mktemp("reader"), *make_texts())


@pytest.fixture
def triage(reader, capsys, monkeypatch):
    """Runs the app; gives its exit code, its records, and what it said on standard error."""

    def run(*arguments: object, given: bytes = b"", code: int = 0) -> tuple[list[dict], str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert main([str(reader), *map(str, arguments), "--json"]) == code
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], err

    return run


def _offline(tokenizer: Tokenizer, texts: list[str], trained_on: tuple[list[str], list[str]]) -> list[str]:
    """The most likely class of each text, without the runtime and its graph."""
    table, bias, names = bayes(tokenizer, *trained_on)
    return [names[k] for k in (table[tokenizer.encode_all(texts)].sum(axis=1) + bias).argmax(axis=1)]


@pytest.mark.parametrize("form", ["txt", "txt.gz", "csv", "tsv", "jsonl", "stdin"])
@pytest.mark.parametrize("batch", [1, 7])
def test_every_format_gives_the_labels_of_the_offline_evaluation(triage, reader, tmp_path, form, batch):
    texts, _ = make_texts(60, seed=1)
    path = tmp_path / f"x.{form}"
    if form == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", "text"], *([k, text] for k, text in enumerate(texts))])
    elif form == "tsv":
        path.write_text("\n".join(["text\tid", *(f"{text}\t{k}" for k, text in enumerate(texts))]), encoding="utf-8")
    elif form == "jsonl":
        path.write_text("\n".join(json.dumps({"id": k, "text": t}) for k, t in enumerate(texts)), encoding="utf-8")
    else:
        lines = "\n".join(texts).encode()
        path.write_bytes(gzip.compress(lines) if form == "txt.gz" else lines)
    given = path.read_bytes() if form == "stdin" else b""
    said, told = triage(*([] if form == "stdin" else [path]), "--batch", batch, given=given)
    assert [record["text"] for record in said] == texts
    first = 2 if form in ("csv", "tsv") else 1
    assert [record["line"] for record in said] == list(range(first, first + 60))
    assert [record["category"] for record in said] == _offline(
        read_tokenizer(reader / "tokenizer.json"), texts, make_texts()
    )
    assert "60 texts" in told


def test_real_tweets_get_the_labels_of_the_offline_evaluation(real_data, tmp_path, capsys):
    """CrisisMMD's test split, out of the table that its authors publish, by a model of its training split."""
    posts = crisismmd.one_per_tweet(crisismmd.read_posts(real_data, "humanitarian", ""))
    labels = [crisismmd.class_of(post, merged=True) for post in posts]
    train = [k for k, post in enumerate(posts) if post.split == 0]
    learned = [posts[k].text for k in train], [labels[k] for k in train]
    bundle = text_bundle(tmp_path, *learned, vocabulary=600, tokens=48)
    (table,) = real_data.glob("crisismmd/task_humanitarian*_test.tsv.gz")
    assert main([str(bundle), str(table), "--column", "tweet_text", "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tested = {post.text: label for post, label in zip(posts, labels, strict=True) if post.split == 2}
    assert {record["text"] for record in said} >= set(tested)
    offline = _offline(read_tokenizer(bundle / "tokenizer.json"), [record["text"] for record in said], learned)
    assert [record["category"] for record in said] == offline
    right = [record["category"] == tested[record["text"]] for record in said if record["text"] in tested]
    assert np.mean(right) > 0.6


def test_unsure_is_said(triage):
    sure, _ = triage("--text", "the wildfire burns near Solano")
    likely = sure[0]["confidence"]
    for limit in (["--min-confidence", likely + 1e-5], ["--threshold", f"fire={likely + 1e-5}"]):
        said, told = triage("--text", "the wildfire burns near Solano", *limit)
        assert (said[0]["category"], said[0]["best"]) == (UNSURE, "fire")
        assert "100.0%  ?" in told
    said, _ = triage("--text", "the wildfire burns near Solano", "--min-confidence", 1, "--threshold", "fire=0.1")
    assert said[0]["category"] == "fire"
    for given, says in (("wildfire=0.1", "no category 'wildfire'; known: calm, fire, flood"), ("fire=x", "'x' is no")):
        with pytest.raises(BundleError, match=says):
            triage("--text", "x", "--threshold", given)


def test_every_line_has_its_answer_whatever_is_in_it(triage, reader):
    lines = [b"\xef\xbb\xbfthe river flooded Houston\r", b"", b"K\xf6ln brennt", "🔥🔥".encode(), "سيول 東京".encode()]
    lines += [b"a\x85b \xe2\x80\xa8 c", b"fire " * 500, b"x" * 200_000, b"\x00\x01\x02", "\ufffd".encode()]
    said, told = triage("-", given=b"\n".join(lines))
    assert [record["line"] for record in said] == list(range(1, len(lines) + 1))
    assert said[0]["text"] == "the river flooded Houston"
    assert (said[0]["category"], said[0]["odd"]) == ("flood", [])
    assert (said[1]["category"], said[1]["odd"]) == (UNSURE, [EMPTY])
    assert (said[2]["text"], said[2]["odd"]) == ("K\ufffdln brennt", [NOT_UTF8])
    assert [record["odd"] for record in said[3:5]] == [[], []]
    assert said[5]["odd"] == [NOT_UTF8]
    assert said[6]["odd"] == [TOO_LONG]
    assert said[7]["odd"] == [CUT, TOO_LONG]
    assert len(said[7]["text"]) == 65536
    assert (said[8]["category"], said[8]["odd"]) == (UNSURE, [EMPTY])
    assert said[9]["odd"] == []
    assert f"{2:8}  20.0%  of them {EMPTY}" in told


def test_a_character_that_a_cut_parts_is_no_fault(triage):
    said, _ = triage("-", given=b"x" + "é".encode() * 40_000 + b"\nfire")
    assert said[0]["odd"] == [CUT, TOO_LONG]
    assert said[1]["text"] == "fire"


def test_lines_without_end_take_no_memory():
    class Endless(io.RawIOBase):
        asked, left = 0, 50

        def readable(self):
            return True

        def readline(self, size=-1):
            self.asked, self.left = max(self.asked, size if size > 0 else 1 << 40), max(0, self.left - 1)
            return b"x" * size if self.left else b""

    endless = Endless()
    (line,) = read_lines(endless, "x", "lines")
    assert len(line.text) == endless.asked == 1 << 16


@pytest.mark.parametrize("where", ["text", "file"])
def test_nothing_of_a_text_reaches_the_terminal_but_characters(reader, tmp_path, capfd, where):
    path = tmp_path / ("x.txt" if where == "text" else "x\x1b]0;owned\x07\u202e.txt")
    path.write_text(HOSTILE.replace("\x00", "") if where == "text" else "fire", encoding="utf-8")
    assert main([str(reader), str(path)]) == 0
    assert main([str(reader), str(path), "--column", "1\x1b"]) == 2
    assert main([str(reader), str(path), "--json"]) == 0
    seen = "".join(capfd.readouterr())
    assert [c for c in seen if not (c.isprintable() or c == "\n" or c in "\u2068\u2069")] == []
    assert "\\x1b]0;owned\\x07" in seen


def test_a_hostile_header_is_shown_as_characters(reader, tmp_path, capfd):
    (tmp_path / "x.csv").write_text("a\x1b[2J,b\u202e\n1,2\n", encoding="utf-8")
    assert main([str(reader), str(tmp_path / "x.csv")]) == 2
    told = capfd.readouterr().err
    assert "does not tell which column has the texts; it has a\\x1b[2J, b\\u202e; --column NAME" in told
    assert "\x1b" not in told


@fuzzed(st.text(st.characters(codec=None)), st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_what_is_printable_is_one_line_of_characters(text, most):
    shown = printable(text, most)
    inner = shown.removeprefix("\u2068").removesuffix("\u2069")
    assert shown in (inner, f"\u2068{inner}\u2069")
    assert all(c.isprintable() or c in "\u200c\u200d" for c in inner)
    shown.encode("utf-8")
    if 0 < most < len(text):
        assert inner.endswith("\u2026")


def test_text_from_right_to_left_is_isolated_and_emoji_stay_whole():
    assert printable("سيول") == "\u2068سيول\u2069"
    assert printable("👩\u200d🚒 ok") == "👩\u200d🚒 ok"
    assert printable("a\tb\u00a0c\u3000d") == "a b c d"
    assert printable("\U000e0041\ud800") == "\\U000e0041\\ud800"


@fuzzed(st.binary(max_size=300), st.sampled_from(FORMATS))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_lines_or_told(content, form):
    told = None
    lines = []
    try:
        lines += read_lines(io.BytesIO(content), "x", form)
    except BundleError as error:
        told = str(error)
    assert told is None or form in ("csv", "tsv")
    assert "\n" not in (told or "")
    if form in ("lines", "jsonl"):
        assert len(lines) == content.count(b"\n") + (not content.endswith(b"\n")) * bool(content)
    for line in lines:
        line.text.encode("utf-8")


def test_columns_are_found_by_name_by_number_and_by_habit():
    def texts(content, form="csv", column=None):
        return [(line.number, line.text, line.odd) for line in read_lines(io.BytesIO(content), "x", form, column)]

    assert texts(b"id,Text\n1,a\n") == [(2, "a", ())]
    assert texts(b"said\na\n") == [(2, "a", ())]
    assert texts(b"1,a\n2,b\n", column="2") == [(1, "a", ()), (2, "b", ())]
    assert texts(b'n,text\n1,"a\nb, ""c"""\n\n2\n', column="text") == [(2, 'a\nb, "c"', ()), (5, "", (NO_TEXT,))]
    assert texts(b'n\ttext\n1\t"a\n', form="tsv") == [(2, '"a', ())]
    assert texts(b'{"text": "a"}\n[]\n{"text": 1}\n{"say": "b"}\n', form="jsonl") == [
        (1, "a", ()),
        *((k, "", (NO_TEXT,)) for k in (2, 3, 4)),
    ]
    assert texts(b'{"text": "a", "say": "b"}', form="jsonl", column="say") == [(1, "b", ())]
    assert texts(b"n,text\n1,K\xf6ln\n") == [(2, "K\ufffdln", (NOT_UTF8,))]
    for content, column, says in (
        (b"a,b\n", None, "does not tell which column has the texts; it has a, b"),
        (b"a,b\n", "c", "has no column 'c'; it has a, b"),
        (b"a,b\n", "0", "counted from 1"),
        (b'text\n"' + b"a\n" * 100_000, None, "not a table from line 2 on"),
    ):
        with pytest.raises(BundleError, match=says):
            texts(content, column=column)
    assert [format_of(Path(name)) for name in ("a.TSV.gz", "a.ndjson", "a", "a.gz")] == [
        "tsv",
        "jsonl",
        "lines",
        "lines",
    ]


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(triage, tmp_path):
    good = tmp_path / "good.txt"
    good.write_text("the river flooded Houston\n", encoding="utf-8")
    (tmp_path / "utf16.txt").write_text("fire", encoding="utf-16")
    (tmp_path / "half.txt.gz").write_bytes(gzip.compress(b"fire\n" * 1000)[:-20])
    (tmp_path / "not.txt.gz").write_bytes(b"fire")
    bad = ["none.txt", "utf16.txt", "not.txt.gz", "half.txt.gz", "."]
    said, told = triage(*(tmp_path / name for name in bad), good, code=2)
    assert said[-1]["category"] == "flood"
    for says in ("none.txt: no such file", "utf16.txt: is not a text", "not.txt.gz: cannot be read", "to its end"):
        assert says in told
    assert told.count("error: ") == len(bad)


def test_texts_are_sorted_into_files(triage, reader, tmp_path, capsys):
    texts, _ = make_texts(30, seed=2)
    (tmp_path / "x.txt").write_text("\n".join([*texts, HOSTILE.replace("\x00", ""), ""]) + "\n", encoding="utf-8")
    out = tmp_path / "sorted"
    said, _ = triage(tmp_path / "x.txt", "--route", out)
    for _ in range(2):  # added, not replaced
        kept = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in out.iterdir()}
        assert set(kept) == {"calm", "fire", "flood", "unsure"}
        for name, records in kept.items():
            of_it = [r for r in said if r["category"] == ("?" if name == "unsure" else name)]
            assert records == of_it
        triage(tmp_path / "x.txt", "--route", out)
        said = said + said
    raw = b"".join(file.read_bytes() for file in out.iterdir())
    assert raw.isascii()
    assert b"\x1b" not in raw  # one may look at the files, too
    (tmp_path / "taken").write_text("")
    with pytest.raises(BundleError, match="taken: cannot be written to"):
        triage(tmp_path / "x.txt", "--route", tmp_path / "taken")


def test_names_of_categories_stay_in_the_folder(tmp_path):
    names = ["../../x", "a/b", "a b", "unsure"]
    texts, classes = make_texts(4)[0], names
    bundle = text_bundle(tmp_path / "b", texts, classes)
    (tmp_path / "x.txt").write_text("\n".join(texts), encoding="utf-8")
    assert main([str(bundle), str(tmp_path / "x.txt"), "--route", str(tmp_path / "out"), "--quiet"]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b", "out", "x.txt"]
    assert sum(len(file.read_text().splitlines()) for file in (tmp_path / "out").iterdir()) == 4
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_stream_is_answered_as_it_comes(reader):
    command = [sys.executable, "-m", "mst_edge", "app", "triage", str(reader), "--json"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    with process:
        for text, category in (("smoke and flames over Solano", "fire"), ("the river flooded Köln", "flood")):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["category"] == category
        out, err = process.communicate()
    assert (process.returncode, out) == (0, b"")
    assert b"2 texts" in err


def test_what_does_not_fit_is_told(tmp_path, reader):
    with pytest.raises(BundleError, match="its student reads audio, not text"):
        main([str(sound_bundle(tmp_path / "ear")), "--text", "x"])
    with pytest.raises(BundleError, match="--batch"):
        main([str(reader), "--text", "x", "--batch", "0"])
    (tmp_path / "x.txt").write_text("x")
    assert main([str(reader), str(tmp_path / "x.txt"), "--column", "text"]) == 2


def test_a_number_is_said_in_its_unit_with_its_ordinal_class(tmp_path, capsys):
    bundle = mood_bundle(tmp_path)
    (tmp_path / "x.txt").write_text("awful, poor end\nnice\ngreat\n\nfilm\n", encoding="utf-8")
    assert main([str(bundle), str(tmp_path / "x.txt"), "--json", "--route", str(tmp_path / "out")]) == 0
    out, told = capsys.readouterr()
    said = [json.loads(line) for line in out.splitlines()]
    # Beyond the scale the last class is meant; 0.5 is as near to 0 as to 1, and the even one is taken.
    assert [record["values"]["sentiment"] for record in said] == [-4.0, 1.0, 2.25, 0.5, 0.5]
    assert [record["category"] for record in said] == ["-3", "1", "2", UNSURE, "0"]
    assert [record["ordinal_class"] for record in said][:3] == [-3, 1, 2]
    assert said[0]["units"] == {"sentiment": "stars"}
    assert f"{(-4 + 1 + 2.25 + 0.5) / 4:8.3f} mean sentiment\n" in told
    assert sorted(file.stem for file in (tmp_path / "out").iterdir()) == ["-3", "0", "1", "2", "unsure"]
    assert main([str(bundle), "--text", "great"]) == 0
    assert capsys.readouterr().out == f"{'--text:1':20} sentiment    2.250 stars  2   great\n"


def test_numbers_without_classes_cannot_be_sorted_and_none_has_a_confidence(tmp_path, capsys):
    bundle = str(mood_bundle(tmp_path, ordinal=()))
    assert main([bundle, "--text", "great", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["category"], record["values"]) == ("", {"sentiment": 2.25})
    assert "ordinal_class" not in record
    for option, value, says in (
        ("--route", str(tmp_path / "out"), "--route: its numbers have no classes to sort texts by"),
        ("--min-confidence", "0.5", "--min-confidence: its student answers with numbers"),
        ("--threshold", "2=0.5", "--threshold: its student answers with numbers"),
    ):
        with pytest.raises(BundleError, match=says):
            main([bundle, "--text", "great", option, value])


@pytest.mark.parametrize("app", ["activity", "digits-camera", "emotion", "spoken-digits"])
def test_apps_for_other_inputs_refuse_a_student_of_text(app, reader, tmp_path):
    (tmp_path / "x.txt").write_text("fire")
    with pytest.raises(BundleError, match="its student reads text, no"):
        run_app(app, [str(reader), str(tmp_path / "x.txt")])
