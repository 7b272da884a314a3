"""Which layers of a model the deep-learning accelerator (DLA) of Orin boards would run: a forecast, from what NVIDIA
publishes, before anybody builds anything.

Sources: "DLA Supported Layers and Restrictions" of TensorRT's documentation, and the table of ONNX operators in
NVIDIA's repository Deep-Learning-Accelerator-SW. Where they differ, or say nothing of a case, the layer is unsure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

ENOUGH = 0.8  # share of layers below which going back and forth between DLA and GPU is not worth it
_LARGEST, _MAPS = 8192, 8192
_BUILD_TIME = {"Constant", "ConstantOfShape", "Shape", "Identity", "Dropout"}
_LINEAR = {"QuantizeLinear", "DequantizeLinear"}  # precision of their neighbours, no layers
_GPU, _DLA, _UNSURE = "gpu", "dla", "unsure"


@dataclass(frozen=True)
class Layer:
    """A node with the shapes and constants that it reads and writes; None where a shape is not known."""

    name: str
    operator: str
    attributes: Mapping[str, Any]
    read: tuple[tuple[int, ...] | None, ...]
    written: tuple[int, ...] | None
    constants: tuple[NDArray[Any] | None, ...]

    def sizes(self, attribute: str, otherwise: int) -> tuple[int, ...]:
        """An attribute with a number per spatial axis."""
        return tuple(self.attributes.get(attribute, (otherwise,)))


# A rule says where a layer runs, and why not on the DLA.
Rule = Callable[[Layer], tuple[str, str]]
_FITS = (_DLA, "")


def forecast(model: onnx.ModelProto, precision: str, shape: Sequence[int]) -> dict[str, Any]:
    """What of ``model`` the DLA would run.

    Args:
        precision: of the file: ``fp32``, ``fp16`` or ``int8``.
        shape: of one sample with its batch axis; a DLA takes one shape alone.

    Returns:
        ``layers``: how many there are; ``on_dla``, ``unsure``: how many of them would run there, or may;
        ``share``: of ``on_dla``; ``fallbacks``: layer, operator, reason and ``certain`` of all others; ``advice``.
    """
    layers = list(_layers(model, shape))
    said = [(layer, *_place(layer, precision)) for layer in layers]
    counts = {place: sum(where == place for _, where, _ in said) for place in (_DLA, _UNSURE)}
    share = counts[_DLA] / len(layers) if layers else 0.0
    most = (counts[_DLA] + counts[_UNSURE]) / len(layers) if layers else 0.0
    return {
        "layers": len(layers),
        "on_dla": counts[_DLA],
        "unsure": counts[_UNSURE],
        "share": share,
        "advice": _advice(share, most, precision),
        "fallbacks": [
            {"layer": layer.name, "operator": layer.operator, "reason": reason, "certain": where == _GPU}
            for layer, where, reason in said
            if where != _DLA
        ],
    }


def _advice(share: float, most: float, precision: str) -> str:
    if precision == "fp32":
        return "GPU: the DLA computes in fp16 and int8 alone"
    if share >= ENOUGH:
        return "the DLA may be worth a try"
    said = f"GPU: {share:.0%} of layers would surely run on the DLA, under {ENOUGH:.0%}"
    return f"{said}; {most:.0%} if all that is unsure does" if most >= ENOUGH else said


def _place(layer: Layer, precision: str) -> tuple[str, str]:
    if precision == "fp32":
        return _GPU, "computes in fp16 and int8 alone"
    for shape in (*layer.read[:1], layer.written):
        if shape is not None and any(size > _LARGEST for size in shape[1:]):
            return _GPU, f"an axis is longer than {_LARGEST}"
    rule = _RULES.get(layer.operator)
    return rule(layer) if rule is not None else (_GPU, f"has no {layer.operator}")


def _spatial(layer: Layer) -> tuple[str, str] | None:
    """Two spatial axes: what else there is TensorRT may reshape, or not."""
    shape = layer.read[0]
    if shape is None:
        return _UNSURE, "its shape is not known before it is built"
    if len(shape) == 3:
        return _UNSURE, "has one spatial axis; TensorRT adds one for Conv and pooling, with reshapes around it"
    return None if len(shape) == 4 else (_GPU, f"takes two spatial axes, this has {len(shape) - 2}")


def _within(what: str, sizes: Sequence[int], low: int, high: int) -> str:
    worst = [size for size in sizes if not low <= size <= high]
    return f"takes a {what} of {low} to {high}, this is {worst[0]}" if worst else ""


def _windows(
    layer: Layer, limits: Mapping[str, tuple[str, int, int, int]], more: Sequence[str] = ()
) -> tuple[str, str]:
    """A layer with a window: two spatial axes, and every attribute within its limits (name, lowest, highest, else)."""
    problems = [
        _within(name, layer.sizes(attribute, otherwise), low, high)
        for attribute, (name, low, high, otherwise) in limits.items()
    ]
    problem = next((said for said in (*problems, *more) if said), "")
    return (_GPU, problem) if problem else _spatial(layer) or _FITS


def _convolution(layer: Layer) -> tuple[str, str]:
    weights = layer.constants[1]
    if weights is None:
        return _GPU, "takes constant weights alone"
    limits = {"pads": ("padding", 0, 31, 0), "strides": ("stride", 1, 8, 1), "dilations": ("dilation", 1, 32, 1)}
    kernel = _within("kernel", weights.shape[2:], 1, 32)
    maps = _within("number of maps", weights.shape[:2], 1, _MAPS)
    return _windows(layer, limits, (kernel, maps))


def _deconvolution(layer: Layer) -> tuple[str, str]:
    weights = layer.constants[1]
    if weights is None:
        return _GPU, "takes constant weights alone"
    limits = {
        "pads": ("padding", 0, 0, 0),
        "output_padding": ("output padding", 0, 0, 0),
        "strides": ("stride", 1, 32, 1),
        "dilations": ("dilation", 1, 1, 1),
    }
    grouped = _within("number of groups", [layer.attributes.get("group", 1)], 1, 1)
    return _windows(layer, limits, (grouped, _within("kernel", weights.shape[2:], 1, 32)))


def _pooling(layer: Layer) -> tuple[str, str]:
    limits = {"kernel_shape": ("window", 1, 8, 1), "pads": ("padding", 0, 7, 0), "strides": ("stride", 1, 16, 1)}
    padded = any(layer.sizes("pads", 0)) and not layer.attributes.get("count_include_pad", 0)
    alone = "averages with the padding counted alone" if layer.operator == "AveragePool" and padded else ""
    return _windows(layer, limits, (alone,))


def _plain(layer: Layer) -> tuple[str, str]:
    return _flat(layer) or _FITS


def _clip(layer: Layer) -> tuple[str, str]:
    """A clipped ReLU: from 0 to a whole number up to 127."""
    low, high = (_scalar(layer, number) for number in (1, 2))
    if low != 0 or high is None or not 1 <= high <= 127:
        return _GPU, f"clips from 0 to at most 127, this clips from {low} to {high}"
    return _plain(layer)


def _scalar(layer: Layer, number: int) -> float | None:
    held = layer.constants[number] if number < len(layer.constants) else None
    return None if held is None or held.size != 1 else float(held.reshape(()))


def _flat(layer: Layer) -> tuple[str, str] | None:
    """Tensors of two spatial axes; of vectors the tables say nothing."""
    shape = layer.read[0]
    if shape is not None and len(shape) == 4:
        return None
    return _UNSURE, "is not of two spatial axes, which the tables speak of"


def _disputed(layer: Layer) -> tuple[str, str]:
    return _UNSURE, f"{layer.operator} is in TensorRT's table, and not in the one of ONNX operators"


def _matrix(layer: Layer) -> tuple[str, str]:
    if layer.constants[1] is None:
        return _GPU, "multiplies by constants alone"
    return _UNSURE, "ran as a fully connected layer up to TensorRT 8; TensorRT 10 has none"


def _concatenation(layer: Layer) -> tuple[str, str]:
    shape = layer.read[0]
    axis = layer.attributes.get("axis", 1)
    if shape is not None and axis % len(shape) != 1:
        return _GPU, f"joins channels alone, this joins axis {axis}"
    return _flat(layer) or _FITS


def _resize(layer: Layer) -> tuple[str, str]:
    mode = layer.attributes.get("mode", b"nearest").decode()
    most = {"nearest": 32, "linear": 4}.get(mode)
    if most is None:
        return _GPU, f"resizes to the nearest and bilinearly, not {mode}"
    if layer.read[0] is None or layer.written is None or len(layer.read[0]) != 4:
        return _flat(layer) or (_UNSURE, "its shape is not known before it is built")
    scales = [new / old for new, old in zip(layer.written, layer.read[0], strict=True)]
    if scales[:2] != [1, 1] or any(scale % 1 or not 1 <= scale <= most for scale in scales[2:]):
        return _GPU, f"enlarges height and width by whole numbers up to {most}"
    half = layer.attributes.get("coordinate_transformation_mode", b"half_pixel") == b"half_pixel"
    return (_GPU, "resizes bilinearly by half pixels alone") if mode == "linear" and not half else _FITS


def _softmax(layer: Layer) -> tuple[str, str]:
    shape = layer.read[0]
    if shape is None or len(shape) != 4:
        return _flat(layer) or _FITS
    axis = layer.attributes.get("axis", -1) % 4
    most = 8192 if all(size == 1 for k, size in enumerate(shape) if k not in (0, axis)) else 1024
    return _FITS if axis and shape[axis] <= most else (_GPU, f"takes at most {most} classes, and not over the batch")


def _shuffle(layer: Layer) -> tuple[str, str]:
    """Reshapes and transposes of four axes that leave the batch alone."""
    if layer.read[0] is None or layer.written is None:
        return _UNSURE, "its shape is not known before it is built"
    moved = layer.attributes.get("perm", (0,))[0] != 0
    if moved or layer.read[0][0] != layer.written[0]:
        return _GPU, "leaves the batch axis alone"
    both = len(layer.read[0]) == len(layer.written) == 4
    return _FITS if both else (_UNSURE, "changes the number of axes; the tables speak of four")


def _slice(layer: Layer) -> tuple[str, str]:
    known = all(held is not None for held in layer.constants[1:])
    return _flat(layer) or (_FITS if known else (_GPU, "slices by constants alone"))


def _slopes(layer: Layer) -> tuple[str, str]:
    return (_GPU, "takes constant slopes alone") if layer.constants[1] is None else _flat(layer) or _FITS


_RULES: Mapping[str, Rule] = {
    "Conv": _convolution,
    "ConvTranspose": _deconvolution,
    **dict.fromkeys(("MaxPool", "AveragePool"), _pooling),
    **dict.fromkeys(("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Abs"), _plain),
    "Clip": _clip,
    "PRelu": _slopes,
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Sum", "BatchNormalization"), _plain),
    **dict.fromkeys(("Div", "Pow", "Min", "ReduceMax"), _disputed),
    **dict.fromkeys(("Gemm", "MatMul"), _matrix),
    "Concat": _concatenation,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Softmax": _softmax,
    **dict.fromkeys(("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"), _shuffle),
    "Slice": _slice,
}


def _layers(model: onnx.ModelProto, shape: Sequence[int]) -> Iterator[Layer]:
    """Nodes that compute something from the input, with shapes for one sample."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    dims = fixed.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size
    del fixed.graph.value_info[:]
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes |= {name: array.shape for name, array in held.items()}
    for number, node in enumerate(graph.node):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            held[node.output[0]] = numpy_helper.to_array(attributes["value"])
        if node.op_type in _LINEAR and node.input[0] in held:  # weights in eight bits: constants as before
            held[node.output[0]] = held[node.input[0]]
        if node.op_type in _BUILD_TIME | _LINEAR:
            continue
        if all(name in held for name in node.input if name):  # folded; what it is then, no rule needs to know
            held |= {name: np.full(shapes.get(name) or (), np.nan) for name in node.output if name}
            continue
        yield Layer(
            name=node.name or f"{node.op_type}_{number}",
            operator=node.op_type,
            attributes=attributes,
            read=tuple(shapes.get(name) for name in node.input),
            written=shapes.get(node.output[0]),
            constants=tuple(held.get(name) for name in node.input),
        )


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    dims = value.type.tensor_type.shape.dim
    known = value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None
