"""Reading an ONNX file of unknown origin: whole, not damaged, and without touching files outside its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx

from mst_edge.core.errors import UserError

MOST_BYTES = (1 << 31) - 1  # what one protobuf message can hold
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
# What reads infinity as "nothing here", in masks and bounds; in a weight it is an overflow.
_TAKE_INFINITY = frozenset(
    {"Where", "Add", "Max", "Min", "Clip", "Pad", "Concat", "Expand", "Less", "Greater", "Equal"}
)


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in ``path`` with all its external data inside.

    Raises:
        UserError: no ONNX model, or a truncated one; external data that is missing, damaged or outside the model's
            folder; more than the 2 GB that one file can hold.
    """
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise UserError("no such file", where=path)
    if path.stat().st_size > MOST_BYTES:
        raise _too_large(path.stat().st_size, path)
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise UserError(f"not an ONNX file, or a truncated one ({error})", where=path) from None
    if not (model.graph.node and model.graph.output and model.opset_import):
        raise UserError("not an ONNX file, or a truncated one (it holds no graph)", where=path)
    _pack(model, path)
    return model


def require_sound_weights(model: onnx.ModelProto, where: Path) -> None:
    """No weight may be NaN, or infinite where that is no mask.

    Raises:
        UserError: names the first such tensor, or one whose bytes do not fill its shape.
    """
    readers = _readers(model)
    for name, tensor in _constants(model):
        if tensor.data_type not in _FLOATS:
            continue
        try:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32, copy=False)
        except ValueError as error:
            raise UserError(f"initializer {name!r} is damaged ({error})", where=where) from None
        if np.isfinite(values).all():
            continue
        kind = "NaN" if np.isnan(values).any() else "infinite"
        if kind == "NaN" or not readers.get(name, set()) <= _TAKE_INFINITY:
            count = int((~np.isfinite(values)).sum())
            raise UserError(
                f"initializer {name!r} holds {kind} values ({count} of {values.size})",
                where=where,
                fix="the training that made it diverged, or the file is damaged",
            )


def infinite_nodes(model: onnx.ModelProto) -> Iterator[str]:
    """Names of the nodes from masks with infinity to the softmax that takes it away: no eight bits span it."""
    tainted = {
        name
        for name, tensor in _constants(model)
        if tensor.data_type in _FLOATS and not np.isfinite(onnx.numpy_helper.to_array(tensor)).all()
    }
    for node in model.graph.node:
        own = [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        holds = any(t.data_type in _FLOATS and np.isinf(onnx.numpy_helper.to_array(t)).any() for t in own)
        if holds or tainted & set(node.input):
            yield node.name
            if node.op_type not in ("Softmax", "Clip", "Max", "Min"):
                tainted |= set(node.output)


def nodes_in(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph, also those inside loops and branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from nodes_in(inner)


def _pack(model: onnx.ModelProto, path: Path) -> None:
    """Brings external data into the model."""
    outside = [tensor for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    said = [(tensor, {entry.key: entry.value for entry in tensor.external_data}) for tensor in outside]
    places = [_place(path, tensor.name, about) for tensor, about in said]
    total = model.ByteSize() + sum(length for _, _, length in places)
    if total > MOST_BYTES:
        raise _too_large(total, path)
    for (tensor, _), (file, offset, length) in zip(said, places, strict=True):
        with file.open("rb") as data:
            data.seek(offset)
            content = data.read(length)
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        tensor.raw_data = content


def _place(path: Path, name: str, about: dict[str, str]) -> tuple[Path, int, int]:
    """File, offset and length in bytes of a tensor's data.

    Raises:
        UserError: it is missing, too short, or outside the model's folder.
    """
    location = about.get("location", "")
    pure, folder = PurePosixPath(location), path.parent.resolve()
    escapes = pure.is_absolute() or ".." in pure.parts or PureWindowsPath(location).anchor or "\\" in location
    file = path.parent / pure
    if not location or escapes or folder not in file.resolve().parents:
        raise UserError(
            f"the data of tensor {name!r} is outside the model's folder ({location!r})",
            where=path,
            fix="put the file beside the model, and not as a link",
        )
    if not file.is_file():
        raise UserError(
            f"its external data file {location!r} is missing (tensor {name!r})",
            where=path,
            fix="copy it into the model's folder",
        )
    size = file.stat().st_size
    try:
        offset = int(about.get("offset", 0))
        length = int(about["length"]) if "length" in about else size - offset
    except ValueError:
        raise UserError(f"misstates where the data of tensor {name!r} lies", where=path) from None
    if offset < 0 or length < 0 or offset + length > size:
        raise UserError(
            f"its external data file {location!r} has {size} bytes, tensor {name!r} is said to end at "
            f"{offset + length}",
            where=path,
            fix="copy the whole file again",
        )
    return file, offset, length


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor anywhere in a protobuf message: initializers, attributes, functions, inner graphs."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            # A single message has no length of its own; a repeated field has.
            for child in value if hasattr(value, "__len__") else (value,):
                yield from _tensors(child)


def _constants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initializers, and the values of nodes that are constants, by the name that others read them by."""
    yield from ((tensor.name, tensor) for tensor in model.graph.initializer)
    for node in nodes_in(model.graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield (node.output[0] if node.op_type == "Constant" else attribute.t.name or node.name), attribute.t
            if attribute.HasField("g"):
                yield from ((tensor.name, tensor) for tensor in attribute.g.initializer)


def _readers(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Tensor name to the operators that read it."""
    found: dict[str, set[str]] = {}
    for node in nodes_in(model.graph):
        for name in node.input:
            found.setdefault(name, set()).add(node.op_type)
    return found


def _too_large(size: int, path: Path) -> UserError:
    return UserError(
        f"holds {size / 1e9:.1f} GB; with its external data packed, an ONNX file holds at most 2 GB",
        where=path,
        fix="use a smaller model, or one in parts",
    )
