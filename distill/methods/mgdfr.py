"""Modality-general decisive features by ranking (Xue and others, ICLR 2023, arXiv 2206.06487)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distill.frozen import Answers, Frozen, as_logits
from distill.lab import freeze
from distill.methods.base import METHODS, Workload
from distill.methods.kd import KdOptions, KnowledgeDistillation
from distill.networks.registry import Model, find_layer
from distill.suffix import SplitModel, split_at
from distill.taps import maskable_layers
from distill.training.features import Batch
from distill.training.phase import Phase
from mst_edge.core.errors import UserError

_WHERE = "distill.options.teacher_layer"
_MOST_RANKED_BYTES = 256 << 20


@dataclass(frozen=True)
class MgdfrOptions(KdOptions):
    """Joint learning, ranking of the teacher's features, then ``(1 - alpha) CE + alpha KD``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        temperature, alpha: of the last stage, as in ``kd``.
        joint_share: share of the student's epochs that joint learning takes, at least one epoch and not
            all. The paper gives it a budget of its own and starts a new student afterwards; here the
            student goes on, so that it has as many epochs as that of any other method.
        teacher_layer: dotted path of the layer whose features are ranked; empty takes the last maskable one.
        removed: share of the features that are taken from the teacher, those that matter least.
        repeats: permutations that the ranking averages over.
        ranked_samples: at most so many training samples are used for the ranking; fewer where their label maps
            would take more than 256 MB.
    """

    joint_share: float = 0.3
    teacher_layer: str = ""
    removed: float = 0.75
    repeats: int = 10
    ranked_samples: int = 1024


@METHODS.register("mgdfr")
class DecisiveFeatures(KnowledgeDistillation):
    """The student imitates a teacher that keeps only the features which matter to what both can tell.

    1. Teacher, from its lone-trained weights, and student learn together and pull their logits toward each other.
    2. Each of the teacher's features is shuffled across samples: the farther that carries the teacher's
       logits from the student's, the more it matters to both.
    3. The others are replaced by their means, and the student learns from that teacher by plain KD.
    """

    name = "mgdfr"
    Options: ClassVar[type] = MgdfrOptions

    @property
    def joint_epochs(self) -> int:
        """Epochs of the first stage."""
        return self.lab.epochs.part_of_student(self.options.joint_share)

    def check(self) -> None:
        super().check()
        self._split(self.lab.new_teacher(self.teacher))

    def workload(self) -> list[Workload]:
        # The ranking runs only what lies above the layer, on few samples: it is not worth a line.
        joint, budget = self.joint_epochs, self.lab.epochs.student
        return [
            *self.lone_teacher_work(),
            Workload("mgdfr_joint", joint, trained=["student", self.teacher]),
            self.imitation_work("mgdfr", budget - joint),
        ]

    def train(self) -> Model:
        student, teacher = self.lab.new_student(), self.lab.learning_teacher(self.teacher)
        self._learn_together(student, teacher)
        pruned = self._prune(student, freeze(teacher))
        self.imitate(student, pruned, self.joint_epochs)
        return student

    def _learn_together(self, student: Model, teacher: Model) -> None:
        """``CE + CE + MSE`` of both logits, gradients into both (algorithm 1 of the paper, from memory)."""
        lab = self.lab

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            z_student, z_teacher = student(batch.inputs).float(), teacher(batch.inputs).float()
            losses = {
                "task_student": lab.task.loss(z_student, batch.target),
                "task_teacher": lab.task.loss(z_teacher, batch.target),
                "apart": functional.mse_loss(z_student, z_teacher),
            }
            return {"loss": torch.stack(list(losses.values())).sum(), **losses}

        lab.run(
            Phase(
                name="mgdfr_joint",
                epochs=self.joint_epochs,
                modules={"student": student.module, "teacher": teacher.module},
                optimizers=[
                    lab.optimizer.build([student.module], span=(0.0, self.joint_epochs / lab.epochs.student)),
                    lab.optimizer.build([teacher.module]),
                ],
                step=step,
                validate=lambda: {**lab.validate(student), **lab.validate(teacher, "val_teacher")},
                keep_best={},
                reads=sorted({*student.reads, *teacher.reads}),
            )
        )

    @torch.no_grad()
    def _prune(self, student: Model, teacher: Model) -> Mapping[str, Answers]:
        """Logits of the teacher without the features that matter least."""
        lab, options = self.lab, self.options
        split = self._split(teacher)
        rng = np.random.default_rng(lab.session.seed_for(self.name, "samples"))
        # All at once, since features are shuffled between samples: of label maps fewer fit.
        most = max(2, _MOST_RANKED_BYTES // (4 * math.prod(lab.task.logits_shape)))
        ids = rng.permutation(lab.store.splits["train"])[: min(options.ranked_samples, most)]
        batch = lab.store.gather(ids, sorted({*student.reads, *teacher.reads}), lab.session.device)
        _, kept = split.before(batch.inputs)
        torch.manual_seed(lab.session.seed_for(self.name, "permutations"))
        matters = saliency(split.after, kept, student(batch.inputs), options.repeats)
        removed = matters.argsort()[: int(options.removed * len(matters))]
        means = kept[0].mean(dim=0)
        self.insights = {
            "ranked_samples": len(ids),
            "features": len(matters),
            "removed": sorted(removed.tolist()),
            "saliency": matters.tolist(),
        }
        pruned = Frozen(
            what=f"{teacher.name} without features that matter least",
            compute=lambda inputs: (as_logits(split.after(without(split.before(inputs)[1], removed, means))),),
            reads=teacher.reads,
            networks=[teacher.module],
            facts={"layer": self._layer(teacher), "removed": removed.tolist(), "means": means.tolist()},
        )
        return {self.teacher: lab.keeper.answers(pruned)}

    def _split(self, teacher: Model) -> SplitModel:
        """The teacher, divided at the layer whose features are ranked."""
        layer = self._layer(teacher)
        find_layer(teacher.module, layer, where=_WHERE)
        split = split_at(teacher, layer)
        if split is None:
            raise UserError(
                f"teacher {teacher.name} cannot be split at layer {layer!r}, so its features cannot be ranked",
                where=_WHERE,
                fix="name a layer that runs once and whose path to the logits does not branch on values",
            )
        return split

    def _layer(self, teacher: Model) -> str:
        return self.options.teacher_layer or maskable_layers(teacher, where=_WHERE)[-1]


def saliency(
    after: Callable[[tuple[Tensor, ...]], Tensor], kept: Sequence[Tensor], student: Tensor, repeats: int
) -> Tensor:
    """``(C,)`` how much each feature matters to both networks, from 0 (least) to 1 (most).

    The mean over ``repeats`` permutations of the squared distance between the student's logits and those of the
    teacher with that feature shuffled across samples, then scaled to [0, 1].

    Args:
        after: the part of the teacher above its layer.
        kept: the layer's output ``(B, C)`` or ``(B, C, ...)``, then what bypasses the layer.
        student: ``(B, K, ...)`` logits.
    """
    feature, *bypass = kept
    total = torch.zeros(feature.shape[1])
    for _ in range(repeats):
        order = torch.randperm(len(feature)).to(feature.device)
        for index in range(len(total)):
            shuffled = feature.clone()
            shuffled[:, index] = feature[order, index]
            total[index] += functional.mse_loss(after((shuffled, *bypass)).float(), student.float()).cpu()
    return (total - total.min()) / (total.max() - total.min()).clamp_min(1e-12)


def without(kept: tuple[Tensor, ...], removed: Tensor, means: Tensor) -> tuple[Tensor, ...]:
    """The same tensors, the ``removed`` features of the first ``(B, C, ...)`` replaced by their means ``(C, ...)``."""
    feature, *bypass = kept
    pruned = feature.clone()
    pruned[:, removed] = means[removed].to(pruned.dtype)
    return pruned, *bypass
