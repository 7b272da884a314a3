"""Networks that answer with a map: any size, exact export, clear refusals, and which methods serve the task."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch

from distill.datasets.arrays import open_arrays
from distill.datasets.spec import Kind, ModalitySpec
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import frontend_options, make_frontend
from distill.lab import Epochs, Lab, OptimizerChoice
from distill.methods.base import METHODS
from distill.networks.registry import NetworkChoice, build_model
from distill.student import InUnits, Student, StudentSpec, load_student, save_student
from distill.suffix import split_at
from distill.tasks import task_for
from distill.training.features import FeatureStore
from distill.training.phase import Session
from mst_edge.core.errors import UserError
from mst_edge.core.scoring import OutputSpec
from quantize.export import export_student
from tests.conftest import write_label_maps, write_numbers
from tests.quantizing import quantized


@pytest.mark.parametrize("size", [(4, 4), (7, 30), (33, 17), (64, 64)])
def test_logits_have_the_size_of_the_input(size):
    for shapes in ({"x": (3, *size)}, {"x": (3, *size), "y": (1, 20, 24)}):
        model = build_model("m", NetworkChoice(options={"width": 0.5}), shapes, 5, where="student", map_size=size)
        assert model.network == ("small_unet" if len(shapes) == 1 else "map_fusion")
        logits = model({name: torch.randn(2, *shape) for name, shape in shapes.items()})
        assert logits.shape == (2, 5, *size)


def test_it_is_small():
    shapes = {"x": (3, 64, 64)}
    model = build_model("m", NetworkChoice("small_unet"), shapes, 5, where="student", map_size=(64, 64))
    assert 200_000 < model.parameters < 400_000


@pytest.mark.parametrize("layer", ["bottom", "decoder.levels.0"])
def test_maskable_layers_are_split_so_that_what_is_below_runs_once(layer):
    model = build_model("m", NetworkChoice(), {"x": (3, 17, 20)}, 5, where="student", map_size=(17, 20))
    model.module.eval()
    split, inputs = split_at(model, layer), {"x": torch.randn(2, 3, 17, 20)}
    _, kept = split.before(inputs)
    assert torch.allclose(split.after(split.part(kept)), model(inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "shapes", "says"),
    [
        (NetworkChoice("small_cnn"), {"x": (3, 8, 8)}, r"its output has shape \(2, 5\), expected \(batch, 5, 8, 8\)"),
        (NetworkChoice("small_unet"), {"x": (3, 9, 8)}, r"\(2, 5, 9, 8\), expected \(batch, 5, 8, 8\)"),
        (NetworkChoice(), {"x": (12,)}, "no network here makes a label map of x, whose features have shape"),
        (NetworkChoice("map_fusion"), {"x": (3, 8, 8), "y": (12,)}, "y is no map"),
    ],
)
def test_what_does_not_fit_is_told(choice, shapes, says):
    with pytest.raises(UserError, match=says):
        build_model("m", choice, shapes, 5, where="student", map_size=(8, 8))


def _student(spec, network, output, map_size=None):
    torch.manual_seed(0)
    return Student(StudentSpec(spec, frontend_options(spec.kind)(), NetworkChoice(network), output, map_size)).eval()


DEPTH = ModalitySpec("depth", Kind.IMAGE, (17, 20, 1), "float32")
FACTS = ModalitySpec("facts", Kind.VECTOR, (12,), "float32")
MAP = OutputSpec("segmentation", ("a", "b", "c"), ignore_label=255)
KELVIN = OutputSpec("regression", ("t", "v"), ("K", "1/min"), scale=(0.1, 5000.0))


def _run(variant, raw):
    session = onnxruntime.InferenceSession(str(variant.model), providers=["CPUExecutionProvider"])
    return session.run([variant.output.graph_output], {variant.input.name: raw})[0]


def test_a_map_is_exported_exactly_and_quantized_closely(tmp_path):
    student = _student(DEPTH, "small_unet", MAP, (17, 20))
    raw = np.random.default_rng(0).normal(size=(9, 17, 20, 1)).astype(np.float32)
    variant = export_student(student, tmp_path / "fp32")
    expected = student(torch.from_numpy(raw)).detach().numpy()
    assert np.abs(_run(variant, raw) - expected).max() < 1e-4
    int8 = quantized(variant, raw, tmp_path / "int8")
    assert int8.output == MAP
    found = _run(int8, raw)
    assert 0 < np.abs(found - expected).max() < expected.std()


def test_numbers_leave_the_exported_graph_in_their_units_and_eight_bits_spare_the_last_step(tmp_path):
    student = _student(FACTS, "mlp", KELVIN)
    assert isinstance(student.answer, InUnits)
    student.answer.load_state_dict({"scale": torch.tensor([0.1, 5000.0]), "shift": torch.tensor([300.0, 0.0])})
    save_student(tmp_path / "s", student)
    student = load_student(tmp_path / "s")
    raw = np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)
    standardised = student.network(student.frontend(torch.from_numpy(raw))).detach().numpy()
    expected = standardised * (0.1, 5000) + (300, 0)
    variant = export_student(student, tmp_path / "fp32")
    assert np.abs((_run(variant, raw) - expected) / (0.1, 5000)).max() < 2e-3  # float32 at 300, in tenths
    int8 = quantized(variant, raw, tmp_path / "int8")
    # In eight bits of 0 .. 300 a step would be more than ten deviations.
    assert np.abs((_run(int8, raw) - expected) / (0.1, 5000)).max() < 0.1


def _lab(folder, write, student, **network):
    dataset = open_arrays(write(folder / "data"))
    splits = split_dataset(dataset, SplitRule())
    fronts = {name: make_frontend(spec, frontend_options(spec.kind)()) for name, spec in dataset.modalities.items()}
    names = tuple(dataset.modalities)
    (other,) = (name for name in names if name != student)
    small = NetworkChoice("auto", {"width": 0.25})
    return Lab(
        store=FeatureStore(dataset, splits, fronts),
        task=task_for(dataset, splits["train"]),
        session=Session(folder, torch.device("cpu"), 0, batch_size=18),
        student_modality=student,
        student=small,
        teachers={"multimodal": (names, small), other: ((other,), small)},
        optimizer=OptimizerChoice(lr=5e-3),
        epochs=Epochs(1, 1, 2),
    )


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    return {
        "segmentation": _lab(tmp_path_factory.mktemp("m"), write_label_maps, "depth"),
        "regression": _lab(tmp_path_factory.mktemp("n"), write_numbers, "signal"),
    }


def _method(name, lab):
    cls = METHODS.get(name)
    return cls(lab, cls.Options())


# vidlankd wants tokens, which neither network here has: tests/distill/methods/test_vidlankd.py.
CASES = [(task, name) for task in ("segmentation", "regression") for name in METHODS.names() if name != "vidlankd"]


@pytest.mark.parametrize(("task", "name"), CASES)
def test_every_method_trains_for_the_tasks_it_names_and_refuses_the_others(labs, task, name):
    method = _method(name, labs[task])
    if task not in method.tasks:
        with pytest.raises(UserError, match=f"{name} cannot do {task}, only "):
            method.check()
        return
    method.check()
    student = method.train()
    metrics = method.lab.evaluate(student, "val")
    assert all(np.isfinite(value) for value in metrics.values())
    assert sum(len(labs[task].histories[w.phase]) for w in method.workload() if "student" in w.trained) == 3


def test_what_each_method_can_do():
    serve = {name: set(METHODS.get(name).tasks) for name in METHODS.names()}
    everything = {"classification", "segmentation", "regression"}
    assert {name for name, tasks in serve.items() if tasks == everything} == {
        "lone", "kd", "taid", "multi_teacher", "fitnets", "rkd", "crd", "mgdfr", "mst",
    }  # fmt: skip
    assert serve["mlld"] == serve["dkd"] == {"classification", "segmentation"}
    assert serve["transkd"] == {"segmentation"}
    assert serve["vidlankd"] == {"classification", "regression"}
    assert serve["ofa"] == serve["c2kd"] == serve["tgeo"] == {"classification"}


def test_logits_that_would_take_too_much_disk_are_computed_again_and_are_the_same(labs):
    lab = labs["segmentation"]
    teacher = lab.trained_teacher("multimodal")
    batch = lab.store.gather(lab.store.splits["train"][:5], teacher.reads, lab.session.device)
    kept = lab.frozen_logits(teacher)
    recomputed = dataclasses.replace(lab, keep_gb=0.0).frozen_logits(teacher)
    assert kept.reads == ()
    assert set(recomputed.reads) == {"colour", "depth"}
    (told,), (said,) = kept(batch), recomputed(batch)
    assert torch.allclose(told.float(), said.float(), atol=0.02)  # kept in float16
    assert not said.requires_grad


@pytest.mark.parametrize("name", ["mst", "kd"])
def test_methods_train_where_logits_are_not_kept(tmp_path, labs, name):
    lab = labs["segmentation"]
    session = dataclasses.replace(lab.session, folder=tmp_path)
    lab = dataclasses.replace(lab, session=session, keep_gb=0.0, histories={})
    method = _method(name, lab)
    forward = [work.forward for work in method.workload() if work.phase == name]
    assert forward != [()]
    method.train()
    assert len(lab.histories[name]) >= 1
