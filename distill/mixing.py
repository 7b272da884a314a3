"""What a teacher of several modalities says of samples that were never recorded together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distill.frozen import Frozen
from distill.lab import Lab
from distill.networks.registry import Model
from distill.training.features import Batch

_ROWS_AT_ONCE = 4096


class Mixer:
    """A frozen teacher that is asked about one modality of a sample beside the others of another.

    What a teacher with ``parts`` and ``join`` makes of each modality is computed once per sample, and kept; one without
    runs as a whole for every pair.
    """

    def __init__(self, lab: Lab, teacher: Model) -> None:
        self._teacher = teacher
        module: Any = teacher.module
        self._kept = None
        if hasattr(module, "join"):
            parts = Frozen(
                f"parts of {teacher.name}",
                lambda inputs: tuple(module.parts(inputs)[name] for name in teacher.reads),
                teacher.reads,
                [module],
                {"of": "parts"},
            )
            self._kept = lab.keeper.answers(parts)
        module.to(lab.session.device)

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that a batch must hold."""
        return self._teacher.reads if self._kept is None else self._kept.reads

    @torch.no_grad()
    def match_scores(self, batch: Batch, modality: str) -> Tensor:
        """``(B, B)``: ``u_ij``, the log-probability of sample i's class where ``modality`` is sample j's.

        It is high where the teacher would not notice the exchange. The batch is that of all processes.
        """
        parts = {name: batch.gather(part) for name, part in self._parts(batch).items()}
        target = batch.gather(batch.target)
        count = len(target)
        step = max(1, _ROWS_AT_ONCE // count)
        blocks = []
        for start in range(0, count, step):
            asked = target[start : start + step]
            mixed = {
                name: (part[None].expand(len(asked), *part.shape) if name == modality else _repeated(part, start, step))
                for name, part in parts.items()
            }
            logits = self._join({name: part.flatten(0, 1) for name, part in mixed.items()})
            said = logits.float().log_softmax(dim=1).reshape(len(asked), count, -1)
            blocks.append(said.gather(2, asked[:, None, None].expand(-1, count, 1))[:, :, 0])
        return torch.cat(blocks)

    def _parts(self, batch: Batch) -> Mapping[str, Tensor]:
        if self._kept is None:
            return {name: batch.inputs[name] for name in self._teacher.reads}
        # Scores are compared by small differences: parts that were computed in bfloat16 are joined in float32.
        return {name: part.float() for name, part in zip(self._teacher.reads, self._kept(batch), strict=True)}

    def _join(self, parts: Mapping[str, Tensor]) -> Tensor:
        module: Any = self._teacher.module
        said: Tensor = self._teacher(parts) if self._kept is None else module.join(parts)
        return said


def _repeated(part: Tensor, start: int, step: int) -> Tensor:
    """``(rows, B, ...)``: some samples' parts, each for all candidates."""
    rows = part[start : start + step]
    return rows[:, None].expand(len(rows), *part.shape)
