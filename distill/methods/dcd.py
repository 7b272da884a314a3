"""Dynamic contrastive distillation for retrieval (Rao and others, arXiv 2207.01426): a reconstruction.

Known of the paper: a fusion teacher finds hard pairs for a student of two towers, whose contrastive loss sees few
negatives, and samples weigh by their difficulty for the student as it is. Its formulas could not be obtained; those
below are ours, and so is the match score of a teacher that tells classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from distill.lab import Lab
from distill.methods.base import METHODS
from distill.methods.two_branches import Objective, TwoBranches, TwoBranchOptions
from distill.mixing import Mixer
from distill.training.features import Batch
from mst_edge.core.errors import UserError

_LEAST_WEIGHT, _MOST_WEIGHT = 0.2, 5.0
_TINY = 1e-12


@dataclass(frozen=True)
class DcdOptions(TwoBranchOptions):
    """``task_weight (CE + CE) + contrast_weight InfoNCE + match_weight KL``, the last two weighted by difficulty.

    Attributes:
        teacher: one that reads both modalities; empty takes ``multimodal``.
        partner: modality that is searched, and searches; empty takes the first that the student does not read. Its
            network is that of the cross-modal teacher.
        embedding: what cosines compare: the ``probabilities`` of the classes, or the ``logits`` that these come from:
            a cosine's gradient grows as they shrink, and at a sharp temperature labels then have little say.
        negatives: candidates of a batch that each query is told apart from, those that the teacher matches best.
        mined: among ``other_classes``, or among ``all`` samples but the query's own, where pairs count, not classes.
        temperature: divides the student's cosines. teacher_temperature: divides the teacher's match scores.
        task_weight, contrast_weight, match_weight: of labels, of finding the query's own pair, and of the teacher's
            scores.
    """

    embedding: Literal["logits", "probabilities"] = "probabilities"
    negatives: int = 8
    mined: Literal["other_classes", "all"] = "other_classes"
    temperature: float = 0.07
    teacher_temperature: float = 1.0
    contrast_weight: float = 1.0
    match_weight: float = 1.0


@METHODS.register("dcd")
class DynamicContrastive(TwoBranches):
    """Each branch tells a query's own pair from those that a teacher of both modalities finds most like it."""

    name = "dcd"
    Options: ClassVar[type] = DcdOptions

    def __init__(self, lab: Lab, options: Any) -> None:
        super().__init__(lab, options)
        for name in ("negatives", "temperature", "teacher_temperature"):
            if getattr(options, name) <= 0:
                raise UserError(
                    f"expected more than 0, received {getattr(options, name)}", where=f"distill.options.{name}"
                )
        reads, _ = lab.teachers[self.teacher]
        if not {lab.student_modality, self.partner} <= set(reads):
            raise UserError(
                f"the {self.teacher} teacher cannot match {lab.student_modality} with {self.partner}: it reads "
                f"{', '.join(reads)}",
                where="distill.options.teacher",
                fix="leave it out: the multimodal teacher reads both",
            )

    def objective(self) -> tuple[Objective, Sequence[str]]:
        lab, options = self.lab, self.options
        mixer = Mixer(lab, lab.trained_teacher(self.teacher))

        def losses(z: Tensor, other: Tensor, batch: Batch, epoch: int) -> dict[str, Tensor]:
            ours, theirs = (self.embed(batch.gather(logits)).float() for logits in (z, other))
            target = batch.gather(batch.target)
            gamma = epoch / max(1, lab.epochs.student - 1)
            with torch.autocast(z.device.type, enabled=False):
                similar = functional.normalize(ours, dim=1) @ functional.normalize(theirs, dim=1).T
                there = contrast(similar, mixer.match_scores(batch, self.partner), target, gamma, options)
                back = contrast(similar.T, mixer.match_scores(batch, lab.student_modality), target, gamma, options)
            return {
                "task": lab.task.loss(z, batch.target) + lab.task.loss(other, batch.target),
                "contrast": (there[0] + back[0]) / 2,
                "match": (there[1] + back[1]) / 2,
            }

        return losses, mixer.reads


def contrast(
    similar: Tensor, match: Tensor, target: Tensor, gamma: float, options: DcdOptions
) -> tuple[Tensor, Tensor]:
    """InfoNCE and KL over each query's own pair and its hardest candidates: scalars, weighted by difficulty.

    Of query i, ``C_i`` holds i and the candidates of the highest ``match``. With ``s`` over ``temperature`` and ``u``
    over ``teacher_temperature``: ``NCE_i = -log softmax(s_i,C)[i]``, ``KL_i = KL(softmax(u_i,C) || softmax(s_i,C))``,
    ``w_i = sg[KL_i / mean KL]^gamma`` within [0.2, 5]; the losses are the means of ``w_i NCE_i`` and of ``w_i KL_i``.
    A query without candidates counts 0.

    Args:
        similar: ``(B, B)`` cosines s_ij of query i and candidate j. match: ``(B, B)`` the teacher's u_ij.
        target: ``(B,)`` classes. gamma: from 0 at the start of training to 1 at its end: easy ones first.
    """
    itself = torch.arange(len(target), device=target.device)
    barred = target[:, None] == target if options.mined == "other_classes" else itself[:, None] == itself
    hardest = match.masked_fill(barred, -torch.inf).topk(min(options.negatives, len(target) - 1), dim=1).indices
    chosen = torch.cat([itself[:, None], hardest], dim=1)
    out = torch.cat([torch.zeros_like(itself[:, None], dtype=torch.bool), barred.gather(1, hardest)], dim=1)
    student = (similar.gather(1, chosen) / options.temperature).masked_fill(out, -torch.inf).log_softmax(dim=1)
    wished = (match.gather(1, chosen) / options.teacher_temperature).masked_fill(out, -torch.inf).log_softmax(dim=1)
    apart = torch.where(out, 0.0, wished - student.masked_fill(out, 0.0))
    divergence = (wished.exp() * apart).sum(dim=1)
    weight = (divergence.detach() / divergence.detach().mean().clamp_min(_TINY)) ** gamma
    weight = weight.clamp(_LEAST_WEIGHT, _MOST_WEIGHT)
    return -(weight * student[:, 0]).mean(), (weight * divergence).mean()
