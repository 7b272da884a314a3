"""The forecast for Orin's DLA: which layers would run there, why the others do not, and what is not known."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from mst_edge.cli.app import app
from targets.dla import forecast
from tests.quantize.foreign_models import classifier, pictures, save

SHAPE = (1, 8, 16, 16)
BIG, DEPTH = np.ones((4, 8, 33, 3), np.float32), np.ones((4, 8, 3, 3), np.float32)
UP = np.array([1, 1, 2, 2], np.float32)


def graph(*nodes, **constants):
    """A model of nodes from ``x`` on, whose free batch is not known."""
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    free = ["batch", *SHAPE[1:]]
    last = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, free)]
    return helper.make_model(
        helper.make_graph(list(nodes), "g", inputs, [last], held), opset_imports=[helper.make_opsetid("", 18)]
    )


def one(operator, *more, constants=None, **attributes):
    """Where a single layer would run, and why not on the DLA."""
    node = helper.make_node(operator, ["x", *more], ["y"], **attributes)
    said = forecast(graph(node, **(constants or {})), "fp16", SHAPE)
    assert said["layers"] == 1
    if said["on_dla"]:
        assert (said["share"], said["fallbacks"]) == (1.0, [])
        return "dla", ""
    (fallback,) = said["fallbacks"]
    assert fallback["operator"] == operator
    assert said["unsure"] == (not fallback["certain"])
    return "gpu" if fallback["certain"] else "unsure", fallback["reason"]


@pytest.mark.parametrize(
    ("operator", "more", "constants", "attributes", "where", "reason"),
    [
        ("Conv", ["w"], {"w": DEPTH}, {"pads": [1, 1, 1, 1]}, "dla", ""),
        ("Conv", ["w"], {"w": BIG}, {"pads": [16, 1, 16, 1]}, "gpu", "takes a kernel of 1 to 32, this is 33"),
        ("Conv", ["w"], {"w": DEPTH}, {"strides": [9, 1]}, "gpu", "takes a stride of 1 to 8, this is 9"),
        ("Conv", ["w"], {"w": DEPTH}, {"pads": [32, 0, 0, 0]}, "gpu", "takes a padding of 0 to 31, this is 32"),
        ("ConvTranspose", ["w"], {"w": DEPTH.transpose(1, 0, 2, 3)}, {"strides": [2, 2]}, "dla", ""),
        ("ConvTranspose", ["w"], {"w": DEPTH.transpose(1, 0, 2, 3)}, {"pads": [1] * 4}, "gpu", "padding of 0 to 0"),
        ("MaxPool", [], {}, {"kernel_shape": [8, 8]}, "dla", ""),
        ("MaxPool", [], {}, {"kernel_shape": [9, 9]}, "gpu", "takes a window of 1 to 8, this is 9"),
        ("AveragePool", [], {}, {"kernel_shape": [3, 3], "pads": [1] * 4}, "gpu", "padding counted alone"),
        ("GlobalAveragePool", [], {}, {}, "gpu", "has no GlobalAveragePool"),
        ("Relu", [], {}, {}, "dla", ""),
        ("Clip", ["a", "b"], {"a": np.float32(0), "b": np.float32(6)}, {}, "dla", ""),
        ("Clip", ["a", "b"], {"a": np.float32(-1), "b": np.float32(1)}, {}, "gpu", "clips from 0 to at most 127"),
        ("HardSwish", [], {}, {}, "gpu", "has no HardSwish"),
        ("Div", ["a"], {"a": np.ones((1, 8, 1, 1), np.float32)}, {}, "unsure", "is in TensorRT's table"),
        ("Resize", ["", "s"], {"s": UP}, {"mode": "nearest"}, "dla", ""),
        ("Resize", ["", "s"], {"s": UP}, {"mode": "cubic"}, "gpu", "not cubic"),
        (
            "Resize",
            ["", "s"],
            {"s": np.array([1, 1, 1.5, 1.5], np.float32)},
            {"mode": "nearest"},
            "gpu",
            "by whole numbers up to 32",
        ),
        ("Softmax", [], {}, {"axis": 1}, "dla", ""),
        ("Concat", ["x"], {}, {"axis": 1}, "dla", ""),
        ("Concat", ["x"], {}, {"axis": 2}, "gpu", "joins channels alone, this joins axis 2"),
        ("Transpose", [], {}, {"perm": [0, 2, 3, 1]}, "dla", ""),
        ("Transpose", [], {}, {"perm": [1, 0, 2, 3]}, "gpu", "leaves the batch axis alone"),
        ("Flatten", [], {}, {}, "unsure", "changes the number of axes"),
        ("MatMul", ["w"], {"w": np.ones((16, 4), np.float32)}, {}, "unsure", "TensorRT 10 has none"),
        ("MatMul", ["x"], {}, {}, "gpu", "multiplies by constants alone"),
    ],
)
def test_a_layer_runs_where_nvidias_tables_say(operator, more, constants, attributes, where, reason):
    found, why = one(operator, *more, constants=constants, **attributes)
    assert (found, reason in why) == (where, True), why


def test_shares_advice_and_what_is_no_layer():
    model = classifier()
    said = forecast(model, "fp16", (1, 3, 8, 8))
    # Conv and Relu; not the pooling over everything; Squeeze and Gemm nobody knows.
    assert (said["layers"], said["on_dla"], said["unsure"], said["share"]) == (5, 2, 2, 0.4)
    assert said["advice"] == "GPU: 40% of layers would surely run on the DLA, under 80%; 80% if all that is unsure does"
    assert forecast(model, "fp32", (1, 3, 8, 8))["advice"] == "GPU: the DLA computes in fp16 and int8 alone"
    weights = numpy_helper.from_array(DEPTH.astype(np.int8), "q")
    quantized = graph(
        helper.make_node("QuantizeLinear", ["x", "s"], ["a"]),
        helper.make_node("DequantizeLinear", ["a", "s"], ["b"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
        s=np.float32(0.1),
    )
    quantized.graph.initializer.append(weights)
    said = forecast(quantized, "int8", SHAPE)
    assert (said["layers"], said["share"], said["advice"]) == (2, 1.0, "the DLA may be worth a try")


@pytest.mark.parametrize(("target", "has"), [("jetson-agx-orin", True), ("jetson-orin-nano", False)])
def test_boards_that_have_one_are_told_so_in_the_bundle(tmp_path, target, has):
    save(classifier(), tmp_path / "net.onnx")
    (tmp_path / "samples").mkdir()
    np.save(tmp_path / "samples" / "inputs.npy", pictures(20))
    command = ["deploy", tmp_path / "net.onnx", "--target", target, "--calibration", tmp_path / "samples"]
    done = CliRunner().invoke(app, [*map(str, command), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    bundle = tmp_path / "out" / "bundles" / target
    (record,) = json.loads((tmp_path / "out" / "result.json").read_text())["targets"]
    assert ("dla" in record["forecasts"]) is (bundle / "dla.json").is_file() is has
    assert ("DLA: tensorrt-fp16: 2 of" in done.output) is has
    if has:
        assert "dla.json" in json.loads((bundle / "manifest.json").read_text())["files"]
        said = json.loads((bundle / "dla.json").read_text())
        assert said == record["forecasts"]["dla"]
        assert said["takes"].startswith("TensorRT up to 10.7")
        assert set(said["builds"]) == {row["id"] for row in record["builds"]}
        assert onnx.load(bundle / "models/tensorrt-fp16/model.onnx").graph.node
