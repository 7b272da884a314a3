"""VideoAdviser for audio-visual retrieval: two small branches that a teacher of both modalities advises.

A reconstruction after the abstract of arXiv 2309.15494 (docs/videoadviser.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from distill.methods.base import METHODS
from distill.methods.two_branches import Objective, TwoBranches, TwoBranchOptions
from distill.retrieval import hardest_triplets
from distill.training.features import Batch


@dataclass(frozen=True)
class AdviserRetrievalOptions(TwoBranchOptions):
    """``task_weight (CE + CE) + advice_weight (KD + KD) + pair_weight`` times what pairs the two branches' logits.

    Attributes:
        teacher: ``multimodal``, or what a cross-modal teacher reads; empty takes the main one.
        partner: modality that is searched, and searches; empty takes the first that the student does not read. Its
            network is that of the cross-modal teacher.
        embedding: what cosines compare: ``logits``, or the ``probabilities`` that these stand for.
        pairs: ``triplet``, the hardest in a batch, or ``cosine``, one minus that of each pair.
        margin: of the triplets, between unit vectors.
        task_weight, advice_weight, pair_weight: of labels, teacher and pairs.
        temperature: of KD.
    """

    pairs: Literal["triplet", "cosine"] = "triplet"
    margin: float = 1.2
    advice_weight: float = 1.0
    pair_weight: float = 1.0
    temperature: float = 4.0


@METHODS.register("adviser_retrieval")
class AdviserRetrieval(TwoBranches):
    """Both branches imitate the teacher, and learn to find each other."""

    name = "adviser_retrieval"
    Options: ClassVar[type] = AdviserRetrievalOptions

    def objective(self) -> tuple[Objective, Sequence[str]]:
        (advice,) = self.answers().values()

        def losses(z: Tensor, other: Tensor, batch: Batch, _epoch: int) -> dict[str, Tensor]:
            return self.losses(z, other, advice.logits(batch), batch)

        return losses, advice.reads

    def losses(self, z: Tensor, other: Tensor, advice: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``task``, ``advice`` and ``pair``, unweighted.

        Args:
            z, other: ``(B, classes)`` logits of student and partner. advice: of the teacher.
        """
        task, options = self.lab.task, self.options
        ours, theirs = self.embed(batch.gather(z)), self.embed(batch.gather(other))
        target = batch.gather(batch.target)
        pair = (
            hardest_triplets(ours, theirs, target, options.margin)
            if options.pairs == "triplet"
            else 1 - functional.cosine_similarity(ours, theirs, dim=1).mean()
        )
        return {
            "task": task.loss(z, batch.target) + task.loss(other, batch.target),
            "advice": task.kd(z, advice, options.temperature) + task.kd(other, advice, options.temperature),
            "pair": pair,
        }
