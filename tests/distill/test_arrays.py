"""A folder of arrays as a dataset: what opens, and the one line for everything that does not."""

from __future__ import annotations

import numpy as np
import pytest

from distill.datasets.arrays import infer_kind, open_arrays
from distill.datasets.spec import Kind
from mst_edge.core.errors import UserError
from tests.conftest import write_arrays


def test_opens_a_bare_folder_and_infers_what_is_not_said(tmp_path):
    dataset = open_arrays(write_arrays(tmp_path / "d"))
    assert dataset.modalities["signal"].kind is Kind.SEQUENCE
    assert dataset.modalities["facts"].kind is Kind.VECTOR
    assert dataset.classes == ("0", "1", "2")
    assert len(dataset) == 240
    assert isinstance(dataset.arrays["signal"], np.memmap)


def test_description_names_classes_kinds_and_groups(tmp_path):
    folder = write_arrays(tmp_path / "d", samples=90, subject=np.repeat(np.arange(9), 10))
    (folder / "dataset.yaml").write_text(
        "name: gait\nclasses: [walk, run, rest]\ngroups: {subject: subject.npy}\n"
        "modalities: {signal: {kind: sequence}, facts: {kind: vector}}\nlicence: CC0\n"
    )
    dataset = open_arrays(folder)
    assert (dataset.name, dataset.classes, dataset.licence) == ("gait", ("walk", "run", "rest"), "CC0")
    assert list(dataset.modalities) == ["signal", "facts"]
    assert list(dataset.groups) == ["subject"]


def test_class_names_may_be_the_target(tmp_path):
    folder = write_arrays(tmp_path / "d", samples=6)
    np.save(folder / "target.npy", np.array(["cat", "dog", "cat", "dog", "cat", "ant"]))
    dataset = open_arrays(folder)
    assert dataset.classes == ("ant", "cat", "dog")
    assert dataset.target.tolist() == [1, 2, 1, 2, 1, 0]


def test_integer_audio_is_read_as_a_device_delivers_it(tmp_path):
    folder = write_arrays(tmp_path / "d", samples=4)
    np.save(folder / "audio.npy", np.full((4, 1000), -16384, dtype=np.int16))
    (folder / "dataset.yaml").write_text("modalities: {audio: {kind: audio, sample_rate_hz: 8000}}\n")
    wave = open_arrays(folder).read("audio", np.array([0]))
    assert wave.dtype == np.float32
    assert wave[0, 0] == -0.5


def test_the_fingerprint_sees_every_value(tmp_path):
    one = open_arrays(write_arrays(tmp_path / "a")).fingerprint
    assert open_arrays(write_arrays(tmp_path / "b")).fingerprint == one
    folder = write_arrays(tmp_path / "c")
    facts = np.load(folder / "facts.npy")
    facts[-1, -1] += 1e-3
    np.save(folder / "facts.npy", facts)
    assert open_arrays(folder).fingerprint != one


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "kind"),
    [
        ("mic", (8000,), "float32", Kind.AUDIO),
        ("x", (16000,), "int16", Kind.AUDIO),
        ("x", (16000,), "float32", Kind.VECTOR),
        ("x", (35,), "float32", Kind.VECTOR),
        ("x", (28, 28), "uint8", Kind.IMAGE),
        ("x", (128, 6), "float32", Kind.SEQUENCE),
        ("x", (32, 32, 3), "float32", Kind.IMAGE),
        ("x", (15, 24, 24, 3), "uint8", Kind.VIDEO),
        ("x", (2, 3, 4, 5, 6), "float32", None),
    ],
)
def test_infer_kind(name, shape, dtype, kind):
    assert infer_kind(name, shape, np.dtype(dtype)) is kind


def _break(folder, what):  # noqa: PLR0912
    facts, target = np.load(folder / "facts.npy"), np.load(folder / "target.npy")
    if what == "nan":
        facts[7, 3] = np.nan
        np.save(folder / "facts.npy", facts)
    elif what == "infinity":
        facts[9, 0] = np.inf
        np.save(folder / "facts.npy", facts)
    elif what == "length":
        np.save(folder / "facts.npy", facts[:-1])
    elif what == "negative label":
        target[5] = -1
        np.save(folder / "target.npy", target)
    elif what == "label beyond classes":
        (folder / "dataset.yaml").write_text("classes: [a, b]\n")
    elif what == "float target":
        np.save(folder / "target.npy", target.astype(float))
    elif what == "target shape":
        np.save(folder / "target.npy", target[:, None])
    elif what == "no target":
        (folder / "target.npy").unlink()
    elif what == "objects":
        np.save(folder / "facts.npy", np.array([{}] * 240, dtype=object), allow_pickle=True)
    elif what == "strings":
        np.save(folder / "facts.npy", np.array([["a"]] * 240))
    elif what == "truncated":
        content = (folder / "facts.npy").read_bytes()
        (folder / "facts.npy").write_bytes(content[: len(content) // 2])
    elif what == "not npy":
        (folder / "facts.npy").write_bytes(b"hello")
    elif what == "flat":
        np.save(folder / "facts.npy", facts[:, 0])
    elif what == "no modality":
        (folder / "facts.npy").unlink()
        (folder / "signal.npy").unlink()
    elif what == "missing modality":
        (folder / "dataset.yaml").write_text("modalities: {facts: {}, depth: {}}\n")
    elif what == "unknown key":
        (folder / "dataset.yaml").write_text("clases: [a]\n")
    elif what == "kind and shape":
        (folder / "dataset.yaml").write_text("modalities: {facts: {kind: image}}\n")
    elif what == "channels first":
        np.save(folder / "facts.npy", np.zeros((240, 3, 16, 16), np.float32))
    elif what == "groups length":
        np.save(folder / "groups.npy", np.arange(5))
    elif what == "groups outside":
        (folder / "dataset.yaml").write_text("groups: {who: ../who.npy}\n")
    elif what == "split codes":
        np.save(folder / "split.npy", np.full(240, 7))
    elif what == "modality name":
        (folder / "dataset.yaml").write_text("modalities: {../facts: {}}\n")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("nan", r"facts\.npy: sample 7 holds NaN"),
        ("infinity", r"facts\.npy: sample 9 holds NaN or infinity"),
        ("length", r"facts\.npy: holds 239 samples, but target\.npy holds 240"),
        ("negative label", r"target\.npy: label -1 of sample 5 is out of range 0\.\.2"),
        ("label beyond classes", r"target\.npy: label 2 of sample 2 is out of range 0\.\.1"),
        ("float target", r"target\.npy: expected whole class numbers.*float64"),
        ("target shape", r"target\.npy: expected shape \(samples,\), received \(240, 1\)"),
        ("no target", r"target\.npy: no such file"),
        ("objects", r"facts\.npy: not a readable \.npy"),
        ("strings", r"facts\.npy: expected numbers or texts \(samples,\), received \(240, 1\) <U1"),
        ("truncated", r"facts\.npy: not a readable \.npy"),
        ("not npy", r"facts\.npy: not a readable \.npy"),
        ("flat", r"facts\.npy: expected shape \(samples, \.\.\.\)"),
        ("no modality", "holds no modality"),
        ("missing modality", r"depth\.npy: no such file"),
        ("unknown key", "did you mean 'classes'"),
        ("kind and shape", r"facts\.npy: a sample of shape \(12,\) cannot be image"),
        ("channels first", "move the channels last"),
        ("groups length", r"groups\.npy: expected \(240,\)"),
        ("groups outside", "must be a plain file name"),
        ("split codes", "expected 0 .train., 1 .val. or 2 .test."),
        ("modality name", "modalities"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, what, says):
    folder = write_arrays(tmp_path / "d")
    _break(folder, what)
    with pytest.raises(UserError, match=says) as caught:
        open_arrays(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_arrays(tmp_path / "none")
