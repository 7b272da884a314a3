"""Every student network, once: exported, run by ONNX Runtime and OpenVINO, quantized to int8."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from distill.datasets.spec import Kind, ModalitySpec
from distill.student import Student
from mst_edge.core.errors import UserError
from quantize.export import export_student
from quantize.qat.twin import fake_quantized
from quantize.variant import Variant
from tests.quantize.test_export_and_int8 import AUDIO, FACTS, IMAGE, SIGNAL, answers, make_student, raw_samples
from tests.quantize.trained import require_what_was_trained
from tests.quantizing import quantized

TINY_PHOTO = ModalitySpec("photo", Kind.IMAGE, (32, 64, 3), "uint8")
CLIP = ModalitySpec("clip", Kind.VIDEO, (9, 16, 24, 3), "uint8")
STUDENTS = [
    (AUDIO, "bc_resnet", {}),
    (IMAGE, "mobilenet_v3_small", {"width": 0.5}),
    (IMAGE, "resnet18", {}),
    (TINY_PHOTO, "vit", {"depth": 2}),
    (SIGNAL, "transformer", {}),
    (TINY_PHOTO, "segnet", {"width": 0.05}),
    (TINY_PHOTO, "small_unet", {"width": 0.5}),
    (CLIP, "clip_cnn", {}),
    (CLIP, "stream_cnn", {}),
    (CLIP, "ravdess_visual", {}),
    (IMAGE, "class_matrix", {"encoder": {"network": "small_cnn", "options": {"width": 0.5}}, "dim": 24}),
]


@pytest.fixture(scope="module", params=STUDENTS, ids=lambda p: p[1])
def exported(request, tmp_path_factory) -> tuple[Student, Variant]:
    spec, network, options = request.param
    dense = spec.shape[:2] if network in ("segnet", "small_unet") else None
    student = make_student(spec, network, options, map_size=dense)
    return student, export_student(student, tmp_path_factory.mktemp("v") / "fp32")


def _onnxruntime(variant: Variant, raw: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(variant.model), providers=["CPUExecutionProvider"])
    return session.run(None, {variant.input.name: raw})[0]


def _openvino(variant: Variant, raw: np.ndarray) -> np.ndarray:
    model = openvino.compile_model(str(variant.model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model({variant.input.name: raw})[0]


@pytest.mark.parametrize("run", [_onnxruntime, _openvino])
def test_both_runtimes_agree_with_torch(exported, run):
    student, variant = exported
    for batch in (1, 3):
        raw = raw_samples(student.spec.modality, batch, seed=1)
        expected = answers(student, raw)
        assert np.abs(run(variant, raw) - expected).max() < 1e-3 * expected.std()


def test_the_graph_computes_no_shapes_as_it_runs(exported):
    """Compilers for devices want every size but the batch's to be fixed."""
    graph = onnx.load(exported[1].model).graph
    assert not {node.op_type for node in graph.node} & {"Shape", "Range", "NonZero", "ScatterND", "Loop", "If"}
    constants = {"", *(value.name for value in graph.initializer)}
    resized = [node for node in graph.node if node.op_type == "Resize"]
    assert all(set(node.input[1:]) <= constants for node in resized)  # by constant factors


def test_int8_is_close_on_both_runtimes(exported, tmp_path):
    student, variant = exported
    samples = raw_samples(student.spec.modality, 16)
    int8 = quantized(variant, samples, tmp_path / "int8")
    exact = _onnxruntime(variant, samples)
    for run in (_onnxruntime, _openvino):
        assert np.abs(run(int8, samples) - exact).mean() < 0.15 * exact.std()


def test_both_runtimes_compute_what_was_trained_in_int8(exported, tmp_path):
    student, variant = exported
    raw = raw_samples(student.spec.modality, 16)
    if student.spec.network.network == "segnet":
        with pytest.raises(UserError, match="layer node_max_pool2d_with_indices__0 cannot be trained in int8: MaxPool"):
            require_what_was_trained(student, variant, raw, tmp_path)
    else:
        require_what_was_trained(student, variant, raw, tmp_path)


def test_training_in_int8_leaves_class_vectors_alone(tmp_path):
    student = make_student(FACTS, "class_matrix", {"encoder": {"network": "mlp"}, "dim": 24})
    variant = export_student(student, tmp_path / "fp32")
    int8 = quantized(variant, raw_samples(FACTS, 16), tmp_path / "int8")
    constants = fake_quantized(student, variant, int8.model).network.constants
    learning = {name.removesuffix("_DequantizeLinear_Output"): said.learns for name, said in constants.items()}
    assert learning["network.project.weight"]
    assert not learning["network.vectors"]
