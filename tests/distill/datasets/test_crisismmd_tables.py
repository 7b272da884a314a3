"""CrisisMMD's tables: the real ones, and malformed ones made on the spot."""

from __future__ import annotations

import gzip
from collections import Counter

import pytest

from distill.datasets.raw import crisismmd
from mst_edge.core.errors import UserError

HEADER = "event_name\ttweet_id\timage_id\ttweet_text\timage\tlabel\tlabel_text\tlabel_image\tlabel_text_image"


def line(tweet=1, label="not_humanitarian", image=0, text='say "help"', event="srilanka_floods"):
    place = f"data_image/{event}/1_1_2017/{tweet}_{image}.jpg"
    return f"{event}\t{tweet}\t{tweet}_{image}\t{text}\t{place}\t{label}\t{label}\t{label}\tPositive"


def write_tables(root, train, dev, test, task="humanitarian"):
    (root / "crisismmd").mkdir(parents=True, exist_ok=True)
    for part, lines in (("train", train), ("dev", dev), ("test", test)):
        path = root / "crisismmd" / f"task_{task}_text_img_agreed_lab_{part}.tsv"
        path.write_text("\n".join([HEADER, *lines, ""]), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def real(real_data):
    if not (real_data / "crisismmd").is_dir():
        pytest.skip("no CrisisMMD: run `mst-edge data fetch crisismmd`")
    return {task: crisismmd.read_posts(real_data, task, "") for task in crisismmd.CLASSES}


def test_the_real_tables_hold_the_published_rows_in_the_official_splits(real):
    assert [Counter(post.split for post in real["humanitarian"])[split] for split in range(3)] == [6126, 998, 955]
    assert [Counter(post.split for post in real["informative"])[split] for split in range(3)] == [9601, 1573, 1534]
    train = Counter(post.label for post in real["humanitarian"] if post.split == 0)
    assert (train["not_humanitarian"], train["missing_or_found_people"]) == (3252, 2)


def test_the_usual_merge_is_the_one_of_the_published_text_labels(real, real_data):
    """In the tables, ``label_text`` is already merged to five classes; ``label`` is not."""
    assert len(crisismmd.class_names("humanitarian", merged=True)) == 5
    path = crisismmd.sources("humanitarian")[0].locate(real_data, "")
    rows = [row.split("\t") for row in gzip.decompress(path.read_bytes()).decode().splitlines()[1:]]
    train = [post for post in real["humanitarian"] if post.split == 0]
    assert [crisismmd.class_of(post, merged=True) for post in train] == [row[6] for row in rows if len(row) > 6]


def test_the_real_tables_verify_and_no_tweet_is_lost_to_quotation_marks(real, real_data):
    for task in crisismmd.CLASSES:
        for source in crisismmd.sources(task):
            path = source.locate(real_data, "")
            source.verify(path, path.relative_to(real_data).as_posix())
    assert max(len(post.text) for posts in real.values() for post in posts) < 200


def test_one_per_tweet_keeps_the_first_image_in_order(tmp_path):
    root = write_tables(tmp_path, [line(2, image=0), line(1), line(2, image=1)], [line(5)], [line(6)])
    posts = crisismmd.one_per_tweet(crisismmd.read_posts(root, "humanitarian", ""))
    assert [post.image_id for post in posts] == ["2_0", "1_0", "5_0", "6_0"]
    assert posts[0].text == 'say "help"'


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ([line(5)], "tweet 5 is in train and in dev"),
        ([line(1), line(2, label="flood")], r"train\.tsv:3: label 'flood' is none of the humanitarian task's"),
        ([line(1).rsplit("\t", 2)[0]], r"train\.tsv:2: has 7 columns, the header 9"),
        ([line(1, text=" ")], r"train\.tsv:2: column tweet_text is empty"),
    ],
)
def test_malformed_rows_are_named(tmp_path, train, says):
    root = write_tables(tmp_path, train, [line(5)], [line(6)])
    with pytest.raises(UserError, match=says):
        crisismmd.read_posts(root, "humanitarian", "")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.tsv", b"tweet_id\ttext\n", "has no column event_name; its columns: tweet_id, text"),
        ("x.tsv", b"", "has no column event_name"),
        ("x.tsv", b"\xff\xfe", "is not UTF-8"),
        ("x.tsv.gz", gzip.compress(b"event_name\n" * 99)[:-9], "not a whole file"),
    ],
)
def test_malformed_tables_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: .*{says}"):
        crisismmd.read_table(tmp_path / name, "informative", 0)


def test_a_changed_table_does_not_verify(tmp_path):
    root = write_tables(tmp_path, [line(1)], [line(5)], [line(6)])
    source = crisismmd.sources("humanitarian")[0]
    with pytest.raises(UserError, match="differs from the published table"):
        source.check(source.locate(root, ""))
