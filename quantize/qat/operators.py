"""ONNX operators as differentiable torch functions: those that the graphs of students are made of.

Each takes its inputs in ONNX's order (None where one is left out) and its attributes by name. Numbers that fix a shape
(axes, sizes) come as tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor]

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOLS: Mapping[int, Operator] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
}


def _symmetric(x: Tensor, pads: list[int], value: float) -> tuple[Tensor, list[int]]:
    """``x`` and its pads per axis, once pads that differ at the two ends are added by themselves."""
    begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if begin == end:
        return x, begin
    around = [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair]
    return functional.pad(x, around, value=value), [0] * len(begin)


def _conv(said: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = weight.ndim - 2
    x, padding = _symmetric(x, said.get("pads", [0] * 2 * axes), 0.0)
    stride, dilation = said.get("strides", [1] * axes), said.get("dilations", [1] * axes)
    return _CONVOLUTIONS[axes](x, weight, bias, stride, padding, dilation, said.get("group", 1))


def _max_pool(said: Attributes, x: Tensor) -> Tensor:
    axes = len(said["kernel_shape"])
    x, padding = _symmetric(x, said.get("pads", [0] * 2 * axes), -torch.inf)
    stride, dilation = said.get("strides", [1] * axes), said.get("dilations", [1] * axes)
    return _MAX_POOLS[axes](x, said["kernel_shape"], stride, padding, dilation, bool(said.get("ceil_mode", 0)))


def _average_pool(said: Attributes, x: Tensor) -> Tensor:
    axes = len(said["kernel_shape"])
    pads = said.get("pads", [0] * 2 * axes)
    stride, counted = said.get("strides", [1] * axes), bool(said.get("count_include_pad", 0))
    if pads[:axes] != pads[axes:]:
        raise NotImplementedError("pads that differ at the two ends")
    return _AVERAGE_POOLS[axes](x, said["kernel_shape"], stride, pads[:axes], bool(said.get("ceil_mode", 0)), counted)


def _gemm(said: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = (a.T if said.get("transA") else a), (b.T if said.get("transB") else b)
    product = said.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + said.get("beta", 1.0) * c


def _batch_norm(said: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=said.get("epsilon", 1e-5))


def _layer_norm(said: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[said.get("axis", -1) :]
    return functional.layer_norm(x, shape, scale.expand(shape), bias, said.get("epsilon", 1e-5))


def _reduce(reduce: Callable[..., Tensor]) -> Operator:
    def over_axes(said: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = list(range(x.ndim)) if axes is None else axes.tolist()
        return reduce(x, dim=chosen, keepdim=bool(said.get("keepdims", 1)))

    return over_axes


def _reshape(said: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    kept = not said.get("allowzero", 0)
    return x.reshape([x.shape[axis] if size == 0 and kept else size for axis, size in enumerate(shape.tolist())])


def _flatten(said: Attributes, x: Tensor) -> Tensor:
    axis = said.get("axis", 1)
    return x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel())


def _gather(said: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis, indices = said.get("axis", 0), indices.to(x.device, torch.int64)
    rows = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, rows.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _slice(
    _: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    """Raises NotImplementedError: steps backwards, which torch has no view for."""
    chosen = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    if min(strides) < 1:
        raise NotImplementedError(f"steps of {strides}")
    for axis, start, end, step in zip(chosen, starts.tolist(), ends.tolist(), strides, strict=True):
        at = [slice(None)] * x.ndim
        at[axis] = slice(start, end, step)
        x = x[tuple(at)]
    return x


def _pad(said: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None) -> Tensor:
    if said.get("mode", "constant") != "constant":
        raise NotImplementedError(f"mode {said['mode']}")
    begin, end = pads.reshape(2, -1).tolist()
    around = [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair]
    return functional.pad(x, around, value=0.0 if value is None else float(value))


def _resize(said: Attributes, x: Tensor, _roi: Tensor | None, scales: Tensor) -> Tensor:
    nearest = (said.get("mode"), said.get("coordinate_transformation_mode"), said.get("nearest_mode"))
    if nearest != ("nearest", "asymmetric", "floor"):
        raise NotImplementedError("interpolation other than by the nearest, asymmetric and rounded down")
    return functional.interpolate(x, scale_factor=scales.tolist()[2:], mode="nearest")


def _unsqueeze(_: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    total = x.ndim + len(axes)
    added = {axis % total for axis in axes.tolist()}
    return x[tuple(None if axis in added else slice(None) for axis in range(total))]


def _clip(_: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _hard_sigmoid(said: Attributes, x: Tensor) -> Tensor:
    return (said.get("alpha", 0.2) * x + said.get("beta", 0.5)).clamp(0, 1)


OPERATORS: Mapping[str, Operator] = {
    "Add": lambda _, a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda said, x: x.to(_DTYPES[said["to"]]),
    "Clip": _clip,
    "Concat": lambda said, *parts: torch.cat(parts, dim=said["axis"]),
    "Conv": _conv,
    "Div": lambda _, a, b: a / b,
    "Equal": lambda _, a, b: a == b,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": lambda said, x: functional.gelu(x, approximate=said.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean(dim=list(range(2, x.ndim)), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: functional.hardswish(x),
    "Identity": lambda _, x: x,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda _, a, b: a @ b,
    "Max": lambda _, a, b: torch.maximum(a, b),
    "MaxPool": _max_pool,
    "Mul": lambda _, a, b: a * b,
    "Not": lambda _, x: ~x,
    "Pad": _pad,
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": lambda _, x: torch.relu(x),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Slice": _slice,
    "Softmax": lambda said, x: torch.softmax(x, dim=said.get("axis", -1)),
    "Squeeze": lambda _, x, axes: x.squeeze(axes.tolist()),
    "Sub": lambda _, a, b: a - b,
    "Tanh": lambda _, x: torch.tanh(x),
    "Transpose": lambda said, x: x.permute(said["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda _, condition, a, b: torch.where(condition, a, b),
}
# These pass numbers on as they are: what was quantized stays on its grid.
MOVES = frozenset({"Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
