"""What frozen networks say is kept on disk, found again only where nothing changed, and bounded."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from distill.frozen import Frozen, Keeper, as_logits
from distill.identity import network_identity
from distill.lab import freeze
from distill.masks import MaskedTeacher, make_specialised
from distill.training.features import FeatureStore
from mst_edge.core import cache
from mst_edge.core.cache import cache_root
from tests.conftest import ROOT, mst_edge, write_arrays
from tests.distill.test_training import make_lab, store  # noqa: F401

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MST_EDGE_CACHE", str(tmp_path / "cache"))


def make_store(folder, rule=SplitRule(), **options):  # noqa: B008
    dataset = open_arrays(write_arrays(folder, **options))
    fronts = {name: make_frontend(spec, frontend_options(spec.kind)()) for name, spec in dataset.modalities.items()}
    return FeatureStore(dataset, split_dataset(dataset, rule), fronts)


def _batch(data, split="train", count=9, seed=0):
    ids = np.random.default_rng(seed).permutation(data.splits[split])[:count]
    return data.gather(ids, ("facts", "signal"), CPU)


class Counted:
    """A frozen teacher that counts how often it runs."""

    def __init__(self, lab, teacher="facts"):
        self.model, self.runs = freeze(lab.new_teacher(teacher)), 0
        self.frozen = Frozen("counted", self._compute, self.model.reads, [self.model.module])

    def _compute(self, inputs):
        self.runs += 1
        return (as_logits(self.model(inputs)),)


def _tables():
    return cache.entries(cache_root(), ["tables"])


def test_a_second_process_reads_what_the_first_one_kept(store, tmp_path):  # noqa: F811
    first, again = (Counted(make_lab(store, tmp_path)) for _ in range(2))
    batch = _batch(store)
    (said,) = make_lab(store, tmp_path).keeper.answers(first.frozen)(batch)
    assert torch.allclose(said, first.model(batch.inputs), atol=1e-6)
    assert first.runs > 1
    (read,) = make_lab(store, tmp_path).keeper.answers(again.frozen)(batch)
    assert torch.equal(read, said)
    assert again.runs == 1  # two samples, to learn the size of a row
    assert len(_tables()) == 1


def test_rows_are_of_train_and_validation_samples_alone(store, tmp_path):  # noqa: F811
    answers = make_lab(store, tmp_path).keeper.answers(Counted(make_lab(store, tmp_path)).frozen)
    (entry,) = [answers(_batch(store, split)) and _tables()[0] for split in ("train", "val")][:1]
    rows = np.load(entry.folder / "0.npy", mmap_mode="r")
    assert rows.shape == (len(store.splits["train"]) + len(store.splits["val"]), 3)
    with pytest.raises(IndexError, match="test samples"):
        answers(_batch(store, "test"))


def test_nothing_is_computed_before_somebody_asks(store, tmp_path):  # noqa: F811
    make_lab(store, tmp_path).keeper.answers(Counted(make_lab(store, tmp_path)).frozen)
    assert _tables() == []


@dataclasses.dataclass
class Settings:
    power: int = 1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(12, 3)
        self.register_buffer("bias", torch.zeros(3), persistent=False)
        self.gain, self.names, self.settings = 1.0, {"a", "b"}, Settings()

    def forward(self, x):
        return self.gain * self.lin(x) ** self.settings.power + self.bias


def _changes():
    def weights(net):
        with torch.no_grad():
            net.lin.weight[0, 0] += 1e-7

    def buffer(net):
        net.bias += 1

    def attribute(net):
        net.gain = 2.0

    def inner(net):
        net.settings.power = 2

    def layer(net):
        net.lin = nn.Sequential(net.lin)

    return [weights, buffer, attribute, inner, layer]


@pytest.mark.parametrize("change", _changes())
def test_any_change_of_a_network_is_another_key(change):
    torch.manual_seed(0)
    net = Net()
    before = network_identity([net])
    assert network_identity([net]) == before
    change(net)
    assert network_identity([net]) != before


def test_the_key_of_a_network_is_the_same_in_every_process():
    code = (
        "import torch, json; torch.manual_seed(0)\n"
        "from tests.distill.test_frozen import Net\n"
        "from distill.identity import network_identity\n"
        "print(json.dumps(network_identity([Net()])))"
    )
    torch.manual_seed(0)
    here = network_identity([Net()])
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(there.stdout) == here


def test_code_is_part_of_the_key(tmp_path, monkeypatch):
    """Two packages of the same name, one line apart."""
    keys = []
    for constant in (1, 2):
        folder = tmp_path / str(constant) / f"net{constant}"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("", encoding="utf-8")
        (folder / "helper.py").write_text(f"GAIN = {constant}\n", encoding="utf-8")
        (folder / "net.py").write_text(
            "from torch import nn\nfrom .helper import GAIN\nclass Net(nn.Module):\n"
            "    def forward(self, x):\n        return GAIN * x\n",
            encoding="utf-8",
        )
        monkeypatch.syspath_prepend(folder.parent)
        module = __import__(f"net{constant}.net", fromlist=["Net"])
        keys.append(network_identity([module.Net()])["code"][f"net{constant}"])
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"rule": SplitRule(seed=1)},
        {"seed": 5},
        {"noise": 0.81},
    ],
    ids=["split", "data", "one value"],
)
def test_other_data_or_another_split_is_another_key(tmp_path, changed):
    lab = make_lab(make_store(tmp_path / "one"), tmp_path)
    other = make_lab(make_store(tmp_path / "other", **changed), tmp_path)
    networks = Counted(lab).frozen
    for each in (lab, other):
        each.keeper.answers(networks)(_batch(each.store))
    assert len(_tables()) == 2


def test_precision_and_facts_are_part_of_the_key(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    counted = Counted(lab).frozen
    bf16 = make_lab(store, tmp_path, session=dataclasses.replace(lab.session, bf16=True))
    layered = dataclasses.replace(counted, facts={"layer": "x"})
    for each, frozen in ((lab, counted), (bf16, counted), (lab, layered)):
        each.keeper.answers(frozen)(_batch(store))
    assert len(_tables()) == 3


def test_masks_are_part_of_the_key(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    special = make_specialised(freeze(lab.new_teacher("multimodal")), "fused", "compact", store.shapes, "layers")
    for bias in (3.0, 2.9):
        nn.init.constant_(special.mask.score.bias, bias)
        with torch.no_grad():
            (said,) = lab.keeper.answers(MaskedTeacher([special]).frozen)(_batch(store))
            assert torch.allclose(said, special(_batch(store).inputs), atol=1e-5)
    assert len(_tables()) == 2


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda z: z, torch.float32),
        (lambda z: z.bfloat16(), torch.bfloat16),
        (lambda z: as_logits(z[:, :, None, None].expand(-1, -1, 4, 5)), torch.float16),
        (lambda z: z > 0, torch.bool),
    ],
)
def test_rows_of_any_shape_and_type_come_back_bit_by_bit(store, tmp_path, make, dtype):  # noqa: F811
    lab = make_lab(store, tmp_path)
    model = freeze(lab.new_teacher("facts"))
    frozen = Frozen("any", lambda inputs: (make(model(inputs)), model(inputs)), model.reads, [model.module])
    said, plain = lab.keeper.answers(frozen)(_batch(store))
    assert said.dtype == dtype
    assert torch.equal(said, make(plain))


def test_a_limit_bounds_the_disk_and_the_longest_unused_make_room(store, tmp_path):  # noqa: F811
    row = 3 * 4 * 192
    keeper = dataclasses.replace(make_lab(store, tmp_path).keeper, limit_bytes=3 * row)
    lab = make_lab(store, tmp_path)
    batch, folders = _batch(store), []
    for number in range(3):
        frozen = dataclasses.replace(Counted(lab).frozen, facts={"number": number})
        answers = keeper.answers(frozen)
        answers(batch)
        folders.append(answers.kept.folder)
        del answers
        time.sleep(0.01)
    kept = [entry.folder for entry in _tables()]
    assert folders[2] in kept
    assert folders[0] not in kept
    assert sum(entry.bytes for entry in _tables()) <= 3 * row + 2000


def test_what_is_larger_than_the_limit_is_computed_for_every_batch(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path, keep_gb=0)
    counted = Counted(lab)
    answers = lab.keeper.answers(counted.frozen)
    assert answers.reads == ("facts",)
    before = counted.runs
    (said,) = answers(_batch(store, "test"))
    assert counted.runs == before + 1
    assert not said.is_inference()
    assert _tables() == []


def test_tables_in_use_stay_and_count(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path, keep_gb=1.5 * 3 * 4 * 192 / 1e9)
    one = lab.keeper.answers(Counted(lab).frozen)
    one(_batch(store))
    other = lab.keeper.answers(dataclasses.replace(Counted(lab).frozen, facts={"other": 1}))
    assert (one.reads, other.reads) == ((), ("facts",))
    assert [entry.folder for entry in _tables()] == [one.kept.folder]


def test_a_function_without_a_row_per_sample_is_not_kept(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    model = freeze(lab.new_teacher("facts"))
    frozen = Frozen("mean", lambda inputs: (model(inputs).mean(),), model.reads, [model.module])
    assert lab.keeper.answers(frozen).reads == ("facts",)


def test_two_at_once_write_the_same_key_and_both_read_it(store, tmp_path):  # noqa: F811
    """Both are past the look whether it is there before either has written."""
    lab, barrier = make_lab(store, tmp_path), threading.Barrier(2, timeout=20)
    model = freeze(lab.new_teacher("facts"))
    met = set()

    def compute(inputs):
        if len(inputs["facts"]) > 2 and threading.get_ident() not in met:
            met.add(threading.get_ident())
            barrier.wait()
        return (model(inputs),)

    def ask(_):
        frozen = Frozen("same", compute, model.reads, [model.module])
        return make_lab(store, tmp_path).keeper.answers(frozen)(_batch(store))[0]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(ask, range(2))
    assert len(met) == 2
    assert torch.equal(one, other)
    assert len(_tables()) == 1
    assert [path for path in (cache_root() / "tables").iterdir() if path.name.startswith(".")] == []


_WRITE = """
import resource, sys
from tests.distill.test_frozen import *
folder = Path(sys.argv[1])
store = make_store(folder / "data", samples=4000)
lab = make_lab(store, folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    lab.keeper.answers(Counted(lab).frozen)(store.gather(store.splits["train"][:4], ("facts",), CPU))
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_an_error_with_a_fix_and_leaves_nothing(tmp_path):
    """The system itself refuses to write more than 20 kB."""
    code = "from pathlib import Path\nfrom mst_edge.core.errors import UserError\n" + _WRITE
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the cache cannot be written (File too large); free space (`mst-edge cache clear`)" in done.stdout
    assert "distill.keep_gb" in done.stdout
    assert list((cache_root() / "tables").iterdir()) == []


def test_the_command_lists_what_is_kept_and_clears_it(store, tmp_path):  # noqa: F811
    data = make_store(tmp_path / "d")
    make_lab(data, tmp_path).keeper.answers(Counted(make_lab(data, tmp_path)).frozen)(_batch(data))
    rows = json.loads(mst_edge("cache", "list", "--json").out)
    assert sorted(row["kind"] for row in rows) == ["features", "features", "tables"]
    (table,) = [row for row in rows if row["kind"] == "tables"]
    assert table["what"] == "counted"
    assert table["bytes"] > 3 * 4 * 192
    assert set(table["depends_on"]) == {"networks", "facts", "features", "samples", "precision", "device"}
    shown = mst_edge("cache", "list").out
    assert "counted" in shown
    assert "facts of d, 240 samples" in shown
    assert "freed" in mst_edge("cache", "clear", "tables").out
    assert {entry.kind for entry in cache.entries(cache_root())} == {"features"}
    done = mst_edge("cache", "clear", "tabels")
    assert done.code == 2
    assert "did you mean 'tables'" in done.err
    assert mst_edge("cache", "clear").code == 0
    assert cache.entries(cache_root()) == []


def test_a_keeper_belongs_to_one_session(store, tmp_path):  # noqa: F811
    lab = make_lab(store, tmp_path)
    other = lab.borrower(tmp_path / "x")
    assert isinstance(other.keeper, Keeper)
    assert other.keeper is not lab.keeper
    assert other.keeper.session is other.session
