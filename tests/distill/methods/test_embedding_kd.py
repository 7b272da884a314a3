"""Embedding distillation: its losses against numpy, where class vectors come from, and classes added afterwards."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from distill.class_vectors import class_means, with_classes
from distill.datasets.arrays import open_arrays
from distill.datasets.splits import SplitRule, split_dataset
from distill.frontends import NoOptions, make_frontend
from distill.lab import Epochs, Lab, OptimizerChoice
from distill.methods.embedding_kd import EmbeddingKdOptions, alignment
from distill.networks.class_matrix import ClassMatrix, unit
from distill.networks.registry import NetworkChoice
from distill.student import Student, StudentSpec, load_student, save_student
from distill.tasks import Classification
from distill.training.checkpoint import copy_state
from distill.training.features import Batch, FeatureStore
from distill.training.phase import Session
from mst_edge.core.errors import UserError
from mst_edge.core.scoring import OutputSpec
from tests.distill.methods.helpers import cross_entropy, make_method, softmax
from tests.distill.test_training import Kill, KillAt

SEEN, NEW, SPACE = 7, 3, 4


def write_views(folder, seen=SEEN + NEW, samples=700):
    """Two noisy views ``a`` and ``b``, by a random matrix each, of the same hidden point near its class's centre."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (SEEN + NEW, SPACE))
    centres *= 2 / np.linalg.norm(centres, axis=1, keepdims=True)
    views = {name: rng.normal(0, 1, (SPACE, 12)) for name in "ab"}
    target = np.arange(samples) % (SEEN + NEW)
    hidden = centres[target] + rng.normal(0, 0.25, (samples, SPACE))
    folder.mkdir()
    kept = target < seen
    for name, matrix in views.items():
        said = hidden @ matrix + rng.normal(0, 0.1, (samples, 12))
        np.save(folder / f"{name}.npy", said[kept].astype(np.float32))
    np.save(folder / "target.npy", target[kept])
    return folder


def make_store(folder):
    dataset = open_arrays(folder)
    frontends = {name: make_frontend(spec, NoOptions()) for name, spec in dataset.modalities.items()}
    return FeatureStore(dataset, split_dataset(dataset, SplitRule()), frontends)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(write_views(tmp_path_factory.mktemp("d") / "seen", SEEN))


def make_lab(store, folder, *, teacher="fusion", **changes) -> Lab:
    lab = Lab(
        store=store,
        task=Classification(SEEN),
        session=Session(folder, torch.device("cpu"), 0, batch_size=64),
        student_modality="a",
        student=NetworkChoice("mlp", {"width": 0.5}),
        teachers={
            "multimodal": (("a", "b"), NetworkChoice(teacher, {"width": 0.25})),
            "b": (("b",), NetworkChoice("mlp")),
        },
        optimizer=OptimizerChoice(lr=5e-3),
        epochs=Epochs(5, 1, 15),
    )
    return dataclasses.replace(lab, **changes)


class Plain(nn.Linear):
    """A network without embed()."""

    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape[0], num_outputs)


def numpy_unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("top", "only_right"), [(256, False), (3, True)])
def test_the_losses_are_as_written(top, only_right):
    rng = np.random.default_rng(0)
    own, wanted, rows = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), numpy_unit(rng.normal(size=(4, 5)))
    target = np.array([0, 1, 2, 3, 0, 1])
    x, c = numpy_unit(own), numpy_unit(wanted)
    t, s = c @ rows.T / 0.07, x @ rows.T / 0.07
    align = []
    for i in range(6):
        first = np.argsort(-t[i])[:top]
        p, q = softmax(t[i, first], 0), softmax(s[i, first], 0)
        align.append((p * np.log(p / q)).sum() * (not only_right or first[0] == target[i]))
    pairs = x @ c.T / 0.07
    expected = {
        "mse": ((x - c) ** 2).sum(axis=1).mean(),
        "contrast": (cross_entropy(pairs, np.arange(6)) + cross_entropy(pairs.T, np.arange(6))) / 2,
        "align": np.mean(align),
    }
    batch = Batch(torch.arange(6), {}, torch.from_numpy(target))
    options = EmbeddingKdOptions(top=top, only_right=only_right)
    said = alignment(*(torch.from_numpy(a).float() for a in (own, wanted, rows)), batch, options)
    assert {name: float(value) for name, value in said.items()} == pytest.approx(expected, rel=1e-4)


def test_the_student_answers_with_cosines_to_the_teachers_class_means(store, tmp_path):
    lab = make_lab(store, tmp_path)
    method = make_method("embedding_kd", lab, teacher="b")
    method.check()
    student = method.train()
    teacher = lab.trained_teacher("b")
    batch = lab.store.gather(store.splits["train"], ["b"], torch.device("cpu"))
    said = numpy_unit(teacher.module.embed(batch.inputs["b"]).detach().numpy().astype(np.float64))
    classes = store.target("train").numpy()
    means = numpy_unit(np.stack([said[classes == k].mean(axis=0) for k in range(SEEN)]))
    assert np.allclose(student.module.vectors.numpy(), means, atol=1e-4)  # and they did not learn
    x = torch.randn(5, 12)
    embedded = numpy_unit(student.module.embed(x).detach().numpy())
    assert np.allclose(student.module(x).detach().numpy(), embedded @ means.T / 0.07, atol=1e-3)
    assert method.insights["class_vectors"]["teacher_accuracy"] > 0.9
    assert "means of the b teacher's embedding" in method.insights["notes"][0]["text"]
    # Of the same initial encoder as the student of any other method.
    fresh = method._student(torch.eye(SEEN)).module.encoder.state_dict()
    plain = lab.new_student().module.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in fresh.items())
    assert lab.evaluate(student, "test")["accuracy"] > 0.9


def test_classes_are_added_without_training(store, tmp_path):
    """A student of seven classes finds three that it never saw, and is as good as it was at the seven."""
    lab = make_lab(store, tmp_path)
    model = make_method("embedding_kd", lab, teacher="b").train()
    everything = make_store(write_views(tmp_path / "all"))
    for name, frontend in store.frontends.items():
        everything.frontends[name].load_state_dict(frontend.state_dict())

    def view(ids, modality):
        return everything.frontends[modality](torch.from_numpy(everything.dataset.read(modality, ids)))

    target = everything.dataset.target
    shown, asked = (everything.splits[split][target[everything.splits[split]] >= SEEN] for split in ("train", "test"))
    teacher = lab.trained_teacher("b").module
    with torch.no_grad():
        rows = class_means(
            teacher.embed(view(shown, "b")), torch.from_numpy(target[shown] - SEEN), ["h", "i", "j"], where="x"
        )
    student = student_of(model, store)
    extended = with_classes(student, rows, ["h", "i", "j"])
    raw = torch.from_numpy(everything.dataset.read("a", asked))
    answers = extended(raw).argmax(dim=1).numpy()
    assert (answers == target[asked]).mean() > 0.6  # chance is 0.1
    known = torch.from_numpy(store.dataset.read("a", store.splits["test"]))
    right = store.target("test").numpy()
    before, after = ((s(known).argmax(dim=1).numpy() == right).mean() for s in (student, extended))
    assert after > before - 0.1
    assert torch.allclose(extended(known)[:, :SEEN], student(known), atol=1e-5)
    assert extended.spec.output.names == (*map(str, range(SEEN)), "h", "i", "j")


def student_of(model, store) -> Student:
    choice = NetworkChoice(model.network, dict(model.options))
    output = OutputSpec("classification", tuple(map(str, range(SEEN))))
    student = Student(StudentSpec(store.dataset.modalities["a"], NoOptions(), choice, output))
    student.frontend.load_state_dict(store.frontends["a"].state_dict())
    student.network.load_state_dict(model.module.state_dict())
    return student.eval()


def test_a_student_with_further_classes_is_kept_as_any_other(store, tmp_path):
    student = student_of(make_method("embedding_kd", make_lab(store, tmp_path))._student(torch.randn(SEEN, 5)), store)
    extended = with_classes(student, torch.randn(2, 5), ["x", "y"])
    save_student(tmp_path / "kept", extended)
    again, x = load_student(tmp_path / "kept"), torch.randn(3, 12)
    assert torch.equal(again(x), extended(x))
    assert again(x).shape == (3, SEEN + 2)
    for rows, names, said in [
        (torch.randn(2, 4), ["x", "y"], r"2 names take rows of shape \(2, 5\), received \(2, 4\)"),
        (torch.randn(1, 5), ["6"], "class '6' is there already"),
        (torch.randn(2, 5), ["x", "x"], "class 'x' is there already, or twice"),
    ]:
        with pytest.raises(UserError, match=said):
            with_classes(student, rows, names)
    plain = Student(dataclasses.replace(student.spec, network=NetworkChoice("mlp", {})))
    with pytest.raises(UserError, match="mlp has a fixed set of classes; train with method embedding_kd"):
        with_classes(plain, torch.randn(2, 5), ["x", "y"])


def test_class_vectors_come_from_a_file(store, tmp_path):
    rows = np.random.default_rng(0).normal(size=(SEEN, 64)).astype(np.float32)
    np.save(tmp_path / "w.npy", rows)
    save_file({"text": rows}, tmp_path / "w.safetensors")
    for name in ("w.npy", "w.safetensors"):
        lab = make_lab(store, tmp_path / name.partition(".")[2], epochs=Epochs(1, 1, 1))
        method = make_method("embedding_kd", lab, teacher="b", class_matrix=str(tmp_path / name))
        method.check()
        student = method.train()
        assert np.allclose(student.module.vectors.numpy(), numpy_unit(rows), atol=1e-6)
        note = method.insights["notes"][0]
        # These are no vectors of the teacher's space, and the run says so.
        assert method.insights["class_vectors"]["teacher_accuracy"] < 0.5
        assert f"file {tmp_path / name}" in note["text"]


def test_a_teacher_with_class_vectors_of_its_own_lends_them(store, tmp_path):
    lab = make_lab(store, tmp_path, teacher="video_prompts", epochs=Epochs(1, 1, 1))
    method = make_method("embedding_kd", lab)
    student = method.train()
    teacher = lab.trained_teacher("multimodal").module
    assert torch.allclose(student.module.vectors, unit(teacher.prompts.detach()))
    said = method.insights["class_vectors"]
    assert (said["from"], said["layer"]) == ("class vectors of the multimodal teacher", "video")
    # Another layer is another space.
    lab = make_lab(store, tmp_path, teacher="video_prompts", epochs=Epochs(1, 1, 1))
    other = make_method("embedding_kd", lab, teacher_layer="integrate")
    other.train()
    assert "means of the multimodal" in other.insights["class_vectors"]["from"]


def rows_of(shape=(SEEN, 64), dtype="float32", at=None, value=0.0):
    rows = np.ones(shape, dtype)
    if at is not None:
        rows[at] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (rows_of((6, 64)), r"has shape \(6, 64\), expected \(7, 64\)"),
        (rows_of((7, 63)), r"has shape \(7, 63\), expected \(7, 64\)"),
        (rows_of((7, 64, 1)), r"has shape \(7, 64, 1\)"),
        (rows_of(dtype="float64"), "is float64, expected float32; convert it"),
        (rows_of(at=3), "row 3 of .* has no direction"),
        (rows_of(at=(2, 5), value=np.nan), "row 2 of .* has no direction"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_is_trained(store, tmp_path, rows, said):
    np.save(tmp_path / "w.npy", rows)
    method = make_method("embedding_kd", make_lab(store, tmp_path), teacher="b", class_matrix=str(tmp_path / "w.npy"))
    with pytest.raises(UserError, match=rf"distill\.options\.class_matrix: .*{said}"):
        method.check()


def test_what_cannot_be_done_is_said(store, tmp_path):
    for file, said in [
        ("none.npy", "no such file"),
        ("w.txt", "neither .npy nor .safetensors"),
        ("two.safetensors", "2 tensors"),
    ]:
        if file == "w.txt":
            (tmp_path / file).write_text("1 2 3")
        if file == "two.safetensors":
            save_file({"a": rows_of(), "b": rows_of()}, tmp_path / file)
        method = make_method("embedding_kd", make_lab(store, tmp_path), class_matrix=str(tmp_path / file))
        with pytest.raises(UserError, match=said):
            method.check()
    for network in ("class_matrix", f"{__name__}:Plain"):
        lab = make_lab(store, tmp_path, student=NetworkChoice(network))
        with pytest.raises(UserError, match=rf"student\.network: .*{network} cannot be inside it"):
            make_method("embedding_kd", lab).check()
    for options, where in [({"temperature": 0.0}, "temperature"), ({"top": 0}, "top")]:
        with pytest.raises(UserError, match=rf"distill\.options\.{where}: expected more than 0"):
            make_method("embedding_kd", make_lab(store, tmp_path), **options)
    with pytest.raises(UserError, match="class c has no sample"):
        class_means(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), ["a", "b", "c"], where="x")


def test_a_killed_run_ends_with_the_same_weights(store, tmp_path):
    def lab(folder):
        return make_lab(store, tmp_path / folder, epochs=Epochs(1, 1, 1))

    whole = make_method("embedding_kd", lab("whole"), teacher="b").train()
    killed = lab("killed")
    killed = dataclasses.replace(
        killed, session=dataclasses.replace(killed.session, reporter=KillAt("embedding_kd", 0))
    )
    with pytest.raises(Kill):
        make_method("embedding_kd", killed, teacher="b").train()
    resumed = make_method("embedding_kd", lab("killed"), teacher="b").train()
    states = copy_state(whole.module), copy_state(resumed.module)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert isinstance(resumed.module, ClassMatrix)
