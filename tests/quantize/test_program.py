"""A student as a torch program: the same answers for any batch, and nothing is unpickled or evaluated to read it."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch

from mst_edge.core.errors import UserError
from quantize.export import export_student, with_program
from quantize.program import read_program
from quantize.variant import FLOAT, load_variant
from tests.quantize.test_export_and_int8 import FACTS, answers, make_student, raw_samples


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    student = make_student(FACTS, "mlp")
    return student, with_program(student, export_student(student, tmp_path_factory.mktemp("v") / "fp32"))


def _changed(source, target, changes):
    """A copy of an archive with members replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            if name.partition("/")[2] not in changes:
                new.writestr(name, old.read(name))
        for name, content in changes.items():
            new.writestr(f"{root}/{name}", content)
    return target


def _member(path, name):
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        return json.loads(archive.read(f"{root}/{name}"))


def test_it_answers_as_the_student_for_any_batch(made):
    student, variant = made
    assert variant == load_variant(variant.folder)
    assert variant.program == FLOAT
    module = read_program(variant.program_file).module()
    for count in (1, 2, 7):
        raw = raw_samples(FACTS, count)
        said = module(torch.from_numpy(raw)).detach().numpy()
        assert np.allclose(said, answers(student, raw), atol=1e-5)


def test_a_file_that_would_be_unpickled_is_refused_unread(made, tmp_path, monkeypatch):
    """Each is a place from which torch.export.load unpickles."""
    _, variant = made
    weights = "data/weights/model_weights_config.json"
    said = _member(variant.program_file, weights)
    next(iter(said["config"].values()))["use_pickle"] = True
    cases = {
        "it holds pickled inputs": {"data/sample_inputs/model.pt": b"pickle"},
        "it holds data/weights/model.pt": {"data/weights/model.pt": b"pickle"},
        "it holds data/constants/opaque_obj_0": {"data/constants/opaque_obj_0": b"pickle"},
        "is pickled": {weights: json.dumps(said)},
    }
    monkeypatch.setattr(torch.export, "load", lambda path: pytest.fail("was loaded"))
    for number, (reason, changes) in enumerate(cases.items()):
        path = _changed(variant.program_file, tmp_path / f"{number}.pt2", changes)
        with pytest.raises(UserError, match=f"is no torch program of ours: .*{reason}"):
            read_program(path)
    (tmp_path / "torn.pt2").write_bytes(variant.program_file.read_bytes()[:500])
    with pytest.raises(UserError, match="is no torch program of ours: BadZipFile"):
        read_program(tmp_path / "torn.pt2")


@pytest.mark.parametrize("code", ["__import__('os').system('true')", "Symbol('s1').func", "open('x')", "x"])
def test_an_expression_that_is_more_than_arithmetic_is_refused_unread(made, tmp_path, monkeypatch, code):
    """torch hands expressions to sympy, which evaluates them as Python."""
    _, variant = made
    graph = _member(variant.program_file, "models/model.json")
    graph["graph_module"]["graph"]["sym_int_values"]["evil"] = {"as_expr": {"expr_str": code, "hint": None}}
    path = _changed(variant.program_file, tmp_path / "evil.pt2", {"models/model.json": json.dumps(graph)})
    monkeypatch.setattr(torch.export, "load", lambda path: pytest.fail("was loaded"))
    with pytest.raises(UserError, match="it holds the expression"):
        read_program(path)


def test_a_variant_whose_program_was_changed_or_lost_is_refused(made, tmp_path):
    import shutil

    _, variant = made
    copy = shutil.copytree(variant.folder, tmp_path / "v")
    (copy / "model.pt2").write_bytes(b"other")
    with pytest.raises(UserError, match=r"differs from the one that variant.json describes"):
        load_variant(copy)
    (copy / "model.pt2").unlink()
    with pytest.raises(UserError, match=r"needs model.pt2 and variant.json"):
        load_variant(copy)
