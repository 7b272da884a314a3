"""Targets of every task: what is told from an array alone, what is said, and the one line for what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from distill.datasets.arrays import open_arrays
from distill.datasets.files import FilesOptions, open_any
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from distill.tasks import Classification, Regression, Segmentation, task_for
from distill.training.features import FeatureStore
from mst_edge.core.errors import UserError
from tests.conftest import write_arrays, write_label_maps, write_numbers


def test_the_task_is_told_from_shape_and_type(tmp_path):
    maps, numbers = write_label_maps(tmp_path / "m"), write_numbers(tmp_path / "n")
    classes = write_arrays(tmp_path / "c")
    for folder in (maps, numbers):
        (folder / "dataset.yaml").unlink()
    np.save(maps / "target.npy", np.load(maps / "target.npy")[:, 1:])
    assert [open_arrays(folder).task for folder in (classes, maps, numbers)] == [
        "classification",
        "segmentation",
        "regression",
    ]
    np.save(classes / "target.npy", np.linspace(0, 1, 240))
    dataset = open_arrays(classes)
    assert (dataset.task, dataset.target.shape, dataset.classes) == ("regression", (240, 1), ())
    assert (dataset.truth.names, dataset.truth.units) == (("value",), ("",))


def test_whole_numbers_are_regressed_where_that_is_said(tmp_path):
    folder = write_arrays(tmp_path / "d")
    (folder / "dataset.yaml").write_text("task: regression\ntarget_names: [age]\ntarget_units: [years]\n")
    dataset = open_arrays(folder)
    assert dataset.target.dtype == np.float32
    assert (dataset.truth.names, dataset.truth.units) == (("age",), ("years",))


def test_label_maps_stay_on_disk_and_their_pixels_are_counted_once(tmp_path):
    dataset = open_arrays(write_label_maps(tmp_path / "d"))
    assert isinstance(dataset.target, np.memmap)
    raw = np.load(tmp_path / "d" / "target.npy")
    ids = np.array([3, 7, 8])
    assert dataset.class_counts(ids).tolist() == [(raw[ids] == k).sum() for k in range(3)]
    assert dataset.truth.class_pixels.sum() == (raw != 255).sum()


def test_an_ignored_class_between_the_others_has_an_output_but_need_not_be_in_train(tmp_path):
    folder = write_label_maps(tmp_path / "d")
    target = np.load(folder / "target.npy")
    target[target == 0] = 7
    np.save(folder / "target.npy", np.where(target == 255, 0, target))
    (folder / "dataset.yaml").write_text("classes: [void, box, ball, a, b, c, d, floor]\nignore_label: 0\n")
    dataset = open_arrays(folder)
    assert dataset.class_counts(np.arange(len(dataset)))[0] == 0
    with pytest.raises(UserError, match="no training sample of class a, b, c, d"):
        split_dataset(dataset, SplitRule())


def test_only_classes_are_stratified(tmp_path):
    maps = open_arrays(write_label_maps(tmp_path / "m", samples=50))
    assert set(maps.strata.tolist()) == {0}
    splits = split_dataset(maps, SplitRule())
    assert [len(ids) for ids in splits.values()] == [30, 10, 10]


def test_batches_hold_class_numbers_and_numbers_and_stay_small_where_maps_are_large(tmp_path, monkeypatch):
    dataset = open_arrays(write_label_maps(tmp_path / "m"))
    fronts = {name: make_frontend(spec, frontend_options(spec.kind)()) for name, spec in dataset.modalities.items()}
    store = FeatureStore(dataset, split_dataset(dataset, SplitRule()), fronts)
    target = store.target("val")
    assert str(target.dtype) == "torch.int64"
    assert np.array_equal(target.numpy(), np.load(tmp_path / "m" / "target.npy")[store.splits["val"]])
    # 4 bytes of each of 3 classes in 20 x 24 pixels
    monkeypatch.setattr("distill.training.features._MOST_LOGIT_BYTES", 5 * 4 * 3 * 20 * 24)
    sizes = [len(batch.ids) for batch in store.in_order("train", 256, ("depth",), target.device)]
    assert sizes == [5] * 7 + [1]


def test_the_task_of_a_dataset_takes_its_statistics_from_train_alone(tmp_path):
    numbers = open_arrays(write_numbers(tmp_path / "n"))
    train = np.arange(50)
    task = task_for(numbers, train)
    assert isinstance(task, Regression)
    values = np.load(tmp_path / "n" / "target.npy")[:50]
    assert task.shift.numpy() == pytest.approx(values.mean(axis=0), rel=1e-5)
    assert task.scale.numpy() == pytest.approx(values.std(axis=0), rel=1e-2)
    maps = task_for(open_arrays(write_label_maps(tmp_path / "m")), train)
    assert isinstance(maps, Segmentation)
    assert (maps.logits_shape, maps.output.ignore_label) == ((3, 20, 24), 255)
    assert isinstance(task_for(open_arrays(write_arrays(tmp_path / "c")), train), Classification)


MAPS = "task: segmentation\nclasses: [floor, box, ball]\n"
NUMBERS = "task: regression\n"


def _save(folder, change):
    np.save(folder / "target.npy", change(np.load(folder / "target.npy")))


def _nan(target):
    target[4, 1] = np.nan
    return target


@pytest.mark.parametrize(
    ("make", "change", "about", "says"),
    [
        (write_label_maps, None, MAPS, r"label 255 of sample 0 is out of range 0\.\.2.*write ignore_label"),
        (write_label_maps, lambda t: t.astype(float), MAPS, "segmentation wants whole class numbers"),
        (write_label_maps, lambda t: t[:, 0], MAPS, "segmentation wants whole class numbers"),
        (write_label_maps, lambda t: t * 0 + 255, MAPS + "ignore_label: 255\n", "no pixel has a label"),
        (write_label_maps, None, "task: regression\n", r"regression wants numbers .*received \(60, 20, 24\)"),
        (write_label_maps, None, "task: classification\n", r"expected shape \(samples,\)"),
        (write_numbers, _nan, NUMBERS, "sample 4 holds NaN"),
        (write_numbers, None, NUMBERS + "target_units: [K]\n", "target_units has 1 entries, target.npy 2"),
        (write_numbers, None, NUMBERS + "target_names: [t, t]\n", "one name twice"),
        (write_numbers, None, NUMBERS + "classes: [a, b]\n", "classes says nothing in a regression task"),
        (write_arrays, None, "ignore_label: 0\n", "ignore_label says nothing in a classification task"),
        (
            write_arrays,
            lambda t: t.astype(float),
            "name: x\n",
            "or, where these are quantities, write task: regression",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, make, change, about, says):
    folder = make(tmp_path / "d")
    (folder / "dataset.yaml").write_text(about)
    if change:
        _save(folder, change)
    with pytest.raises(UserError, match=says) as caught:
        open_arrays(folder)
    assert "\n" not in str(caught.value)


def test_a_number_that_is_always_the_same_is_refused(tmp_path):
    folder = write_numbers(tmp_path / "d")
    target = np.load(folder / "target.npy")
    target[:, 0] = 300.1
    np.save(folder / "target.npy", target)
    with pytest.raises(UserError, match="temperature is 300.1 in every training sample"):
        split_dataset(open_arrays(folder), SplitRule())


def _csv(folder, targets):
    folder.mkdir()
    for row in range(len(targets)):
        np.save(folder / f"{row}.npy", np.full(5, row, np.float32))
    lines = "".join(f"{row}.npy,{target}\n" for row, target in enumerate(targets))
    (folder / "data.csv").write_text(f"facts,target\n{lines}")
    return folder / "data.csv"


def test_a_csv_column_with_fractions_is_regressed_and_whole_numbers_are_classes(tmp_path):
    quantities = open_any(_csv(tmp_path / "a", ["1.5", "2", "-3e-1"]), FilesOptions())
    assert (quantities.task, quantities.target[:, 0].tolist()) == ("regression", pytest.approx([1.5, 2.0, -0.3]))
    path = _csv(tmp_path / "b", ["3", "1", "3"])
    assert open_any(path, FilesOptions()).classes == ("1", "3")
    assert open_any(path, FilesOptions(task="regression")).target[:, 0].tolist() == [3.0, 1.0, 3.0]
    with pytest.raises(UserError, match="target 'cat' of sample 1 is no number"):
        open_any(_csv(tmp_path / "c", ["3", "cat"]), FilesOptions(task="regression"))
