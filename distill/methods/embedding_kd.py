"""Embeddings aligned with a teacher's space, and classes by their vectors there (Li and others, arXiv 2307.03135).

A class is a row of a stored matrix, as in PromptKD (arXiv 2403.02781): classes can be added to the trained student
without training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from distill.class_vectors import class_means, read_vectors
from distill.datasets.target import CLASSIFICATION
from distill.frozen import Answers
from distill.lab import Lab
from distill.methods.base import METHODS, Workload
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.networks.class_matrix import TEMPERATURE, ClassMatrix, unit
from distill.networks.registry import Model, NetworkChoice
from distill.taps import EMBED, Tap, embedding_tap, frozen_features, pooled, recomputes
from distill.training.features import Batch
from distill.training.phase import EVAL_BATCH
from mst_edge.core.errors import UserError

_FILE = "distill.options.class_matrix"


@dataclass(frozen=True)
class EmbeddingKdOptions(TeacherOptions):
    """``task_weight L_cls + mse_weight L_mse + contrast_weight L_im-cst + align_weight L_vlalign``.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        teacher_layer: dotted path of the teacher's embedding; empty takes the one that its own class vectors are for,
            else its embedding.
        class_matrix: file of the classes' vectors, float32 ``(classes, d)``, ``.npy`` or ``.safetensors``, such as text
            features; empty takes the teacher's own, or means of its embedding over each class's training samples.
        temperature: divides all cosines.
        top: classes of a sample that L_vlalign compares, those that the teacher ranks first.
        only_right: whether L_vlalign leaves out samples whose class the teacher does not rank first.
        task_weight, mse_weight, contrast_weight, align_weight: of the four.
    """

    teacher_layer: str = ""
    class_matrix: str = ""
    temperature: float = TEMPERATURE
    top: int = 256
    only_right: bool = False
    task_weight: float = 1.0
    mse_weight: float = 1.0
    contrast_weight: float = 1.0
    align_weight: float = 1.0


@METHODS.register("embedding_kd")
class EmbeddingKd(SingleTeacher):
    """The student is ``class_matrix`` around the encoder that the recipe names: it projects to the teacher's space, and
    its logits are cosines with the classes' vectors there.

    ``insights`` holds where the vectors come from, and how often the teacher's embedding is nearest to the right one.
    """

    name = "embedding_kd"
    tasks = (CLASSIFICATION,)
    Options: ClassVar[type] = EmbeddingKdOptions

    def __init__(self, lab: Lab, options: Any) -> None:
        super().__init__(lab, options)
        for name, low in (("temperature", 0.0), ("top", 0)):
            if getattr(options, name) <= low:
                raise UserError(
                    f"expected more than 0, received {getattr(options, name)}", where=f"distill.options.{name}"
                )

    def check(self) -> None:
        super().check()
        student = self.lab.new_student()
        if not hasattr(student.module, EMBED) or isinstance(student.module, ClassMatrix):
            raise UserError(
                f"{self.name} builds class_matrix around the student, and {student.network} cannot be inside it",
                where="student.network",
                fix="name a network with embed()",
            )
        self._given(self._teacher_tap(self.lab.new_teacher(self.teacher)).widths[0])

    def workload(self) -> list[Workload]:
        recomputed = recomputes(self.lab, self._teacher_tap(self.lab.new_teacher(self.teacher)))
        forward = [self.teacher] if recomputed else []
        return [
            *self.lone_teacher_work(),
            Workload(self.name, self.lab.epochs.student, trained=["student"], forward=forward),
        ]

    def train(self) -> Model:
        lab, options = self.lab, self.options
        tap = self._teacher_tap(lab.trained_teacher(self.teacher))
        frozen = frozen_features(lab, tap)
        vectors = self._class_vectors(tap, frozen)
        student = self._student(vectors)
        student_tap = Tap(student, [EMBED], lab.store.shapes, where="student.network")

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            logits, (own,) = student_tap(batch.inputs)
            (wanted,) = frozen(batch)
            task = lab.task.loss(logits, batch.target)
            with torch.autocast(own.device.type, enabled=False):
                return self.weighted({"task": task, **alignment(own, wanted, vectors, batch, options)})

        self.teach(student, step, reads=frozen.reads)
        return student

    def _teacher_tap(self, teacher: Model) -> Tap:
        """On the embedding that class vectors are compared with."""
        layer = self.options.teacher_layer or getattr(teacher.module, "class_space", "")
        return embedding_tap(self.lab, teacher, layer, where="distill.options.teacher_layer")

    def _student(self, vectors: Tensor) -> Model:
        """With the encoder weights that the student of any other method starts with."""
        said = self.lab.student
        options = {
            "encoder": {"network": said.network, "options": dict(said.options)},
            "dim": vectors.shape[1],
            "temperature": self.options.temperature,
        }
        student = self.lab.new_student(NetworkChoice("class_matrix", options))
        assert isinstance(student.module, ClassMatrix)
        student.module.set_vectors(vectors.cpu())
        return student

    def _given(self, width: int) -> Tensor | None:
        """What the recipe's file says."""
        file = self.options.class_matrix
        if not file:
            return None
        return read_vectors(Path(file), where=_FILE, rows=self.lab.task.num_outputs, width=width)

    def _class_vectors(self, tap: Tap, frozen: Answers) -> Tensor:
        """``(classes, d)`` of length 1 on the training device; notes in ``insights`` where they are from."""
        names, device = self.lab.task.output.names, self.lab.session.device
        found, origin = self._given(tap.widths[0]), f"file {self.options.class_matrix}"
        teacher: Any = tap.model.module
        if found is None and getattr(teacher, "class_space", "") == tap.layers[0]:
            found, origin = teacher.class_vectors().detach(), f"class vectors of the {self.teacher} teacher"
        if found is None:
            features, target = self._seen(frozen, "train")
            found = class_means(features, target, names, where=_FILE)
            origin = f"means of the {self.teacher} teacher's embedding over each class's training samples"
        vectors = unit(found.float()).to(device)
        features, target = self._seen(frozen, "val")
        near = (unit(features) @ vectors.cpu().T).argmax(dim=1)
        share = float((near == target).double().mean())
        text = (
            f"class vectors: {origin}. The teacher's embedding of a validation sample is nearest to that of its class "
            f"in {share:.1%} of cases"
        )
        chance = float(torch.bincount(target).max()) / len(target)
        level = "note" if share > chance else "warning"
        self.insights = {
            "class_vectors": {
                "from": origin,
                "teacher": self.teacher,
                "layer": tap.layers[0],
                "teacher_accuracy": share,
            },
            "notes": [{"level": level, "text": text}],
        }
        return vectors

    def _seen(self, frozen: Answers, split: str) -> tuple[Tensor, Tensor]:
        """``(samples, d)`` the teacher's embeddings and ``(samples,)`` the classes of a split, on the CPU."""
        store, device = self.lab.store, self.lab.session.device
        batches = store.in_order(split, EVAL_BATCH, frozen.reads, device)
        return torch.cat([pooled(frozen(batch)[0]).cpu() for batch in batches]), store.target(split)


def alignment(
    own: Tensor, wanted: Tensor, vectors: Tensor, batch: Batch, options: EmbeddingKdOptions
) -> dict[str, Tensor]:
    """What the student's embedding ``x`` learns from the teacher's ``c``, all of length 1, ``tau`` the temperature.

    ``mse``: ``||x - c||^2``, a mean over the batch. ``contrast`` (L_im-cst): the cross-entropy of finding ``c_i`` among
    all ``c`` of the batch by ``x_i . c / tau``, and the other way round, their mean. ``align`` (L_vlalign):
    ``KL(softmax(c W^T / tau) || softmax(x W^T / tau))`` over the classes that the teacher ranks first, a mean over the
    batch, in which samples that are left out count 0.

    Args:
        own: ``(B, d)`` x before it is of length 1. wanted: ``(B, d)`` likewise c. vectors: ``(C, d)`` W.
    """
    x, c, tau = unit(own.float()), unit(wanted.float()), options.temperature
    between = batch.gather(x) @ batch.gather(c).T / tau
    itself = torch.arange(len(between), device=between.device)
    contrast = (functional.cross_entropy(between, itself) + functional.cross_entropy(between.T, itself)) / 2
    theirs, top = (c @ vectors.T / tau).topk(min(options.top, len(vectors)), dim=1)
    ours = (x @ vectors.T / tau).gather(1, top)
    wished = theirs.log_softmax(dim=1)
    align = (wished.exp() * (wished - ours.log_softmax(dim=1))).sum(dim=1)
    if options.only_right:
        align = align * (top[:, 0] == batch.target)
    return {"mse": (x - c).square().sum(dim=1).mean(), "contrast": contrast, "align": align.mean()}
