"""A model and a folder of samples: what calibrates, what judges, what is refused; modules from Python; full disks."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from mst_edge.core.errors import UserError
from quantize.api import export_module, make_variants, prepare_model
from quantize.foreign import read_model
from quantize.samples import random_samples, read_samples
from quantize.variant import InputSpec, load_variant
from tests.conftest import ROOT
from tests.quantize.foreign_models import classifier, pictures, save
from tests.quantizing import schemes_from_a_graph

SPEC = InputSpec("x", "tensor", (3, None, 8), "float32")


def folder(place, **arrays: np.ndarray):
    """Arrays as files."""
    place.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(classifier(), tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.mark.parametrize("how", ["inputs", "x", "only", "one file each"])
def test_samples_lie_in_one_array_or_in_a_file_each(tmp_path, how):
    array = pictures(5)
    if how == "one file each":
        place = folder(tmp_path / "s", **{f"{number:02}": row for number, row in enumerate(array)})
    else:
        place = folder(tmp_path / "s", **{how: array})
    if how == "x":  # a folder of arrays with other modalities beside
        np.save(place / "other.npy", np.zeros((5, 2)))
    samples = read_samples(place, SPEC)
    assert samples.count == 5
    assert np.array_equal(samples.read(np.array([3, 0])), array[[3, 0]])
    assert samples.real


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {"inputs": np.zeros((4, 3, 8), np.float32)},
            r"inputs.npy: holds samples of \(3, 8\) float32, expected \(3, \?",
        ),
        (
            {"inputs": np.zeros((4, 3, 9, 7), np.float32)},
            r"holds samples of \(3, 9, 7\) float32, expected \(3, \?, 8\)",
        ),
        ({"inputs": pictures(4).astype(np.float64)}, r"float64, expected .* float32 for input 'x'; convert them"),
        ({"inputs": pictures(0)}, r"holds 0 sample\(s\), expected 2"),
        ({"inputs": pictures(1)}, r"holds 1 sample\(s\), expected 2"),
        ({}, r"s: holds no samples; put inputs.npy"),
        ({"inputs": np.where(np.arange(4)[:, None, None, None] == 2, np.nan, pictures(4))}, "sample 2 holds NaN"),
        ({"a": pictures(1)[0], "b": pictures(1, height=9)[0]}, r"b.npy: is of shape \(3, 9, 8\), a.npy of \(3, 8"),
        ({"a": pictures(1)[0], "b": np.zeros((3, 8), np.float32)}, r"b.npy: holds samples of \(3, 8\)"),
        ({"inputs": pictures(4), "target": np.arange(3)}, r"target.npy: holds targets of shape \(3,\), expected \(4, "),
    ],
)
def test_a_folder_that_does_not_fit_is_told_by_file(tmp_path, arrays, says):
    arrays = {name: a.astype(np.float32) if "NaN" in says else a for name, a in arrays.items()}
    with pytest.raises(UserError, match=says) as caught:
        read_samples(folder(tmp_path / "s", **arrays), SPEC)
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_array_files_are_told(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_samples(tmp_path / "none", SPEC)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "inputs.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"inputs.npy: not a readable .npy array"):
        read_samples(tmp_path / "s", SPEC)


def test_a_damaged_record_of_kept_samples_is_told(tmp_path):
    place = folder(tmp_path / "s", inputs=pictures(4))
    (place / "calibration.json").write_text("{")
    with pytest.raises(UserError, match=r"s: holds no calibration samples"):
        read_samples(place, SPEC)


def test_what_calibrates_never_judges_and_classes_take_turns(model, tmp_path):
    labels = np.repeat([0, 1, 2, 3, 4], [40, 4, 4, 4, 4])
    place = folder(tmp_path / "s", inputs=pictures(56), target=labels)
    made = prepare_model(model, tmp_path / "out", calibration=place)
    judged, calibrated = np.load(made.inputs), made.calibration.inputs
    assert len(judged) == len(calibrated) == 28
    assert not {row.tobytes() for row in judged} & {row.tobytes() for row in calibrated}
    numbers = json.loads((made.calibration.folder / "calibration.json").read_text())["numbers"]
    assert np.bincount(labels[numbers]).tolist() == [12, 4, 4, 4, 4]
    assert np.array_equal(made.truth, np.delete(labels, numbers))
    assert (made.said["calibrating"], made.said["judging"], made.said["real"]) == (28, 28, True)
    again = prepare_model(model, tmp_path / "again", calibration=place)
    assert np.array_equal(again.calibration.inputs, calibrated)
    other = prepare_model(model, tmp_path / "other", calibration=place, seed=1)
    assert not np.array_equal(other.calibration.inputs, calibrated)


def test_the_reference_is_what_the_file_says_as_it_was_given(model, tmp_path):
    made = prepare_model(model, tmp_path / "out", calibration=folder(tmp_path / "s", inputs=pictures(20)))
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": np.load(made.inputs)})[0]
    assert np.allclose(made.reference.outputs, expected, atol=1e-6)
    assert made.truth is None
    assert (made.source.output.task, made.source.output.names) == ("classification", tuple("01234"))


def test_samples_that_were_kept_with_a_variant_can_be_taken_again(model, tmp_path):
    first = prepare_model(model, tmp_path / "out", allow_random=True)
    again = prepare_model(model, tmp_path / "again", calibration=first.calibration.folder)
    assert not first.calibration.real
    assert not again.calibration.real  # what was random stays so


@pytest.mark.parametrize(
    ("target", "about", "says"),
    [
        (np.arange(20) % 7, "", r"target.npy: label 5 of sample 5 is out of range 0..4"),
        (np.arange(20) % 5, "classes: [a, b]\n", r"dataset.yaml: names 2 outputs, the model has 5"),
        (np.arange(20) / 7, "", r"target.npy: holds targets of shape \(1,\), the model's output wants \(5,\)"),
        (np.zeros((20, 8, 8), np.int64), "", r"its output is \(5,\) per sample, segmentation wants \(classes, height"),
    ],
)
def test_targets_that_do_not_fit_the_model_are_refused(model, tmp_path, target, about, says):
    place = folder(tmp_path / "s", inputs=pictures(20), target=target)
    (place / "dataset.yaml").write_text(about)
    with pytest.raises(UserError, match=says):
        prepare_model(model, tmp_path / "out", calibration=place)
    assert not (tmp_path / "out").exists()


def test_a_description_says_what_outputs_mean(model, tmp_path):
    place = folder(tmp_path / "s", inputs=pictures(20))
    (place / "dataset.yaml").write_text("task: regression\ntarget_names: [a, b, c, d, e]\n")
    output = prepare_model(model, tmp_path / "out", calibration=place).source.output
    assert (output.task, output.names, len(output.scale)) == ("regression", tuple("abcde"), 5)
    assert min(output.scale) > 0


def test_random_samples_are_taken_on_request_only_and_marked(model, tmp_path):
    with pytest.raises(UserError, match=r"needs samples .*; give a folder of them as --calibration, or --allow-random"):
        prepare_model(model, tmp_path / "out")
    made = prepare_model(model, tmp_path / "out", allow_random=True)
    assert made.said["real"] is False
    (variant,), _ = make_variants(made.material(), ["int8-static"], tmp_path / "out" / "variants")
    assert variant.facts["real"] is False
    assert np.array_equal(random_samples(made.source.input, 0).first(2), random_samples(made.source.input, 0).first(2))
    free = save(classifier(height="h"), tmp_path / "free.onnx")
    with pytest.raises(UserError, match=r"--shape: input 'x' takes \(3, \?, 8\), and random samples"):
        prepare_model(free, tmp_path / "free", allow_random=True)


def test_random_bytes_and_ids_fit_their_type():
    assert random_samples(InputSpec("x", "tensor", (64,), "uint8"), 0).first(9).max() > 200
    assert set(np.unique(random_samples(InputSpec("x", "tensor", (64,), "int64"), 0).first(9))) == {0, 1}


class Frames(nn.Module):
    """Sequences of any length ``(batch, time, 4)`` to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv1d(4, 16, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.trunk(x.transpose(1, 2)))).mean(2))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("frames")
    module = Frames()
    file = export_module(module, torch.zeros(1, 20, 4), place / "frames.onnx", dynamic_axes={1: "time"})
    assert module.training  # as it was
    samples = np.random.default_rng(0).normal(size=(40, 25, 4)).astype(np.float32)
    made = prepare_model(file, place / "out", calibration=folder(place / "s", inputs=samples))
    return module.eval(), made


def test_a_module_from_python_goes_the_same_way_with_time_free(frames):
    module, made = frames
    assert (made.source.input.shape, made.source.input.sizes) == ((None, 4), (25, 4))
    assert set(made.source.modules.values()) >= {"trunk", "head"}
    session = onnxruntime.InferenceSession(str(made.source.model), providers=["CPUExecutionProvider"])
    for batch, time in ((1, 25), (3, 7), (2, 60)):
        x = np.random.default_rng(1).normal(size=(batch, time, 4)).astype(np.float32)
        expected = module(torch.from_numpy(x)).detach().numpy()
        assert np.allclose(session.run(None, {"input": x})[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", schemes_from_a_graph())
def test_every_scheme_keeps_batch_and_time_free(frames, tmp_path, name):
    _, made = frames
    variants, skipped = make_variants(made.material(), [name], tmp_path)
    if not variants:
        assert "the model has none" in skipped[0]["reason"]
        return
    assert load_variant(variants[0].folder) == variants[0]
    session = onnxruntime.InferenceSession(str(variants[0].model), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(6, 31, 4)).astype(np.float32)
    together = session.run(None, {"input": x})[0]
    one_by_one = np.concatenate([session.run(None, {"input": row[None]})[0] for row in x])
    assert together.shape == (6, 5)
    # A range per batch is a batch's own: dynamic int8 rounds it anew.
    assert np.abs(together - one_by_one).max() < (0.2 if name == "int8-dynamic" else 1e-3) * together.std()


class Attention(nn.Module):
    """Words ``(batch, 6)`` to five classes, each looking at those before it through a mask of -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.queries = nn.Linear(16, 48)
        self.head = nn.Linear(16, 5)
        self.register_buffer("mask", torch.triu(torch.full((6, 6), -torch.inf), 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        q, k, v = self.queries(self.words(ids)).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / 4 + self.mask
        return self.head((scores.softmax(-1) @ v).mean(1))


@pytest.mark.parametrize("name", ["int8-static", "int8-nncf"])
def test_attention_with_a_mask_of_infinity_is_quantized_around_it(tmp_path, name):
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 20, (60, 6))
    file = export_module(Attention(), torch.from_numpy(ids[:2]), tmp_path / "net.onnx", input_name="ids")
    made = prepare_model(file, tmp_path / "out", calibration=folder(tmp_path / "s", inputs=ids))
    assert made.source.float_nodes
    (variant,), _ = make_variants(made.material(), [name], tmp_path / "v")
    session = onnxruntime.InferenceSession(str(variant.model), providers=["CPUExecutionProvider"])
    found = session.run(None, {"ids": np.load(made.inputs)})[0]
    assert np.abs(found - made.reference.outputs).mean() < 0.2 * made.reference.outputs.std()


def test_what_torch_cannot_export_is_told_in_one_line(tmp_path):
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(UserError, match="torch cannot export Odd") as caught:
        export_module(Odd(), torch.zeros(2, 3), tmp_path / "odd.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"dynamic_axes: the example \(2, 3\) has no axis 2"):
        export_module(Odd(), torch.zeros(2, 3), tmp_path / "odd.onnx", dynamic_axes={2: "time"})


def test_a_fixed_batch_goes_all_the_way(tmp_path):
    file = save(classifier(batch=1), tmp_path / "one.onnx")
    made = prepare_model(file, tmp_path / "out", calibration=folder(tmp_path / "s", inputs=pictures(12)))
    variants, _ = make_variants(made.material(), ["int8-static", "int8-nncf", "fp16"], tmp_path / "v")
    for variant in variants:
        session = onnxruntime.InferenceSession(str(variant.model), providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape[0] == 1
        assert session.run(None, {"x": pictures(1)})[0].shape == (1, 5)
    assert read_model(file).batch == 1


_FULL = """
import os, resource, sys
from pathlib import Path
from mst_edge.core.errors import UserError
from quantize.api import make_variants, prepare_model
from quantize.schemes.base import SCHEMES
from quantize.variant import load_variant
from targets.runtimes.onnxruntime import OnnxRuntime
from targets.runtimes.openvino import OpenVino
from mst_edge.core.files import _TEMPORARY

folder, samples = Path(sys.argv[1]), sys.argv[2]
room = resource.getrlimit(resource.RLIMIT_FSIZE)


def limited(name, size, act):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, room[1]))
    try:
        act()
        print(name, size, "made")
    except UserError as error:
        print(name, size, "refused:", error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, room)
    assert not [path for path in folder.rglob("*") if _TEMPORARY.fullmatch(path.name)]
    for model in folder.rglob("model.onnx"):
        if "builds" not in model.parts:
            load_variant(model.parent)  # whole


for size in (500, 1200, 4000):
    limited("prepare", size, lambda: prepare_model(folder / "net.onnx", folder / f"out-{size}", calibration=samples))
made = prepare_model(folder / "net.onnx", folder / "out", calibration=samples)
for name in ("fp16", "int8-static", "int8-nncf"):
    for size in (500, 2500):
        limited(name, size, lambda: make_variants(made.material(), [name], folder / "out" / "variants"))
for runtime in (OnnxRuntime("cpu"), OpenVino("cpu")):
    limited(runtime.name, 1000, lambda: runtime.build(made.source, "fp32", 1, folder / "builds" / runtime.name))
assert not list(folder.glob("builds/*"))
"""


def test_a_full_disk_is_told_and_leaves_nothing_half_written(model, tmp_path):
    """The system itself refuses to write more than so many bytes to a file."""
    samples = folder(tmp_path / "s", inputs=pictures(20))
    save(classifier(), tmp_path / "net.onnx")
    command = [sys.executable, "-c", _FULL, str(tmp_path), str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 11
    refused = [line for line in lines if "refused" in line]
    assert all("the disk is full; free some space" in line for line in refused), refused
    assert {line.split()[0] for line in refused} == {
        "prepare",
        "fp16",
        "int8-static",
        "int8-nncf",
        "onnxruntime",
        "openvino",
    }
