"""Students that libraries quantize in torch, through torch.export: into the graph of a device."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mst_edge.core.errors import UserError
from quantize.calibration import Calibration
from quantize.layers import WEIGHTED, layers_of
from quantize.parity import MOST_MEAN_STEPS, Parity, run_onnx, steps_between
from quantize.program import quiet, write_program
from quantize.schemes.base import Material, Scheme, UnfitError
from quantize.variant import OUTPUTS, PROGRAM, Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill.student import Student
    from quantize.export import Graph

_BATCH = 16
_PARITY_SAMPLES = 64
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Features:
    """What the network reads of the calibration samples, in batches, as often as it is asked for."""

    student: Student
    calibration: Calibration

    def __iter__(self) -> Iterator[Tensor]:
        import torch

        with torch.no_grad():
            for batch in self.calibration.batches(_BATCH):
                yield self.student.frontend(torch.from_numpy(np.array(batch)))

    @property
    def example(self) -> Tensor:
        """Two samples."""
        import torch

        few = np.resize(self.calibration.inputs[:2], (2, *self.calibration.inputs.shape[1:]))
        with torch.no_grad():
            return self.student.frontend(torch.from_numpy(few))


class InTorch(Scheme):
    """A scheme whose library takes the torch student's network, and gives a module with rounding in it.

    The front end and the last step to physical units stay as they are. Subclasses write ``_rounded``.
    """

    precision = "int8"

    def _made(self, material: Material, out: Path) -> tuple[dict[str, Any], Variant]:
        """Quantizes and exports.

        Raises:
            UserError: there is no torch student.
            UnfitError: nothing was quantized, or ONNX Runtime does not compute what torch does.
        """
        from quantize.export import to_onnx, to_program

        student, source = material.student, material.model()
        if student is None:
            raise UserError(
                f"{self.name} quantizes the torch student, and there is only a graph",
                where="quantize.schemes",
                fix="give a run's folder, or take int8-static",
            )
        features = Features(student, material.calibration)
        with quiet():
            network, facts = self._rounded(student.network, features, _modules_of(material, source))
            rounded = _with_network(student, network)
            graph = to_onnx(rounded, _translations())
            write_program(to_program(rounded), out.with_name(PROGRAM))
        _require_int8(self.name, graph.model)
        modules = _call_alike(material.source, source, graph)
        onnx.save(graph.model, out)
        samples = material.calibration.inputs[:_PARITY_SAMPLES] if material.raw is None else material.raw
        wanted, found = _parity(rounded, np.array(samples), out)
        if found.mean_steps > MOST_MEAN_STEPS:
            steps = f"{found.mean_steps:.1f} of the output's 256 steps"
            raise UnfitError(f"what {self.name} makes is {steps} off in ONNX Runtime, of what torch computes with it")
        if material.raw is not None:
            np.save(out.with_name(OUTPUTS), wanted, allow_pickle=False)
        names = replace(
            material.source,
            float_nodes=graph.float_nodes,
            answer_nodes=graph.answer_nodes,
            modules=modules,
        )
        return {**facts, "parity_mean_steps": found.mean_steps, "parity_max_steps": found.max_steps}, names

    @abstractmethod
    def _rounded(
        self, network: nn.Module, features: Features, exclude: Sequence[str]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The network with QuantizeLinear and DequantizeLinear in it, batch size free; and how it was made.

        Args:
            exclude: paths in ``network`` of modules that stay in float.
        """

    def _write(self, material: Material, out: Path) -> dict[str, Any]:
        return self._made(material, out)[0]


def exported(network: nn.Module, example: Tensor) -> nn.Module:
    """The network as a graph of torch's operators, batch size free."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with torch.no_grad():
        return torch.export.export(network.eval(), (example,), dynamic_shapes=({0: batch},)).module()


def fold_weights(network: nn.Module) -> nn.Module:
    """Rounds weights once and for all; else the file holds them in float, and they are rounded as it is loaded."""
    import torch
    from torchao.quantization.pt2e.constant_fold import constant_fold

    operators = torch.ops.quantized_decomposed
    rounding = (operators.quantize_per_channel.default, operators.quantize_per_tensor.default)
    constant_fold(network, lambda node: node.target in rounding)
    return network


def _modules_of(material: Material, model: onnx.ModelProto) -> list[str]:
    """Paths below the network of the modules that excluded layers come from."""
    heads = {node.name for node in model.graph.node if node.op_type in (*WEIGHTED, "Gather")}
    paths = {material.source.modules[name] for name in material.excluded(model) if name in heads}
    return sorted(path.partition(".")[2] for path in paths)


def _with_network(student: Student, network: nn.Module) -> Student:
    from torchao.quantization.pt2e import allow_exported_model_train_eval

    other = copy.copy(student)
    other._modules = {**student._modules, "network": allow_exported_model_train_eval(network)}
    return other.eval()


def _translations() -> dict[Any, Callable[..., Any]]:
    """What torch's exporter does not know: weights in int8, with a scale per channel."""
    import torch
    from onnxscript import opset18

    def dequantize_per_channel(values: Any, scales: Any, zero_points: Any, axis: int, *_: Any) -> Any:
        return opset18.DequantizeLinear(values, scales, opset18.Cast(zero_points, to=onnx.TensorProto.INT8), axis=axis)

    return {torch.ops.quantized_decomposed.dequantize_per_channel.default: dequantize_per_channel}


def _require_int8(name: str, model: onnx.ModelProto) -> None:
    if not any(
        tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1 for tensor in model.graph.initializer
    ):
        raise UnfitError(f"{name} found no layer that it quantizes")


def _parity(rounded: Student, samples: NDArray[Any], file: Path) -> tuple[NDArray[Any], Parity]:
    """What torch says of the samples, and how far ONNX Runtime is from that."""
    from distill.student import InUnits, student_outputs

    wanted = np.concatenate(list(student_outputs(rounded, samples, _BATCH)))
    unit = rounded.answer.scale.numpy() if isinstance(rounded.answer, InUnits) else 1.0
    return wanted, steps_between(wanted / unit, run_onnx(file, samples) / unit)


def _call_alike(source: Variant, exact: onnx.ModelProto, graph: Graph) -> dict[str, str]:
    """Gives what a layer ends with the name that it has in the exact graph; returns the modules of the layers' heads.

    torch.export forgets modules when it exports for the second time, and numbers values anew. Both graphs run the same
    layers in the same order; where they do not, nothing is known.
    """
    layers = layers_of(exact, source.modules, source.float_nodes)
    own = layers_of(graph.model, {}, graph.float_nodes)
    if [layer.op for layer in layers] != [layer.op for layer in own]:
        return {}
    by_name = {node.name: node for node in graph.model.graph.node}
    outputs = {value.name for value in graph.model.graph.output}
    names: dict[str, str] = {}
    for layer, other in zip(layers, own, strict=True):
        *_, last = (by_name[name] for name in other.nodes if by_name[name].op_type not in _ROUNDING)
        if layer.output not in outputs:  # which has its name; where it is rounded, what is before that has another
            names[last.output[0]] = layer.output
    _rename(graph.model, names)
    heads = {other.nodes[0]: layer.nodes[0] for layer, other in zip(layers, own, strict=True)}
    return {name: source.modules[head] for name, head in heads.items() if head in source.modules}


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Renames values; one that has a name by chance that another gets is given a new one."""
    outputs = {value.name for value in model.graph.output}
    taken = set(names.values()) - set(names) - outputs
    names = {**{name: f"{name}_rounded" for name in taken}, **names}
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [name if name in outputs else names.get(name, name) for name in values]
