"""Runtimes that compile the torch program of a student of ours, and run it with torch beside them.

What they build is measured, judged and reported like any other build; no bundle carries it, for bundles run without
torch.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantize.program import read_program
from quantize.variant import Variant
from targets.runtimes.base import Runtime

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class ProgramRuntime(Runtime):
    """Subclasses compile what ``_one_sample`` gives, and write ``_answer`` in place of ``_run``.

    The program is for one sample: XNNPACK refuses shapes other than those that it was compiled for, and one is what a
    device has. A batch runs sample by sample.
    """

    deployable = False

    def _one_sample(self, variant: Variant, device: str = "cpu") -> ExportedProgram:
        """The variant's program for a batch of one, weights in torch's usual order (training keeps them in others)."""
        import torch
        from torch.export.passes import move_to_device_pass

        module = read_program(variant.program_file).module()
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        zeros = torch.zeros(1, *variant.input.sizes, dtype=getattr(torch, variant.input.dtype))
        with torch.no_grad():
            program = torch.export.export(module, (zeros,))
        return program if device == "cpu" else move_to_device_pass(program, device)

    def write_proof(self, folder: Path, precision: str) -> str:
        from targets.proof_programs import write_proof

        return write_proof(folder, precision, self.programs)

    def _run(self, handle: Any, batch: NDArray[Any]) -> NDArray[np.float32]:
        answers = [self._answer(handle, batch[row : row + 1]) for row in range(len(batch))]
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    @abstractmethod
    def _answer(self, handle: Any, sample: NDArray[Any]) -> NDArray[np.float32]:
        """``(1, *input)`` to ``(1, outputs)``, an array of its own."""
