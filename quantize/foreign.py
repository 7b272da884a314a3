"""Any ONNX file as an fp32 variant: checked, prepared for quantization, and proven to compute what it did before."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path
from mst_edge.core.scoring import OutputSpec
from quantize.onnx_file import infinite_nodes, nodes_in, read_onnx, require_sound_weights
from quantize.variant import MODEL, InputSpec, Variant

# The lowest opset whose QuantizeLinear and DequantizeLinear take a scale per channel.
LOWEST_OPSET = 13
KIND = "tensor"  # of the input: prepared by whoever made the model, not recorded by a device
_CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
_INPUTS = ("float32", "float16", "uint8", "int32", "int64")
_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"})
_SCOPES = "pkg.torch.onnx.name_scopes"
_SAME = 1e-3  # of the outputs' deviation: what preparing a graph may change

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class ForeignModel:
    """A model of unknown origin with one input and one output, all of it in one graph.

    Attributes:
        file: where it was read from.
        input: its ``shape`` has None for axes that the graph leaves free.
        output_shape: of one answer, as running a sample tells; empty before.
        batch: size that the graph is fixed to; None where it is free.
        precision: of its weights: fp32, fp16, int8.
        modules: name or output tensor of a node to the dotted path of the torch module that it comes from, where the
            file says so. A node that is fused with others keeps one of the two.
        notes: what was changed, for people.
    """

    file: Path
    model: onnx.ModelProto
    input: InputSpec
    batch: int | None
    precision: str
    modules: Mapping[str, str]
    notes: tuple[str, ...] = ()
    output_shape: tuple[int, ...] = ()

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        return _opset(self.model)

    def session(self) -> Any:
        """An ONNX Runtime session that runs the model as it was read."""
        return _session(self.model, self.file)

    def outputs(self, samples: NDArray[Any], session: Any = None) -> NDArray[np.float32]:
        """``(samples, ...)`` what the model answers, one sample at a time.

        Args:
            session: one of its own, for many calls.

        Raises:
            UserError: it cannot run them, or an answer is not a number.
        """
        return _run(session or self.session(), samples, self.file)

    def settled(self, samples: NDArray[Any]) -> ForeignModel:
        """With everything known that only running it on ``samples`` tells: its output's shape, and whether it takes
        a batch at all.

        Raises:
            UserError: it cannot run them, or answers with NaN.
        """
        session = self.session()
        one = _run(session, samples[:1], self.file)
        input_spec = replace(self.input, example=samples.shape[1:]) if None in self.input.shape else self.input
        settled = replace(self, input=input_spec, output_shape=one.shape[1:])
        if self.batch is None and not _takes_batches(session, samples[:1], one):
            model = onnx.ModelProto()
            model.CopyFrom(self.model)
            for value in (model.graph.input[0], model.graph.output[0]):
                if value.type.tensor_type.shape.dim:
                    value.type.tensor_type.shape.dim[0].dim_value = 1
            note = "its batch is free by name, but it runs samples one by one only: the batch is fixed to 1"
            settled = replace(settled, model=model, batch=1, notes=(*self.notes, note))
        return settled

    def require_float(self) -> None:
        """Quantization starts from weights in fp32.

        Raises:
            UserError: they are something else.
        """
        if self.precision != "fp32":
            raise UserError(
                f"its weights are in {self.precision} already", where=self.file, fix="give the model in float32"
            )

    def save(self, folder: Path, output: OutputSpec, samples: NDArray[Any]) -> Variant:
        """Writes the fp32 variant: constants folded, batch norms fused, an old opset raised, every node named.

        Args:
            samples: a few, ``(n, *input)``, on which it must answer as the file does.

        Raises:
            UserError: the opset cannot be raised, or the prepared graph answers differently.
        """
        self.require_float()
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            model = _prepared(self.model, self.file, temporary / MODEL)
            _require_same(model, self, samples)
            onnx.save(model, temporary / MODEL)
            masks = tuple(infinite_nodes(model))
            variant = Variant(
                "fp32",
                "fp32",
                "fp32",
                "onnx",
                temporary,
                self.input,
                output,
                _opset(model),
                float_nodes=masks,
                answer_nodes=masks,
                modules={node.name: path for node in model.graph.node if (path := self._module_of(node))},
                facts={"file": self.file.name, "notes": list(self.notes)},
            )
            variant.save()
        return replace(variant, folder=folder)

    def _module_of(self, node: onnx.NodeProto) -> str:
        return self.modules.get(node.name) or self.modules.get(node.output[0], "")


def read_model(path: Path, shapes: Shapes = MappingProxyType({})) -> ForeignModel:
    """Reads and checks an ONNX file; nothing is written.

    Args:
        shapes: input name to shape with the batch; fixes axes that the graph leaves free.

    Raises:
        UserError: not an ONNX file or a damaged one, an operator that ONNX Runtime does not run, weights that are not
            numbers, more than one input or output, a type or shape that is not supported; one line, with the place.
    """
    model = _inlined(read_onnx(path), path)
    _sort(model)
    _require_operators(model, path)
    require_sound_weights(model, path)
    _check(model, path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    if len(inputs) != 1:
        raise _wrong_number("input", [value.name for value in inputs], path)
    if len(model.graph.output) != 1:
        raise _wrong_number("output", [value.name for value in model.graph.output], path)
    _name_nodes(model)
    modules, precision = _modules(model), _precision(model)
    del model.graph.value_info[:]  # may be of other shapes than the ones asked for
    batch, input_spec = _input(model.graph.input[0], shapes, path)
    notes = _without_last_softmax(model)
    _session(model, path)  # every operator has a kernel
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
    _require_numbers(inferred, path)
    return ForeignModel(path, model, input_spec, batch, precision, modules, notes)


def _wrong_number(what: str, names: list[str], path: Path) -> UserError:
    return UserError(
        f"has {len(names)} {what}s ({', '.join(names) or 'none'}), expected one",
        where=path,
        fix=f"export it with one {what}",
    )


def _inlined(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The graph with its local functions written out."""
    if not model.functions:
        return model
    from onnx.inliner import inline_local_functions

    try:
        return inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"its functions cannot be written out ({error})", where=path) from None


def _sort(model: onnx.ModelProto) -> None:
    """Brings nodes into an order in which they can run: some converters append, and ONNX Runtime sorts by itself."""
    made = {name for node in model.graph.node for name in node.output if name}
    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    order: list[onnx.NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if made.isdisjoint(_reads(node)):
                order.append(node)
                made.difference_update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            return  # a circle: the checker says so
        waiting = later
    del model.graph.node[:]
    model.graph.node.extend(order)


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, also inside its loops and branches."""
    inner = (entry.g for entry in node.attribute if entry.HasField("g"))
    return {*node.input, *(name for graph in inner for child in graph.node for name in _reads(child))}


def _require_operators(model: onnx.ModelProto, path: Path) -> None:
    """Every node must be of a type that its opset has, or that ONNX Runtime adds."""
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    for node in nodes_in(model.graph):
        domain = _domain(node.domain)
        if domain == _CONTRIB:
            continue
        version = opsets.get(domain, 0)
        if onnx.defs.has(node.op_type, max_inclusive_version=version, domain=domain):
            continue
        known = onnx.defs.has(node.op_type, domain=domain)
        own = f" of the domain {domain!r}" if domain else ""
        raise UserError(
            f"node {node.name or node.output[0]!r} is of the operator {node.op_type}{own}, "
            + (f"which opset {version} does not have" if known else "which ONNX Runtime does not run"),
            where=path,
            fix="export the model with operators of ONNX alone",
        )


def _domain(name: str) -> str:
    """ONNX's own domain has two names."""
    return "" if name == "ai.onnx" else name


def _check(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise UserError(f"not a valid ONNX model ({_first_line(error)})", where=path) from None


def _session(model: onnx.ModelProto, path: Path) -> Any:
    """A session on the CPU.

    Raises:
        UserError: ONNX Runtime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it raises a class of its own per failure
        raise UserError(f"ONNX Runtime does not run it ({_first_line(error)})", where=path) from None


def _simplified(model: onnx.ModelProto, scratch: Path) -> onnx.ModelProto:
    """By ONNX Runtime, with ONNX's own operators only: constants folded, batch norms fused."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(scratch)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(scratch)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _input(value: onnx.ValueInfoProto, shapes: Shapes, path: Path) -> tuple[int | None, InputSpec]:
    """The batch size, None where it is free, and what one sample is; writes fixed axes into ``value``."""
    kind = value.type.tensor_type
    dtype = _dtype(kind.elem_type)
    if dtype not in _INPUTS:
        raise UserError(
            f"input {value.name!r} takes {dtype or 'no tensor'}, expected one of {', '.join(_INPUTS)}", where=path
        )
    for name in shapes:
        if name != value.name:
            raise UserError(f"the model's input is {value.name!r}, not {name!r}", where="--shape")
    asked = tuple(shapes.get(value.name, ()))
    if not kind.HasField("shape"):
        if not asked:
            raise UserError(
                f"does not say of which shape its input {value.name!r} is", where=path, fix=_how_to_fix(value.name)
            )
        kind.shape.CopyFrom(onnx.helper.make_tensor_type_proto(kind.elem_type, ["batch", *asked[1:]]).tensor_type.shape)
    dims = kind.shape.dim
    said = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]
    if len(said) < 2:
        raise UserError(f"input {value.name!r} is of shape {_shape(said)}, expected (batch, ...)", where=path)
    if asked:
        _require_fitting(asked, said, value.name)
        for dim, size in list(zip(dims, asked, strict=True))[1:]:
            dim.dim_value = size
        said[1:] = asked[1:]
    if said[0] not in (None, 1):
        raise UserError(
            f"its batch is fixed to {said[0]}", where=path, fix="export it with a free batch, or with a batch of 1"
        )
    return said[0], InputSpec(value.name, KIND, tuple(said[1:]), dtype)


def _require_fitting(asked: Sequence[int], said: Sequence[int | None], name: str) -> None:
    fits = len(asked) == len(said) and all(n in (None, m) for n, m in zip(said, asked, strict=True))
    if not fits or min(asked) < 1 or asked[0] != 1:
        raise UserError(
            f"input {name!r} is of shape {_shape(said)}, received {_shape(asked)}",
            where="--shape",
            fix="give a batch of 1, then positive numbers; what the graph fixes stays",
        )


def _how_to_fix(name: str) -> str:
    return f"say it: --shape {name}=1,3,224,224"


def _shape(dims: Sequence[int | None]) -> str:
    """As Python writes it, with ? for a free axis."""
    return str(tuple(dims)).replace("None", "?")


def _require_numbers(value: onnx.ValueInfoProto, path: Path) -> None:
    """The output must be logits or numbers."""
    kind = _dtype(value.type.tensor_type.elem_type)
    if kind not in ("float32", "float16"):
        raise UserError(
            f"output {value.name!r} gives {kind or 'no tensor'}, expected float32",
            where=path,
            fix="export the model without its last step (an argmax, say)",
        )


def _dtype(kind: int) -> str:
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)))
    except (KeyError, TypeError):
        return ""


def _precision(model: onnx.ModelProto) -> str:
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    if any(n.op_type in _QUANTIZED or "Integer" in n.op_type or "QLinear" in n.op_type for n in nodes_in(model.graph)):
        return "int8"
    return "fp16" if onnx.TensorProto.FLOAT16 in kinds else "fp32"


def _modules(model: onnx.ModelProto) -> dict[str, str]:
    """By name and by output, the innermost torch module that a node comes from; empty where the file does not say."""
    found = {}
    for node in model.graph.node:
        said = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
        try:
            scopes = ast.literal_eval(said) if said else []
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(scopes, list) and len(scopes) > 1 and isinstance(scopes[-2], str) and scopes[-2]:
            found[node.name] = found[node.output[0]] = scopes[-2]
    return found


def _name_nodes(model: onnx.ModelProto) -> None:
    """Gives nodes without a name of their own one: layers are told apart by it."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)


def _without_last_softmax(model: onnx.ModelProto) -> tuple[str, ...]:
    """Drops a softmax over classes that the graph ends with: what runs a bundle computes probabilities itself, and
    logits are what survives eight bits."""
    output = model.graph.output[0]
    last = next((node for node in model.graph.node if output.name in node.output), None)
    if last is None or last.op_type != "Softmax" or sum(last.output[0] in node.input for node in model.graph.node):
        return ()
    rank = len(output.type.tensor_type.shape.dim)
    if rank != 2 and _opset(model) < LOWEST_OPSET:  # it then goes over all axes from its own on
        return ()
    default = -1 if _opset(model) >= LOWEST_OPSET else 1
    axis = next((attribute.i for attribute in last.attribute if attribute.name == "axis"), default)
    if rank < 2 or (axis % rank) != 1:
        return ()
    logits = last.input[0]
    if logits in {value.name for value in model.graph.input} or not any(logits in n.output for n in model.graph.node):
        return ()
    model.graph.node.remove(last)
    output.name = logits
    return ("its last softmax is left out: it answers with logits",)


def _opset(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if not _domain(entry.domain))


def _prepared(model: onnx.ModelProto, path: Path, scratch: Path) -> onnx.ModelProto:
    """Raised to ``LOWEST_OPSET`` where it is older, simplified, every node named; ``scratch`` is written over."""
    opset = _opset(model)
    if opset < LOWEST_OPSET:
        from onnx.version_converter import convert_version

        try:
            model = convert_version(model, LOWEST_OPSET)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"is of opset {opset}, and cannot be raised to {LOWEST_OPSET}, which int8 per channel needs "
                f"({_first_line(error)})",
                where=path,
                fix=f"export it again with opset {LOWEST_OPSET} or later",
            ) from None
    _session(model, path)
    prepared = _simplified(model, scratch)
    del prepared.graph.value_info[:]
    _name_nodes(prepared)
    return prepared


def _run(session: Any, samples: NDArray[Any], path: Path) -> NDArray[np.float32]:
    name = session.get_inputs()[0].name
    rows = []
    for number in range(len(samples)):
        try:
            row = session.run(None, {name: np.ascontiguousarray(samples[number : number + 1])})[0]
        except Exception as error:  # it raises a class of its own per failure
            raise UserError(f"fails on sample {number} ({_first_line(error)})", where=path) from None
        if np.ndim(row) < 2 or len(row) != 1:
            raise UserError(f"answers one sample with shape {np.shape(row)}, expected (1, ...)", where=path)
        if not np.isfinite(row).all():
            raise UserError(f"answers sample {number} with NaN or infinity", where=path)
        rows.append(row.astype(np.float32))
    return np.concatenate(rows)


def _takes_batches(session: Any, one: NDArray[Any], answer: NDArray[np.float32]) -> bool:
    """Whether two samples at once are answered like one."""
    try:
        both = session.run(None, {session.get_inputs()[0].name: np.concatenate([one, one])})[0]
    except Exception:  # it raises a class of its own per failure
        return False
    same = both.shape == (2, *answer.shape[1:])
    return bool(same and np.abs(both - answer).max() <= _SAME * max(1.0, float(np.abs(answer).max())))


def _require_same(model: onnx.ModelProto, origin: ForeignModel, samples: NDArray[Any]) -> None:
    ours, theirs = _run(_session(model, origin.file), samples, origin.file), origin.outputs(samples)
    apart = float(np.abs(ours - theirs).max())
    if apart > _SAME * max(float(theirs.std()), 1e-6 * float(np.abs(theirs).max()), 1e-12):
        raise UserError(
            f"its graph answers differently after preparation for quantization (by {apart:.3g})",
            where=origin.file,
            fix=f"export it again with opset {LOWEST_OPSET} or later",
        )
