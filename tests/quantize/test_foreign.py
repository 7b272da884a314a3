"""Any ONNX file: what becomes of it, what is refused with one line, and that it reads nothing outside its folder."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from mst_edge.core.errors import UserError
from mst_edge.core.scoring import OutputSpec
from quantize import onnx_file
from quantize.foreign import LOWEST_OPSET, read_model
from quantize.layers import layers_of, require_named_nodes
from quantize.variant import load_variant
from tests.quantize.foreign_models import (
    classifier,
    one_node,
    pictures,
    save,
    tensor,
    weights,
    with_external_weight,
)

CLASSES = OutputSpec("classification", tuple("abcde"))


def answers(model: onnx.ModelProto | str, samples: np.ndarray) -> np.ndarray:
    """What ONNX Runtime makes of it, unprepared."""
    source = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: samples})[0]


def refused(path, says: str, **shapes):
    """One line, with place and fix."""
    with pytest.raises(UserError, match=says) as caught:
        read_model(path, shapes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_strangers_file_becomes_our_fp32_variant(tmp_path):
    file, samples = save(classifier(), tmp_path / "net.onnx"), pictures(6)
    model = read_model(file).settled(samples)
    assert (model.input.name, model.input.shape, model.input.dtype) == ("x", (3, 8, 8), "float32")
    assert (model.output_shape, model.batch, model.precision) == ((5,), None, "fp32")
    variant = model.save(tmp_path / "fp32", CLASSES, samples)
    assert load_variant(tmp_path / "fp32") == variant
    graph = onnx.load(variant.model)
    require_named_nodes(graph, "test")
    assert [layer.op for layer in layers_of(graph, variant.modules)] == ["Conv", "Gemm"]
    for batch in (1, 2, 6):
        assert np.allclose(
            answers(str(variant.model), samples[:batch]), answers(classifier(), samples[:batch]), atol=1e-6
        )


def test_batch_norm_is_fused_and_constants_become_weights(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weights(4, 3, 1, 1))),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node("GlobalAveragePool", ["n"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    norm = [numpy_helper.from_array(rng.uniform(0.5, 2, 4).astype(np.float32), name) for name in "sbmv"]
    graph = helper.make_graph(nodes, "g", [tensor("x", ["n", 3, 8, 8])], [tensor("y", ["n", 4])], norm)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    samples = pictures(3)
    settled = read_model(save(model, tmp_path / "m.onnx")).settled(samples)
    variant = settled.save(tmp_path / "fp32", OutputSpec("classification", tuple("abcd")), samples)
    prepared = onnx.load(variant.model)
    assert "BatchNormalization" not in {node.op_type for node in prepared.graph.node}
    assert "Constant" not in {node.op_type for node in prepared.graph.node}
    assert np.allclose(answers(str(variant.model), samples), answers(model, samples), atol=1e-5)


def test_a_last_softmax_is_left_out_and_said(tmp_path):
    samples = pictures(4)
    model = read_model(save(classifier(softmax=True), tmp_path / "m.onnx")).settled(samples)
    assert model.notes == ("its last softmax is left out: it answers with logits",)
    assert np.allclose(model.outputs(samples), answers(classifier(), samples), atol=1e-6)


def test_external_data_is_packed_into_our_file(tmp_path):
    file = with_external_weight(tmp_path / "in", "weights.bin", weights(5, 6, seed=1).tobytes())
    samples = pictures(2)
    variant = read_model(file).settled(samples).save(tmp_path / "out", CLASSES, samples)
    assert sorted(path.name for path in variant.folder.iterdir()) == ["model.onnx", "variant.json"]
    assert np.allclose(answers(str(variant.model), samples), answers(classifier(), samples), atol=1e-6)


@pytest.mark.parametrize("how", ["parent", "absolute", "link", "linked folder", "inner tensor"])
def test_a_file_outside_the_models_folder_is_never_read(tmp_path, how):
    """The secret has the very size that the model asks for: read, it would become a weight."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(weights(5, 6, seed=9).tobytes())
    folder = tmp_path / "in"
    folder.mkdir()
    location = {"parent": "../secret.bin", "absolute": str(secret), "linked folder": "up/secret.bin"}.get(how, "a.bin")
    if how == "link":
        (folder / "a.bin").symlink_to(secret)
    if how == "linked folder":
        (folder / "up").symlink_to(tmp_path)
    file = with_external_weight(folder, "../secret.bin" if how == "inner tensor" else location, None)
    if how == "inner tensor":  # not an initializer: the value of a constant inside a branch
        model = onnx.load(file, load_external_data=False)
        weight = next(entry for entry in model.graph.initializer if entry.name == "w2")
        inner = helper.make_node("Constant", [], ["w"], value=weight)
        branch = helper.make_graph([inner], "b", [], [tensor("w", [5, 6])])
        model.graph.initializer.remove(weight)
        model.graph.node.insert(0, helper.make_node("If", ["yes"], ["w2"], then_branch=branch, else_branch=branch))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        save(model, file)
    before = secret.stat().st_atime_ns
    said = refused(file, "is outside the model's folder")
    assert "w2" in said
    assert secret.stat().st_atime_ns == before


def test_a_node_that_would_open_a_file_for_an_engine_is_refused(tmp_path):
    """Compiled graphs of other providers name files; none of them is on the CPU."""
    (tmp_path / "secret").write_bytes(b"secret")
    names = {"embed_mode": 0, "ep_cache_context": "../secret", "source": "CPUExecutionProvider"}
    node = helper.make_node("EPContext", ["x"], ["y"], name="e", domain="com.microsoft", **names)
    model = one_node(node, [tensor("x", ["n", 3])], [tensor("y", ["n", 3])], domains=["com.microsoft"])
    refused(save(model, tmp_path / "in" / "m.onnx"), "ONNX Runtime does not run it")


def test_missing_and_short_external_data_is_named(tmp_path):
    file = with_external_weight(tmp_path, "weights.bin", None)
    refused(file, r"external data file 'weights.bin' is missing \(tensor 'w2'\); copy it into")
    file = with_external_weight(tmp_path, "weights.bin", b"too short")
    refused(file, r"'weights.bin' has 9 bytes, tensor 'w2' is said to end at 120")


def test_more_than_one_file_can_hold_is_refused_before_it_is_read(tmp_path):
    file = with_external_weight(tmp_path, "weights.bin", None)
    with (tmp_path / "weights.bin").open("wb") as sparse:
        sparse.truncate(3 << 30)
    model = onnx.load(file, load_external_data=False)
    weight = next(entry for entry in model.graph.initializer if entry.name == "w2")
    weight.external_data[2].value = str(3 << 30)
    refused(save(model, file), r"holds 3\.2 GB; .* at most 2 GB")
    assert onnx_file.MOST_BYTES < 1 << 31


@pytest.mark.parametrize("content", [b"", b"\x08\x07hello", b"PK\x03\x04 a zip", os.urandom(500)])
def test_what_is_no_onnx_file_is_said(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx", "not an ONNX file, or a truncated one")


def test_a_missing_or_truncated_file_is_said(tmp_path):
    refused(tmp_path / "none.onnx", "no such file")
    whole = classifier().SerializeToString()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "m.onnx").write_bytes(whole[: int(share * len(whole))])
        refused(tmp_path / "m.onnx", "m.onnx: ")


@pytest.mark.parametrize(
    ("operator", "domain", "says"),
    [
        ("Frobnicate", "", "node 'f' is of the operator Frobnicate, which ONNX Runtime does not run"),
        ("Relu", "my.domain", "node 'f' is of the operator Relu of the domain 'my.domain', which"),
        ("Frobnicate", "com.microsoft", "ONNX Runtime does not run it .*Frobnicate"),
        ("Swish", "", "node 'f' is of the operator Swish, which opset 18 does not have"),
    ],
)
def test_an_operator_that_nobody_runs_is_named_with_its_node(tmp_path, operator, domain, says):
    node = helper.make_node(operator, ["x"], ["y"], name="f", domain=domain)
    model = one_node(node, [tensor("x", ["n", 3])], [tensor("y", ["n", 3])], domains=[domain] if domain else [])
    refused(save(model, tmp_path / "m.onnx"), says)


@pytest.mark.parametrize(("value", "says"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_weights_that_are_no_numbers_are_named(tmp_path, value, says):
    bad = weights(5, 6)
    bad[2, 3] = value
    refused(save(classifier(w2=bad), tmp_path / "m.onnx"), rf"initializer 'w2' holds {says} values \(1 of 30\)")


def test_infinity_in_a_mask_is_no_error(tmp_path):
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["m"]),
        helper.make_node("Softmax", ["m"], ["p"], axis=-1),
        helper.make_node("ReduceMean", ["p", "last"], ["y"], keepdims=0),
    ]
    constants = {"w": weights(4, 4), "mask": mask, "last": np.array([2])}
    graph = helper.make_graph(
        nodes,
        "g",
        [tensor("x", ["n", 4, 4])],
        [tensor("y", ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    words = np.ones((2, 4, 4), np.float32)
    assert read_model(save(model, tmp_path / "m.onnx")).settled(words).output_shape == (4,)


def test_an_old_opset_is_raised_where_that_changes_nothing(tmp_path):
    samples = pictures(4)
    for opset in (9, 11):
        file = save(classifier(opset=opset), tmp_path / f"{opset}.onnx")
        variant = read_model(file).settled(samples).save(tmp_path / f"fp32-{opset}", CLASSES, samples)
        assert variant.opset == LOWEST_OPSET
        assert np.allclose(answers(str(variant.model), samples), answers(classifier(), samples), atol=1e-5)


def test_an_opset_that_cannot_be_raised_is_said(tmp_path):
    """Normalization per activation, which later opsets do not have."""
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y"], name="n", spatial=0)
    ones = [numpy_helper.from_array(np.ones(3, np.float32), name) for name in "sbmv"]
    model = one_node(node, [tensor("x", ["n", 3])], [tensor("y", ["n", 3])], ones, opset=8)
    samples = np.ones((2, 3), np.float32)
    settled = read_model(save(model, tmp_path / "m.onnx")).settled(samples)
    with pytest.raises(UserError, match=r"is of opset 8, and cannot be raised to 13.*; export it again with opset 13"):
        settled.save(tmp_path / "fp32", OutputSpec("classification", tuple("abc")), samples)
    assert not (tmp_path / "fp32").exists()


def test_two_inputs_or_outputs_are_named(tmp_path):
    node = helper.make_node("Add", ["x", "z"], ["y"], name="a")
    model = one_node(node, [tensor("x", ["n", 3]), tensor("z", ["n", 3])], [tensor("y", ["n", 3])])
    refused(save(model, tmp_path / "m.onnx"), r"has 2 inputs \(x, z\), expected one; export it with one input")
    node = helper.make_node("Split", ["x"], ["y", "z"], name="s", axis=1, num_outputs=2)
    model = one_node(node, [tensor("x", ["n", 4])], [tensor("y", ["n", 2]), tensor("z", ["n", 2])])
    refused(save(model, tmp_path / "m.onnx"), r"has 2 outputs \(y, z\), expected one")


def test_weights_that_older_files_list_as_inputs_are_none(tmp_path):
    model = classifier()
    model.graph.input.append(tensor("w1", [6, 3, 3, 3]))
    assert read_model(save(model, tmp_path / "m.onnx")).input.name == "x"


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.STRING, TensorProto.BOOL])
def test_an_input_of_another_type_is_refused(tmp_path, kind):
    node = helper.make_node("Cast", ["x"], ["y"], name="c", to=TensorProto.FLOAT)
    model = one_node(node, [tensor("x", ["n", 3], kind)], [tensor("y", ["n", 3])])
    refused(save(model, tmp_path / "m.onnx"), r"input 'x' takes .*, expected one of float32")


def test_an_answer_that_is_no_number_is_refused(tmp_path):
    node = helper.make_node("ArgMax", ["x"], ["y"], name="c", axis=1)
    model = one_node(node, [tensor("x", ["n", 3])], [tensor("y", ["n", 1], TensorProto.INT64)])
    refused(save(model, tmp_path / "m.onnx"), r"output 'y' gives int64, expected float32; .*argmax")


def test_free_axes_stay_free_or_are_fixed_by_a_shape(tmp_path):
    file = save(classifier(height="height"), tmp_path / "m.onnx")
    free = read_model(file)
    assert free.input.shape == (3, None, 8)
    assert free.settled(pictures(2, height=11)).input.sizes == (3, 11, 8)
    fixed = read_model(file, {"x": (1, 3, 12, 8)})
    assert (fixed.input.shape, fixed.batch) == ((3, 12, 8), None)
    variant = fixed.settled(pictures(1, 12)).save(tmp_path / "fp32", CLASSES, pictures(2, 12))
    assert answers(str(variant.model), pictures(2, 12)).shape == (2, 5)
    refused(file, r"--shape: input 'x' is of shape \(\?, 3, \?, 8\), received \(1, 4, 12, 8\)", x=(1, 4, 12, 8))
    refused(file, r"--shape: .*received \(1, 3, 12\)", x=(1, 3, 12))
    refused(file, r"--shape: the model's input is 'x', not 'y'", y=(1, 3, 12, 8))


def test_a_batch_of_one_is_kept_and_another_is_refused(tmp_path):
    model = read_model(save(classifier(batch=1), tmp_path / "1.onnx"))
    assert model.batch == 1
    assert model.outputs(pictures(3)).shape == (3, 5)
    refused(save(classifier(batch=8), tmp_path / "8.onnx"), "its batch is fixed to 8; export it with a free batch")


def test_a_batch_that_is_free_by_name_only_is_found_out(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["x", "one"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 12]), "one"),
        numpy_helper.from_array(weights(12, 5), "w"),
    ]
    graph = helper.make_graph(nodes, "g", [tensor("x", ["n", 3, 4])], [tensor("y", ["n", 5])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    samples = np.ones((2, 3, 4), np.float32)
    settled = read_model(save(model, tmp_path / "m.onnx")).settled(samples)
    assert settled.batch == 1
    assert "the batch is fixed to 1" in settled.notes[0]
    variant = settled.save(tmp_path / "fp32", CLASSES, samples)
    assert onnx.load(variant.model).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_other_weights_than_floats_are_where_nothing_starts(tmp_path):
    """The converter appends nodes out of order, which is no reason to refuse the file."""
    half = convert_float_to_float16(classifier(), keep_io_types=True)
    with pytest.raises(UserError, match="its weights are in fp16 already; give the model in float32"):
        read_model(save(half, tmp_path / "m.onnx")).require_float()


def test_local_functions_are_written_out(tmp_path):
    body = [helper.make_node("Relu", ["a"], ["b"], name="inner")]
    function = helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    node = helper.make_node("Twice", ["x"], ["y"], name="f", domain="mine")
    model = one_node(node, [tensor("x", ["n", 3])], [tensor("y", ["n", 3])], domains=["mine"])
    model.functions.append(function)
    read = read_model(save(model, tmp_path / "m.onnx"))
    assert [entry.op_type for entry in read.model.graph.node] == ["Relu"]
