"""The student as an ONNX file that takes what a device records (of text, its token ids), batch size free."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from distill.student import Student
from mst_edge.core.files import atomic_path
from quantize.program import quiet, write_program
from quantize.variant import FLOAT, MODEL, InputSpec, Variant

# The lowest opset that torch's exporter honours for every operator used here; TensorRT 8.6 reads it.
OPSET = 18
_FREE_BATCH = {"raw": {0: torch.export.Dim("batch", min=1, max=1 << 16)}}
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Graph:
    """An exported student, with the names of its nodes as a variant keeps them."""

    model: onnx.ModelProto
    float_nodes: tuple[str, ...]
    answer_nodes: tuple[str, ...]
    modules: dict[str, str]


def export_student(student: Student, folder: Path) -> Variant:
    """Writes the fp32 variant of ``student`` to ``folder``."""
    modality, frontend = student.spec.modality, student.frontend
    graph = to_onnx(student)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        onnx.save(graph.model, temporary / MODEL)
        variant = Variant(
            name="fp32",
            scheme="fp32",
            precision="fp32",
            backend="torch",
            folder=temporary,
            input=InputSpec(
                modality.name, modality.kind.value, frontend.graph_shape, frontend.graph_dtype, modality.sample_rate_hz
            ),
            output=student.spec.output,
            opset=OPSET,
            float_nodes=graph.float_nodes,
            answer_nodes=graph.answer_nodes,
            modules=graph.modules,
        )
        variant.save()
    return replace(variant, folder=folder)


def with_program(student: Student, variant: Variant) -> Variant:
    """Writes ``student`` as a torch program, too, beside the fp32 ``variant`` of it."""
    write_program(to_program(student), variant.program_file)
    both = replace(variant, program=FLOAT)
    both.save()
    return both


def to_program(student: Student) -> torch.export.ExportedProgram:
    """The graph of ``student`` in torch's own operators, batch size free."""
    with quiet():
        return torch.export.export(student.eval(), (_example(student),), dynamic_shapes=_FREE_BATCH)


def to_onnx(student: Student, translations: Mapping[Any, Callable[..., Any]] | None = None) -> Graph:
    """The graph of ``student``, batch size free.

    Args:
        translations: torch operators that the exporter does not know, to functions of onnxscript.
    """
    model = _export(student, translations).model_proto
    answer_nodes = tuple(_nodes_of("answer", model))
    float_nodes = (*front_end_nodes(model, student.prepares), *answer_nodes)
    modules = _modules(model)
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    return Graph(model, float_nodes, answer_nodes, modules)


def trace(student: Student) -> tuple[torch.export.ExportedProgram, str]:
    """What the exporter writes down as ONNX, in torch's own operators, and the name that it gives the output."""
    program = _export(student).exported_program
    assert program is not None
    return program, student.spec.output.graph_output


def _export(student: Student, translations: Mapping[Any, Callable[..., Any]] | None = None) -> torch.onnx.ONNXProgram:
    with quiet():
        program = torch.onnx.export(
            student.eval(),
            (_example(student),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[student.spec.modality.name],
            output_names=[student.spec.output.graph_output],
            dynamic_shapes=_FREE_BATCH,
            verbose=False,
            custom_translation_table=dict(translations or {}),
        )
    assert program is not None
    return program


def _example(student: Student) -> torch.Tensor:
    """Two samples: torch.export takes a batch of one for a constant."""
    frontend = student.frontend
    return torch.zeros(2, *frontend.graph_shape, dtype=getattr(torch, frontend.graph_dtype))


def front_end_nodes(model: onnx.ModelProto, modules: Sequence[str]) -> Iterator[str]:
    """Names of the nodes that make up the front end: those of its ``modules``, and everything that they read from."""
    producers = {output: node for node in model.graph.node for output in node.output}
    waiting = [node for node in model.graph.node if any(_is_in(module, node) for module in modules)]
    seen: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name not in seen:
            seen.add(node.name)
            waiting += [producers[name] for name in node.input if name in producers]
    return (node.name for node in model.graph.node if node.name in seen)


def _nodes_of(module: str, model: onnx.ModelProto) -> Iterator[str]:
    """Names of the nodes that a submodule of the student became. Eight bits cannot hold 300 +- 0.1 K."""
    return (node.name for node in model.graph.node if _is_in(module, node))


def _modules(model: onnx.ModelProto) -> dict[str, str]:
    """Dotted path of the innermost torch module that each node comes from."""
    paths = {node.name: _scopes(node)[:-1] for node in model.graph.node}
    return {name: path[-1] for name, path in paths.items() if path and path[-1]}


def _scopes(node: onnx.NodeProto) -> list[str]:
    """Paths of the modules that a node lies in, the outermost first, and its operator last."""
    said = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    scopes: list[str] = ast.literal_eval(said)
    return scopes


def _is_in(module: str, node: onnx.NodeProto) -> bool:
    return module in _scopes(node)


def strip(model: onnx.ModelProto) -> None:
    """Removes what the exporter notes about this machine's source files, and shapes it left stale."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
