"""A student cut into blocks, each of which can be exported and timed by itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.utils
import torch
from torch import Tensor, nn

from distill.student import Student
from mst_edge.core.files import atomic_path, sha256_file, sha256_json
from mst_edge.core.scoring import OutputSpec
from quantize.export import OPSET
from quantize.program import quiet
from quantize.variant import MODEL, InputSpec, Variant

UNREAD = OutputSpec("classification", ())  # nobody looks at what a block answers
_PLAIN = (bool, int, float, str)
_NOTHING = (nn.Identity, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Block:
    """A part of a student.

    Attributes:
        path: dotted, in the student.
        inputs: what it is called with for one sample.
        signature: equal for blocks that compute the same but for their weights.
    """

    path: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    signature: str


@torch.no_grad()
def cut(student: Student) -> list[Block]:
    """The front end, and the network's stem, blocks and head, a block for each time that one is called.

    Containers are opened as far as they hold more than single layers, so that a convolution stays with its norm and
    activation, as runtimes fuse them. What happens between blocks (means, sums) is in none.
    """
    calls = _calls(student)
    network = [block for path, child in student.network.named_children() for block in _blocks(path, child, calls)]
    parts = [(f"network.{path}", module, inputs) for path, module, inputs in network]
    if not parts:
        parts = [("network", student.network, inputs) for inputs, _ in calls[student.network]]
    if any(True for _ in student.frontend.buffers()):
        parts = [("frontend", student.frontend, calls[student.frontend][0][0]), *parts]
    return [Block(path, module, inputs, _signature(module, inputs)) for path, module, inputs in parts]


def overhead() -> Block:
    """A block that does next to nothing: what it takes is what every call of a model takes."""
    module, inputs = nn.ReLU(), (torch.zeros(1, 8),)
    return Block("", module, inputs, _signature(module, inputs))


_Calls = dict[nn.Module, list[tuple[tuple[Tensor, ...], bool]]]


def _calls(student: Student) -> _Calls:
    """What every module is called with, and whether tensors are all that goes in and comes out."""
    found: _Calls = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        plain = not options and all(isinstance(one, Tensor) for one in inputs) and isinstance(output, Tensor)
        found.setdefault(module, []).append((tuple(inputs), plain))

    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in student.modules()]
    try:
        frontend = student.frontend
        student.eval()(torch.zeros(1, *frontend.graph_shape, dtype=getattr(torch, frontend.graph_dtype)))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _blocks(path: str, module: nn.Module, calls: _Calls) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    seen, children = calls.get(module, []), dict(module.named_children())
    nested = isinstance(module, nn.Sequential) and any(any(True for _ in one.children()) for one in children.values())
    plain = seen and all(plain for _, plain in seen)
    if children and (nested or not plain):
        for name, child in children.items():
            yield from _blocks(f"{path}.{name}", child, calls)
    elif plain and not isinstance(module, _NOTHING):
        for inputs, _ in seen:
            yield path, module, inputs


def _signature(module: nn.Module, inputs: Sequence[Tensor]) -> str:
    """A hash of the block's structure, its code and the shapes that go in; not of its weights."""
    layers = [[name, *_about(layer)] for name, layer in module.named_modules()]
    state = [[name, list(value.shape), str(value.dtype)] for name, value in module.state_dict().items()]
    return sha256_json([layers, state, [[list(one.shape), str(one.dtype)] for one in inputs]])


def _about(layer: nn.Module) -> list[Any]:
    cls = type(layer)
    said = {name: repr(value) for name, value in vars(layer).items() if _is_plain(value) and name != "training"}
    code = "" if cls.__module__.startswith("torch.") else sha256_file(Path(inspect.getfile(cls)))
    return [cls.__qualname__, layer.extra_repr(), said, code]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(one) for one in value)
    return isinstance(value, _PLAIN)


class _SideBySide(nn.Module):
    """Blocks that have nothing to do with one another as one graph, each with one input and one flat output; what else
    a block reads is a constant."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block.module for block in blocks)
        self._rests = [block.inputs[1:] for block in blocks]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        parts = zip(self.blocks, inputs, self._rests, strict=True)
        return tuple(block(x, *rest).flatten(1) for block, x, rest in parts)


def export_blocks(blocks: Sequence[Block], folder: Path) -> list[Variant]:
    """Writes blocks as variants for one sample, with the weights that they have.

    They are exported together and then parted: an export takes about the same time for one block and for many.
    """
    names = [(f"x{number}", f"y{number}") for number in range(len(blocks))]
    with quiet():
        program = torch.onnx.export(
            _SideBySide(blocks).eval(),
            tuple(block.inputs[0] for block in blocks),
            dynamo=True,
            opset_version=OPSET,
            input_names=[x for x, _ in names],
            output_names=[y for _, y in names],
            verbose=False,
        )
    assert program is not None
    parts = onnx.utils.Extractor(program.model_proto)
    variants = []
    for block, (x, y) in zip(blocks, names, strict=True):
        first, place = block.inputs[0], folder / f"block-{x}"
        with atomic_path(place) as temporary:
            temporary.mkdir()
            onnx.save(parts.extract_model([x], [y]), temporary / MODEL)
        spec = InputSpec(x, "vector", tuple(first.shape[1:]), str(first.dtype).removeprefix("torch."))
        variants.append(Variant(place.name, "fp32", "fp32", "torch", place, spec, UNREAD, OPSET))
    return variants
