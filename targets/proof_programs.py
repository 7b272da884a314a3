"""The tiny model of ``targets.proof`` as a torch program, for runtimes that compile those. Written where it is needed:
torch is there then, and its file format is no promise to later versions."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn
from torch.nn import functional

from quantize.program import quiet, write_program
from quantize.variant import FLOAT, PROGRAM, X86
from targets.proof import bias, expected, sample, weight


def write_proof(folder: Path, precision: str, forms: Collection[str]) -> str:
    """Writes the model as one of ``forms`` of programs; returns which one, empty where none has this precision."""
    wanted = [form for form in forms if (form == FLOAT) == (precision == "fp32")]
    if precision not in ("fp32", "int8") or not wanted:
        return ""
    with quiet():
        program = torch.export.export(_Proof(wanted[0]), (torch.from_numpy(sample()),))
    write_program(program, folder / PROGRAM)
    return wanted[0]


class _Proof(nn.Module):
    """A linear layer with ReLU; in int8 with rounding before, after, and of the weights, in the form of ``form``."""

    weight: Tensor
    ones: Tensor
    zeros: Tensor
    bias: Tensor

    def __init__(self, form: str) -> None:
        super().__init__()
        held = torch.from_numpy(weight().T.copy())
        self.rounds = form != FLOAT
        self.kind, self.least = (torch.uint8, 0) if form == X86 else (torch.int8, -128)
        self.register_buffer("weight", held.to(torch.int8) if self.rounds else held)
        self.register_buffer("ones", torch.ones(len(held)))
        self.register_buffer("zeros", torch.zeros(len(held), dtype=torch.int64))
        self.register_buffer("bias", torch.from_numpy(bias()))

    def forward(self, rows: Tensor) -> Tensor:
        if not self.rounds:
            return torch.relu(functional.linear(rows, self.weight, self.bias))
        operators = torch.ops.quantized_decomposed
        held = operators.dequantize_per_channel(self.weight, self.ones, self.zeros, 0, -127, 127, torch.int8)
        answer = torch.relu(functional.linear(self._rounded(rows, 1.0), held, self.bias))
        return self._rounded(answer, float(expected().max()) / 100)

    def _rounded(self, values: Tensor, scale: float) -> Tensor:
        operators = torch.ops.quantized_decomposed
        span = (self.least, self.least + 255, self.kind)
        levels = operators.quantize_per_tensor(values, scale, 0, *span)
        rounded: Tensor = operators.dequantize_per_tensor(levels, scale, 0, *span)
        return rounded
