"""Text as a modality: how it is stored, what is learned from training texts alone, and networks that read it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from apps.runtime.tokenizer import FIRST_MERGE, pieces
from distill.datasets.arrays import infer_kind, open_arrays
from distill.datasets.builder import build_dataset
from distill.datasets.files import FilesOptions, open_any
from distill.datasets.library.crisismmd_text import CrisisMmdTextOptions, said
from distill.datasets.raw import crisismmd
from distill.datasets.spec import Kind, ModalitySpec
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import TokenizerOptions, make_frontend
from distill.networks.registry import NetworkChoice, build_model
from distill.tokens import TokenShape
from distill.training.features import FeatureStore
from mst_edge.core.errors import UserError
from tests.texts import write_text_arrays, write_text_table

SHAPE = TokenShape(10, 300)
NETWORKS = ["text_bag", "text_transformer"]


def _spec(length: int = 40) -> ModalitySpec:
    return ModalitySpec("text", Kind.TEXT, (), f"<U{length}")


def test_texts_are_memory_mapped_strings_and_read_as_they_were(tmp_path):
    dataset = open_arrays(write_text_arrays(tmp_path / "d"))
    assert dataset.modalities["text"] == ModalitySpec("text", Kind.TEXT, (), str(dataset.arrays["text"].dtype))
    assert isinstance(dataset.arrays["text"], np.memmap)
    read = dataset.read("text", np.array([3, 1]))
    assert read.tolist() == np.load(tmp_path / "d" / "text.npy")[[3, 1]].tolist()


def test_the_fingerprint_sees_every_letter(tmp_path):
    folder = write_text_arrays(tmp_path / "d")
    before = open_arrays(folder).fingerprint
    texts = np.load(folder / "text.npy")
    texts[-1] = texts[-1][:-1] + "x"
    np.save(folder / "text.npy", texts)
    assert open_arrays(folder).fingerprint != before


@pytest.mark.parametrize(
    ("name", "shape", "kind"), [("tweet_text", (), Kind.TEXT), ("speaker", (), None), ("text", (2,), None)]
)
def test_strings_are_text_where_their_name_says_so(name, shape, kind):
    assert infer_kind(name, shape, np.dtype("<U9")) is kind


def test_strings_that_may_be_names_are_asked_for(tmp_path):
    folder = write_text_arrays(tmp_path / "d")
    (folder / "text.npy").rename(folder / "body.npy")
    with pytest.raises(UserError, match=r"body\.npy: holds strings: .*modalities: \{body: \{kind: text\}\}"):
        open_arrays(folder)
    (folder / "dataset.yaml").write_text("modalities: {body: {kind: text}}\n")
    assert open_arrays(folder).modalities["body"].kind is Kind.TEXT
    (folder / "dataset.yaml").write_text("modalities: {body: {kind: vector}}\n")
    with pytest.raises(UserError, match="holds strings"):
        open_arrays(folder)


def test_numbers_are_no_text(tmp_path):
    folder = write_text_arrays(tmp_path / "d")
    np.save(folder / "text.npy", np.zeros((len(np.load(folder / "target.npy")), 5), np.float32))
    (folder / "dataset.yaml").write_text("modalities: {text: {kind: text}}\n")
    with pytest.raises(UserError, match=r"a sample of shape \(5,\) cannot be text"):
        open_arrays(folder)


def test_a_csv_may_hold_texts_beside_files(tmp_path):
    path = write_text_table(tmp_path / "t.csv", samples=12)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        np.save(tmp_path / f"{index}.npy", np.full(5, index, np.float32))
        row["facts"] = f"{index}.npy"
    rows[4]["text"] = ""
    _write(path, rows)
    dataset = open_any(path, FilesOptions())
    assert {name: spec.kind for name, spec in dataset.modalities.items()} == {
        "facts": Kind.VECTOR,
        "text": Kind.TEXT,
    }
    assert dataset.read("text", slice(None)).tolist() == [row["text"] for row in rows]
    assert open_any(path, FilesOptions(max_chars=7)).read("text", slice(0, 1))[0] == rows[0]["text"][:7]


def test_text_files_in_class_folders_are_texts(tmp_path):
    for label in ("fire", "flood"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "d" / label / f"{index}.txt").write_text(f"{label} № {index}", encoding="utf-8")
    dataset = open_any(tmp_path / "d", FilesOptions())
    assert dataset.read("text", slice(0, 2)).tolist() == ["fire № 0", "fire № 1"]
    (tmp_path / "d" / "fire" / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"1\.txt: not text in UTF-8"):
        open_any(tmp_path / "d", FilesOptions())


def _write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_column_that_is_neither_files_nor_text_is_told(tmp_path):
    rows = [{"text": "it burns", "age": str(index), "target": "ab"[index % 2]} for index in range(6)]
    _write(tmp_path / "t.csv", rows)
    with pytest.raises(UserError, match="column age holds neither files nor free text; its first value: '0'"):
        open_any(tmp_path / "t.csv", FilesOptions())
    _write(tmp_path / "t.csv", [{**row, "age": f"{row['age']}.wav"} for row in rows])
    with pytest.raises(UserError, match=r"no such file: 0\.wav"):
        open_any(tmp_path / "t.csv", FilesOptions())
    (tmp_path / "t.csv").write_bytes(b"text,target\nit burns \xff,a\n")
    with pytest.raises(UserError, match="not a CSV in UTF-8"):
        open_any(tmp_path / "t.csv", FilesOptions())


def _store(dataset, **options):
    ids = split_dataset(dataset, SplitRule())
    frontend = make_frontend(dataset.modalities["text"], TokenizerOptions(**options))
    return FeatureStore(dataset, ids, {"text": frontend}), frontend, ids


def test_the_tokenizer_is_fitted_on_training_texts_alone(tmp_path):
    folder = write_text_arrays(tmp_path / "d")
    ids = split_dataset(open_arrays(folder), SplitRule())
    texts = np.load(folder / "text.npy")
    texts[ids["test"]] = "quixotic"
    np.save(folder / "text.npy", texts)
    store, frontend, ids = _store(open_arrays(folder), max_tokens=16)
    test = store.gather(ids["test"][:1], ["text"], torch.device("cpu")).inputs["text"][0]
    assert int((test != 0).sum()) > 5  # a word that no training text holds stays in pieces
    train = open_arrays(folder).read("text", ids["train"])
    words = {piece for text in train for piece in pieces(text, lower_case=True) if isinstance(piece, str)}
    assert any(len(frontend.tokenizer.tokens(word)) == 1 for word in words)
    # The front end of a later process finds what was learned, and the same features.
    again, later, _ = _store(open_arrays(folder), max_tokens=16)
    assert later.tokenizer == frontend.tokenizer
    assert again.shapes["text"] == (16,)
    assert again.shapes["text"].vocabulary == frontend.tokenizer.vocabulary < 2000


def test_other_options_give_other_features(tmp_path):
    dataset = open_arrays(write_text_arrays(tmp_path / "d"))
    _, small, _ = _store(dataset, vocabulary=FIRST_MERGE)
    _, large, _ = _store(dataset)
    assert small.tokenizer.vocabulary == FIRST_MERGE < large.tokenizer.vocabulary


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (TokenizerOptions(vocabulary=100), "modalities.text: vocabulary must be at least 259"),
        (TokenizerOptions(max_tokens=0), "max_tokens must be 1 to 4096, received 0"),
    ],
)
def test_wrong_tokenizer_options_are_told(options, says):
    with pytest.raises(UserError, match=says):
        make_frontend(_spec(), options)


def _network(name: str, shape: TokenShape = SHAPE, **options):
    torch.manual_seed(0)
    return build_model("x", NetworkChoice(name, options), {"text": shape}, 4, where="t").module.eval()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_padding_changes_nothing(name):
    """The same weights over more padding give the same logits, and an empty text gives finite ones."""
    short, long = _network(name), _network(name, TokenShape(30, 300))
    long.load_state_dict(short.state_dict())
    ids = torch.zeros(2, 30, dtype=torch.int32)
    ids[0, :7] = torch.arange(3, 10)
    assert torch.allclose(short(ids[:, :10]), long(ids), atol=1e-5)
    assert torch.isfinite(long(ids)).all()


@torch.no_grad()
def test_the_transformer_reads_order_and_the_bag_does_not():
    ids = torch.zeros(1, 10, dtype=torch.int32)
    ids[0, :4] = torch.tensor([5, 6, 7, 8])
    turned = ids.clone()
    turned[0, :4] = ids[0, :4].flip(0)
    bag, transformer = (_network(name) for name in NETWORKS)
    assert torch.allclose(bag(ids), bag(turned), atol=1e-6)
    assert not torch.allclose(transformer(ids), transformer(turned), atol=1e-4)


@pytest.mark.parametrize(("name", "low", "high"), [("text_bag", 1e5, 2e5), ("text_transformer", 1.5e5, 4e5)])
def test_text_networks_are_small(name, low, high):
    module = _network(name, TokenShape(64, 2000))
    assert low < sum(p.numel() for p in module.parameters()) < high


def test_auto_reads_text():
    assert build_model("x", NetworkChoice(), {"text": SHAPE}, 4, where="t").network == "text_bag"
    fused = build_model("x", NetworkChoice(), {"text": SHAPE, "facts": (5,)}, 4, where="t")
    assert fused({"text": torch.ones(2, 10, dtype=torch.int32), "facts": torch.zeros(2, 5)}).shape == (2, 4)


@pytest.mark.parametrize(("name", "shape"), [("mlp", SHAPE), ("text_bag", (10,)), ("text_transformer", (10,))])
def test_a_network_for_something_else_is_told(name, shape):
    with pytest.raises(UserError, match=f"{name} cannot read features of shape"):
        build_model("x", NetworkChoice(name), {"text": shape}, 4, where="t")
    encoders = {"encoders": {"text": {"network": name}}}
    with pytest.raises(UserError, match="fusion cannot read features of shape .*token ids of a text"):
        build_model("x", NetworkChoice("fusion", encoders), {"text": shape, "facts": (5,)}, 4, where="t")


# CrisisMMD's real tables.


@pytest.fixture(scope="module")
def tweets(real_data):
    if not (real_data / "crisismmd").is_dir():
        pytest.skip("no CrisisMMD in MST_EDGE_DATA")
    return real_data


def test_crisismmd_text_holds_each_tweet_once_in_its_official_split(tweets):
    dataset = build_dataset("crisismmd_text", CrisisMmdTextOptions(), SplitRule(), tweets)
    ids = split_dataset(dataset, SplitRule())
    assert {name: len(part) for name, part in ids.items()} == {"train": 5261, "val": 998, "test": 955}
    assert dict(zip(dataset.classes, dataset.class_counts(ids["train"]).tolist(), strict=True)) == {
        "not_humanitarian": 2742,
        "affected_individuals": 70,
        "infrastructure_and_utility_damage": 496,
        "rescue_volunteering_or_donation_effort": 761,
        "other_relevant_information": 1192,
    }
    assert len(set(dataset.read("text", slice(None)).tolist())) == len(dataset)
    words = [{said(text) for text in dataset.read("text", part)} for part in ids.values()]
    assert not words[0] & words[1] | words[0] & words[2] | words[1] & words[2]


def test_crisismmd_text_has_all_eight_classes_where_asked(tweets):
    dataset = build_dataset("crisismmd_text", CrisisMmdTextOptions(classes=8), SplitRule(), tweets)
    assert dataset.classes == crisismmd.CLASSES["humanitarian"]
    counts = dict(zip(dataset.classes, dataset.class_counts(dataset.explicit_split == 0).tolist(), strict=True))
    assert (counts["missing_or_found_people"], counts["vehicle_damage"]) == (2, 16)


@pytest.mark.parametrize("by", ["words", "event"])
def test_crisismmd_text_may_be_split_by_what_tweets_share(tweets, by):
    dataset = build_dataset("crisismmd_text", CrisisMmdTextOptions(), SplitRule(seed=1, by=by), tweets)
    ids = split_dataset(dataset, SplitRule())
    owners = [set(dataset.groups[by][part].tolist()) for part in ids.values()]
    assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]


def test_tweets_that_say_the_same_are_known_by_their_words():
    one = "RT @KAKEnews: California wildfires destroy 50 structures: https://t.co/IkSrNpmT83"
    assert said(one) == said("california wildfires destroy 50 structures @you https://t.co/other")
    assert said(one) != said("California wildfires destroy 60 structures")
