"""From a student to variants: parity on real runtimes, the front end kept in float, calibration."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from distill.datasets.arrays import open_arrays
from distill.datasets.spec import Kind, ModalitySpec
from distill.frontends import frontend_options
from distill.mels import LogMelOptions
from distill.networks.registry import NetworkChoice
from distill.student import Student, StudentSpec, load_student, save_student, student_outputs
from mst_edge.core.errors import UserError
from mst_edge.core.machine import Machine
from mst_edge.core.scoring import OutputSpec
from quantize import calibration, qdq
from quantize.export import export_student
from quantize.variant import load_variant
from tests.conftest import write_arrays
from tests.quantize.trained import require_what_was_trained
from tests.quantizing import quantized

AUDIO = ModalitySpec("audio", Kind.AUDIO, (4000,), "int16", 8000)
IMAGE = ModalitySpec("image", Kind.IMAGE, (28, 28), "uint8")
COLOUR = ModalitySpec("photo", Kind.IMAGE, (20, 16, 3), "uint8")
SIGNAL = ModalitySpec("signal", Kind.SEQUENCE, (40, 3), "float32")
FACTS = ModalitySpec("facts", Kind.VECTOR, (12,), "float32")
STUDENTS = [
    (AUDIO, "small_cnn"),
    (AUDIO, "ds_cnn"),
    (IMAGE, "lenet5"),
    (COLOUR, "small_cnn"),
    (SIGNAL, "tcn"),
    (FACTS, "mlp"),
]


def raw_samples(spec: ModalitySpec, count: int, seed: int = 0) -> np.ndarray:
    """Something like what a device records: quiet and loud, dark and bright."""
    rng = np.random.default_rng(seed)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, (count, *spec.shape)).astype(np.uint8)
    loudness = np.geomspace(1e-4, 0.5, count).reshape(-1, *[1] * len(spec.shape))
    return (rng.normal(size=(count, *spec.shape)) * loudness).astype(np.float32)


def answers(student: Student, raw: np.ndarray) -> np.ndarray:
    """What the torch student says."""
    return np.concatenate(list(student_outputs(student, raw)))


def make_student(
    spec: ModalitySpec,
    network: str,
    network_options: dict[str, object] | None = None,
    map_size: tuple[int, ...] | None = None,
) -> Student:
    """A student with fitted front end and lived-in batch norms."""
    torch.manual_seed(0)
    options = LogMelOptions() if spec.kind is Kind.AUDIO else frontend_options(spec.kind)()
    output = OutputSpec("segmentation" if map_size else "classification", tuple("abcde"))
    choice = NetworkChoice(network, network_options or {})
    student = Student(StudentSpec(spec, options, choice, output, map_size))
    raw = torch.from_numpy(raw_samples(spec, 64))
    student.frontend.fit([raw])
    student.train()
    with torch.no_grad():
        for _ in range(5):
            student(raw)
    return student.eval()


@pytest.fixture(scope="module", params=STUDENTS, ids=lambda p: f"{p[0].name}-{p[1]}")
def exported(request, tmp_path_factory):
    spec, network = request.param
    student = make_student(spec, network)
    return student, export_student(student, tmp_path_factory.mktemp("v") / "fp32")


def _run(variant, raw):
    session = onnxruntime.InferenceSession(str(variant.model), providers=["CPUExecutionProvider"])
    return session.run(None, {variant.input.name: raw})[0]


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_the_exported_graph_agrees_with_torch_at_any_batch_size(exported, batch):
    student, variant = exported
    raw = raw_samples(student.spec.modality, batch, seed=1)
    expected = answers(student, raw)
    assert np.abs(_run(variant, raw) - expected).max() < 1e-3 * max(1.0, expected.std())


def test_silence_and_darkness_agree_too(exported):
    student, variant = exported
    raw = np.zeros_like(raw_samples(student.spec.modality, 2))
    expected = answers(student, raw)
    assert np.abs(_run(variant, raw) - expected).max() < 1e-3 * max(1.0, expected.std())


def test_the_graph_takes_what_a_device_records(exported):
    student, variant = exported
    (value,) = onnx.load(variant.model).graph.input
    kind = value.type.tensor_type
    spec = student.spec.modality
    assert value.name == spec.name
    assert [d.dim_value for d in kind.shape.dim][1:] == list(spec.shape)
    assert kind.shape.dim[0].dim_param
    wanted = onnx.TensorProto.UINT8 if spec.dtype == "uint8" else onnx.TensorProto.FLOAT
    assert kind.elem_type == wanted


def test_the_file_says_nothing_of_the_machine_that_made_it(exported):
    _, variant = exported
    content = variant.model.read_bytes()
    for word in (b".py", b"site-packages", b"/home", b"/usr"):
        assert word not in content


def test_the_sidecar_brings_the_variant_back(exported):
    _, variant = exported
    assert load_variant(variant.folder) == variant


def test_a_model_that_was_changed_is_refused(tmp_path):
    variant = export_student(make_student(FACTS, "mlp"), tmp_path / "fp32")
    content = bytearray(variant.model.read_bytes())
    content[-1] ^= 1
    variant.model.write_bytes(content)
    with pytest.raises(UserError, match="differs from the one"):
        load_variant(variant.folder)
    variant.model.unlink()
    with pytest.raises(UserError, match="needs model.onnx"):
        load_variant(variant.folder)


def test_int8_is_close_and_smaller_and_keeps_the_front_end_in_float(exported, tmp_path):
    student, variant = exported
    samples = raw_samples(student.spec.modality, 64)
    int8 = quantized(variant, samples, tmp_path / "int8")
    raw = raw_samples(student.spec.modality, 50, seed=2)
    exact, coarse = _run(variant, raw), _run(int8, raw)
    # The loudest sample may lie beyond what calibration saw: the mean tells, not the largest.
    assert np.abs(coarse - exact).mean() < 0.1 * exact.std()
    model = onnx.load(int8.model)
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    dequantized = {o for n in model.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    for node in model.graph.node:
        if node.name in variant.float_nodes:
            assert not dequantized & set(node.input)
    weights = sum(i.ByteSize() for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT8)
    assert weights > 0
    assert load_variant(int8.folder).scheme == "int8-static"


def test_both_runtimes_compute_what_was_trained_in_int8(exported, tmp_path):
    student, variant = exported
    require_what_was_trained(student, variant, raw_samples(student.spec.modality, 16), tmp_path)


def test_int8_refuses_a_quantized_front_end(exported):
    _, variant = exported
    model = onnx.load(variant.model)
    name = model.graph.node[1].input[0]
    model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", ["q", "s"], [name]))
    reading = next(node for node in model.graph.node if name in node.input)
    with pytest.raises(RuntimeError, match="was quantized"):
        qdq.require_float(model, (reading.name,))


@pytest.mark.parametrize(
    ("arch", "isa", "reduced"),
    [
        ("x86_64", ("avx2",), True),
        ("x86_64", ("avx2", "avx512"), True),
        ("x86_64", ("avx512", "vnni"), False),
        ("x86_64", ("amx_int8",), False),
        ("aarch64", (), False),
    ],
)
def test_seven_bit_weights_are_used_where_sums_could_saturate(monkeypatch, arch, isa, reduced):
    monkeypatch.setattr(qdq, "this_machine", lambda: Machine("Linux", arch, "x", isa, 2, 1, ""))
    assert qdq.needs_reduced_range() is reduced


def test_calibration_takes_every_class_from_training_samples_alone(tmp_path):
    dataset = open_arrays(write_arrays(tmp_path / "d", samples=300, classes=5))
    train = np.arange(150)
    ids = calibration.choose(dataset, train, 50, seed=1)
    assert set(ids) <= set(train)
    assert len(set(ids)) == 50
    assert np.bincount(dataset.target[ids]).tolist() == [10] * 5
    assert np.array_equal(ids, calibration.choose(dataset, train, 50, seed=1))
    assert not np.array_equal(ids, calibration.choose(dataset, train, 50, seed=2))
    assert len(calibration.choose(dataset, train, 1000, seed=1)) == 150


def test_calibration_takes_all_of_a_rare_class(tmp_path):
    dataset = open_arrays(write_arrays(tmp_path / "d", samples=300, classes=3))
    train = np.concatenate([np.flatnonzero(dataset.target == 0)[:3], np.flatnonzero(dataset.target != 0)])
    ids = calibration.choose(dataset, train, 60, seed=0)
    assert np.sum(dataset.target[ids] == 0) == 3
    assert len(ids) == 60


def test_calibration_samples_are_kept_as_the_graph_takes_them(tmp_path):
    dataset = open_arrays(write_arrays(tmp_path / "d"))
    ids = np.array([3, 5])
    calibration.save_calibration(tmp_path / "c", 2, lambda portion: dataset.read("signal", ids[portion]))
    kept = calibration.load_calibration(tmp_path / "c")
    assert kept.real
    assert np.array_equal(kept.inputs, dataset.read("signal", ids))
    assert [len(batch) for batch in kept.batches(1)] == [1, 1]
    (tmp_path / "c" / "inputs.npy").write_bytes(b"no")
    with pytest.raises(UserError, match="holds no calibration samples"):
        calibration.load_calibration(tmp_path / "c")


def test_a_student_survives_the_disk(tmp_path):
    student = make_student(AUDIO, "ds_cnn")
    save_student(tmp_path, student)
    raw = raw_samples(AUDIO, 3)
    again = load_student(tmp_path)
    assert np.array_equal(answers(again, raw), answers(student, raw))
    assert again.spec.modality == AUDIO


def test_a_students_weights_are_checked(tmp_path):
    save_student(tmp_path, make_student(FACTS, "mlp"))
    weights = tmp_path / "student.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"student\.safetensors: differs from the file that student\.yaml describes"):
        load_student(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="no such file"):
        load_student(tmp_path)
