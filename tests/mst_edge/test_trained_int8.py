"""Schemes that train: a run with int8-qat and int8-qad, and what they refuse before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import onnx

from distill.student import load_student
from tests.conftest import mst_edge, write_arrays, write_small_recipe

QUANTIZE = {"schemes": ["int8-static", "int8-qat", "int8-qad"], "calibration": {"samples": 32}, "qat": {"epochs": 2}}


def test_a_run_trains_its_student_in_int8_and_measures_it(tmp_path):
    recipe = write_small_recipe(
        tmp_path / "r.yaml",
        write_arrays(tmp_path / "data"),
        quantize=QUANTIZE,
        distill={"method": "mst", "compare": [], "epochs": {"collaborate": 1, "masks": 1, "distill": 2}},
    )
    done = mst_edge("run", recipe, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = {row["scheme"]: row["facts"] for row in result["variants"]}
    assert list(rows) == ["fp32", "int8-static", "int8-qat", "int8-qad"]
    assert rows["int8-qat"]["objective"] == "task"
    assert rows["int8-qad"]["objective"] == "mst"
    ids = {row["id"] for row in result["targets"][0]["builds"]}
    assert {"onnxruntime-int8-qat", "openvino-int8-qad"} <= ids
    # Three schemes with weights of their own, from one student.
    models = [(tmp_path / "out" / "variants" / name / "model.onnx").read_bytes() for name in ("int8", *list(rows)[2:])]
    assert len(set(models)) == 3
    assert load_student(tmp_path / "out" / "distill").spec.network.network == "tcn"
    assert np.load(tmp_path / "out" / "variants" / "int8-qad" / "torch_outputs.npy").shape[1] == 3
    # What was trained from one start is not taken for what another start would have become.
    phases = {path.name for path in (tmp_path / "out" / "distill").iterdir() if path.name.startswith("int8_")}
    assert len(phases) == 2
    more = ["--scheme", "int8-qat", "--exclude", "network.stem", "--out", tmp_path / "more"]
    done = mst_edge("quantize", tmp_path / "out", *more)
    assert done.code == 0, done.err
    assert len([path for path in (tmp_path / "out" / "distill").iterdir() if path.name.startswith("int8_")]) == 3
    (weight,) = [
        tensor
        for tensor in onnx.load(tmp_path / "more" / "variants" / "int8-qat" / "model.onnx").graph.initializer
        if tensor.name.startswith("network.stem.weight")
    ]
    assert weight.data_type == onnx.TensorProto.FLOAT


def test_a_method_without_a_teacher_cannot_teach_in_int8(tmp_path):
    recipe = write_small_recipe(
        tmp_path / "r.yaml",
        write_arrays(tmp_path / "data", samples=120),
        quantize=QUANTIZE,
        distill={"method": "lone", "compare": [], "epochs": {"collaborate": 1, "distill": 1}},
    )
    done = mst_edge("run", recipe, "--out", tmp_path / "out")
    assert done.code == 2
    assert "int8-qad" in done.err
    assert not (tmp_path / "out").exists()
