"""An int8 graph as a torch module that computes the same and learns."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.student import Student
from quantize.qat.graph import Constant, Grid, read_network
from quantize.variant import Variant

# A range has to move by a good part of itself while weights move by little.
_PACE = 10.0


class Range(nn.Module):
    """Fake quantization with learned steps.

    The gradient of a step is that of learned step size quantization (Esser and others, arXiv 1902.08153), which torch
    computes. What learns is the logarithm of a step over the calibrated one (as in Jain and others, arXiv 1903.08066):
    a step cannot become negative, and a learning rate means the same for small and for large ones. The zero point
    stays: a ReLU that quantization took over ends at it.
    """

    calibrated: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid, *, learns: bool) -> None:
        super().__init__()
        self.register_buffer("calibrated", grid.scale)
        self.register_buffer("zero_point", grid.zero_point.float())
        self.stretch = nn.Parameter(torch.zeros_like(grid.scale), requires_grad=learns)
        self._grid = grid

    @property
    def scale(self) -> Tensor:
        """``(1,)`` or ``(channels,)`` steps, as they are written into the file."""
        return self.calibrated * (_PACE * self.stretch).exp()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded. Its gradient passes straight through, but not where a number was cut off."""
        # The gradient is not damped by the number of elements, as the paper does for SGD: it would sink below what
        # Adam takes for nothing.
        x, scale, grid = x.float(), self.scale, self._grid
        if grid.axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(x, scale, self.zero_point, grid.low, grid.high, 1.0)
        return torch._fake_quantize_learnable_per_channel_affine(
            x, scale, self.zero_point, grid.axis, grid.low, grid.high, 1.0
        )

    def levels(self, x: Tensor) -> Tensor:
        """The integers that ``x`` is rounded to, as float32."""
        shape = [1] * x.ndim
        if self._grid.axis is not None:
            shape[self._grid.axis] = -1
        return (self(x) / self.scale.reshape(shape) + self.zero_point.reshape(shape)).round()


class Twin(nn.Module):
    """The network of an int8 file: features ``(batch, ...)`` to logits ``(batch, ...)``, rounded as int8 rounds.

    Its Q/DQ pairs are those of the file: what a runtime fuses is what was trained. Weights, biases and ranges learn.
    Batch norms that the exporter could not fold keep their statistics; dropout is gone. The front end and the way to
    physical units stay outside: they are in float.

    Attributes:
        constants: what the file holds, by the name of the value that operators read.
    """

    def __init__(self, exact: Variant, int8: Path, fixed: Collection[str] = (), *, as_stored: bool = False) -> None:
        """Reads both files.

        Args:
            exact: the fp32 variant that ``int8`` was made from: training starts with its weights.
            int8: an ONNX file with QDQ.
            fixed: names of its initializers that do not learn.
            as_stored: training starts with what the file's integers stand for.

        Raises:
            UserError: a layer that cannot be trained; names it.
        """
        super().__init__()
        network = read_network(exact, int8, fixed, as_stored=as_stored)
        self.constants = network.constants
        self._network = network
        self._ranges = nn.ModuleDict(
            {_key(name): Range(grid, learns=name in network.learned_grids) for name, grid in network.grids.items()}
        )
        self._weights = nn.ParameterDict(
            {_key(name): _parameter(constant) for name, constant in network.constants.items()}
        )

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.values(features)[self.output]
        return logits

    @property
    def output(self) -> str:
        """The file's name for the logits."""
        return self._network.output

    def values(self, features: Tensor) -> dict[str, Any]:
        """All that it computes, by the names that the file has for it."""
        network = self._network
        values: dict[str, Any] = {"": None, network.input: features, **network.sizes}
        values |= {name: self.weight(name) for name in network.constants}
        for step in network.steps:
            inputs = [values[name] for name in step.inputs]
            values[step.output] = self.range(step.scale)(*inputs) if step.scale else step.compute(inputs)
        return values | {name: values[of] for name, of in network.same.items() if of in values}

    def range(self, scale: str) -> Range:
        """The range whose steps the file keeps under the name ``scale``."""
        found = self._ranges[_key(scale)]
        assert isinstance(found, Range)
        return found

    @property
    def range_names(self) -> list[str]:
        """The names under which the file keeps steps of ranges."""
        return list(self._network.grids)

    @property
    def output_step(self) -> float | None:
        """The step of the logits; None where they are in float."""
        last = self._network.steps[-1]
        return self.range(last.scale).scale.item() if last.scale else None

    def exact_weight(self, name: str) -> Tensor:
        """A constant in float, as it learns."""
        return self._weights[_key(name)]

    def weight(self, name: str) -> Tensor:
        """A constant as the network computes with it: rounded where the file holds integers."""
        constant, exact = self.constants[name], self.exact_weight(name)
        if constant.scale:
            return self.range(constant.scale)(exact)
        if not constant.bias_scale:
            return exact
        step = self.bias_step(constant)
        return exact + ((exact / step).round() * step - exact).detach()

    def bias_step(self, bias: Constant) -> Tensor:
        """``(1,)`` or ``(channels,)`` steps of a bias: those of the products that it is added to."""
        of_input, of_weight = (self.range(name).scale.detach() for name in bias.added_to)
        return of_input * of_weight


def fake_quantized(student: Student, exact: Variant, int8: Path, *, as_stored: bool = False) -> Student:
    """The student with int8's rounding in its network, which is a ``Twin``; front end and answer are the student's.

    Args:
        exact: its fp32 variant.
        int8: an ONNX file with QDQ, made from that.
        as_stored: it computes what the file does; otherwise it starts with the student's own weights, rounded.

    Raises:
        UserError: a layer that cannot be trained; names it.
    """
    rounded = Student(student.spec)
    rounded.frontend.load_state_dict(student.frontend.state_dict())
    rounded.answer.load_state_dict(student.answer.state_dict())
    # What is no parameter of the student does not learn.
    rounded.network = Twin(exact, int8, fixed=[name for name, _ in student.named_buffers()], as_stored=as_stored)
    return rounded.eval()


def _key(name: str) -> str:
    """A name without the dots that torch gives a meaning to."""
    return name.replace(".", ":")


def _parameter(constant: Constant) -> nn.Parameter:
    start = constant.start
    # The layout that convolutions over two axes train fastest in on a CPU.
    layout = torch.channels_last if start.ndim == 4 else torch.contiguous_format
    return nn.Parameter(start.contiguous(memory_format=layout), requires_grad=constant.learns)
