"""Models of Hugging Face that see and hear: from recorded bytes and samples to ONNX, in the processor's numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import frontend_options, make_frontend
from distill.huggingface.processor import own_constants
from distill.huggingface.source import transformers
from distill.networks.registry import NetworkChoice, build_model
from distill.student import Student, StudentSpec
from mst_edge.core.scoring import OutputSpec
from quantize.export import export_student
from tests.huggingface_models import PICTURES, SOUNDS, VIT, WAV2VEC2, write_model
from tests.quantize.test_export_and_int8 import answers
from tests.quantize.test_networks_export import _onnxruntime, _openvino
from tests.quantizing import quantized

pytest.importorskip("transformers")
PHOTO = ModalitySpec("photo", Kind.IMAGE, (32, 32, 3), "uint8")
SOUND = ModalitySpec("sound", Kind.AUDIO, (1600,), "float32", 16000)
MODELS = {"vit": (PHOTO, VIT, PICTURES), "wav2vec2": (SOUND, WAV2VEC2, SOUNDS)}


@pytest.fixture(scope="module", params=MODELS)
def student(request, tmp_path_factory):
    """A student with a model's weights, its folder, and 16 samples as a device records them."""
    spec, config, processor = MODELS[request.param]
    folder = write_model(tmp_path_factory.mktemp("hf") / "m", config, processor=processor)
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (16, *spec.shape)) if spec is PHOTO else 0.05 + 0.1 * rng.normal(size=(16, 1600))
    raw = raw.astype(spec.dtype)
    options = frontend_options(spec.kind, {"features": "raw"} if spec is SOUND else {})()
    front = make_frontend(spec, options)
    front.pin(own_constants(front, f"hf:{folder}", {}, "student"))
    torch.manual_seed(0)
    choice = NetworkChoice(f"hf:{folder}")
    model = build_model("student", choice, {spec.name: front.feature_shape}, 3, where="student")
    output = OutputSpec("classification", ("a", "b", "c"))
    student = Student(StudentSpec(spec, options, NetworkChoice(model.network, model.options), output))
    student.frontend.load_state_dict(front.state_dict())
    student.network.load_state_dict(model.module.state_dict())
    return student.eval(), folder, raw


def test_the_graph_prepares_what_is_recorded_as_the_processor_does(student, tmp_path):
    """Against the library's model on numbers prepared in numpy by the processor's formulas; in int8, close to it."""
    student, folder, raw = student
    body = transformers().AutoModel.from_pretrained(folder).eval()
    if student.spec.modality is SOUND:
        prepared = (raw - raw.mean(1, keepdims=True)) / np.sqrt(raw.var(1, keepdims=True) + 1e-7)
    else:
        mean, std = np.array(PICTURES["image_mean"]), np.array(PICTURES["image_std"])
        prepared = ((raw / 255 - mean) / std).transpose(0, 3, 1, 2)
    with torch.no_grad():
        hidden = body(torch.from_numpy(prepared.astype(np.float32))).last_hidden_state
        pooled = hidden.mean(dim=(2, 3)) if hidden.ndim == 4 else hidden.mean(dim=1)
        wanted = student.network.head(pooled).numpy()
    variant = export_student(student, tmp_path / "fp32")
    for run in (_onnxruntime, _openvino):
        assert np.abs(run(variant, raw) - wanted).max() < 1e-3 * wanted.std()
        assert np.abs(run(variant, raw[:1]) - wanted[:1]).max() < 1e-3 * wanted.std()
    np.testing.assert_allclose(answers(student, raw), wanted, atol=1e-3 * wanted.std())
    assert not {node.op_type for node in onnx.load(variant.model).graph.node} & {"Loop", "If", "NonZero", "ScatterND"}
    int8 = quantized(variant, raw, tmp_path / "int8")
    for run in (_onnxruntime, _openvino):
        assert np.abs(run(int8, raw) - wanted).mean() < 0.2 * wanted.std()
