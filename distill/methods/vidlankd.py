"""VidLanKD's token objectives (Tang and others, NeurIPS 2021, arXiv 2107.02681): neuron selectivity and contrast.

A teacher that once learned from video as well reads the same text as the student, token by token: nothing has to be
paired with a video any more. What is new against the authors' code is listed in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.datasets.target import CLASSIFICATION, REGRESSION
from distill.methods.base import METHODS
from distill.methods.single_teacher import TeacherOptions
from distill.methods.tapped import Comparison, TappedMethod
from distill.networks.registry import Model
from distill.taps import Tap
from distill.tokens import TokenShape
from distill.training.features import Batch
from mst_edge.core.errors import UserError

TOKENS = "tokens"
_OPTIONS = "distill.options"


@dataclass(frozen=True)
class VidLanKdOptions(TeacherOptions):
    """``task_weight CE + nst_weight L_NST + contrast_weight L_contrast``; a weight of 0 leaves a term out.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        student_layer, teacher_layer: dotted path of a layer that gives ``(batch, channels, tokens)``; empty takes
            the network's ``tokens``, or the one inside it that reads the student's modality.
        task_weight: of the labels.
        nst_weight: of neuron selectivity transfer.
        contrast_weight: of telling a sentence's token from those at the same position of others in the batch.
        temperature: divides cosines in the contrast.
    """

    student_layer: str = ""
    teacher_layer: str = ""
    task_weight: float = 1.0
    nst_weight: float = 1.0
    contrast_weight: float = 1.0
    temperature: float = 1.0


@METHODS.register("vidlankd")
class VidLanKd(TappedMethod):
    """Each of the student's tokens takes its place among the sentence's, and finds the teacher's of the same text."""

    name = "vidlankd"
    tasks = (CLASSIFICATION, REGRESSION)
    Options: ClassVar[type] = VidLanKdOptions

    def check(self) -> None:
        if self.options.nst_weight == self.options.contrast_weight == 0:
            raise UserError("nst_weight and contrast_weight are both 0", where=_OPTIONS, fix="lone does the same")
        if self.options.temperature <= 0:
            raise UserError(
                f"expected more than 0, received {self.options.temperature}", where=f"{_OPTIONS}.temperature"
            )
        super().check()

    def taps(self, student: Model, teacher: Model) -> tuple[Tap, Tap]:
        modality = self.lab.student_modality
        shape = self.lab.store.shapes[modality]
        if isinstance(shape, TokenShape) and modality not in teacher.reads:
            raise UserError(
                f"the {teacher.name} teacher reads {' + '.join(teacher.reads)} and not the student's {modality}: its "
                "tokens are others",
                where=f"{_OPTIONS}.teacher",
                fix=f"choose a teacher that reads {modality}",
            )
        own, wanted = self._tap(student, "student_layer"), self._tap(teacher, "teacher_layer")
        count, of_teacher = _tokens(own), _tokens(wanted)
        if isinstance(shape, TokenShape) and count != shape[0]:
            raise UserError(
                f"layer {own.layers[0]} of the student gives {count} tokens, the text has {shape[0]}",
                where=f"{_OPTIONS}.student_layer",
            )
        if count != of_teacher:
            raise UserError(
                f"layer {own.layers[0]} of the student gives {count} tokens, {wanted.layers[0]} of the {teacher.name} "
                f"teacher {of_teacher}",
                where=f"{_OPTIONS}.teacher_layer",
                fix="name layers that give as many",
            )
        return own, wanted

    def _tap(self, model: Model, option: str) -> Tap:
        where = f"{_OPTIONS}.{option}"
        layer = getattr(self.options, option) or token_layer(model, self.lab.student_modality, where)
        return Tap(model, [layer], self.lab.store.shapes, where=where)

    def comparison(self, student: Tap, teacher: Tap) -> Comparison:
        return TokenComparison(student, teacher, self.options, self.lab.student_modality, self.lab.store.shapes)


def token_layer(model: Model, modality: str, where: str) -> str:
    """Dotted path of the layer that gives a vector per token: the network's ``tokens``, or of several inside it the one
    below what is named after the modality.

    Raises:
        UserError: there is none, or nothing says which.
    """
    found = [name for name, _ in model.module.named_modules() if name.split(".")[-1] == TOKENS]
    if TOKENS in found:
        return TOKENS
    others = set(model.reads) - {modality}
    own = [name for name in found if modality in name.split(".")]
    own = own or [name for name in found if not others & set(name.split("."))]
    if len(own) != 1:
        raise UserError(
            f"{model.network} of {model.name} names {f'{len(own)} layers' if own else 'no layer'} of tokens",
            where=where,
            fix=f"name one of {', '.join(own)}" if own else "take a transformer, text_bag or hf: network, or name one",
        )
    return own[0]


def _tokens(tap: Tap) -> int:
    (shape,) = tap.feature_shapes
    if len(shape) != 2:
        raise UserError(
            f"layer {tap.layers[0]} of {tap.model.name} gives {shape} per sample, not (channels, tokens)",
            where=_OPTIONS,
            fix="name a layer of tokens",
        )
    return shape[1]


class Head(nn.Sequential):
    """Linear, GELU, layer norm, linear: ``(..., width)`` to unit vectors ``(..., wanted)``."""

    def __init__(self, width: int, wanted: int) -> None:
        super().__init__(nn.Linear(width, wanted), nn.GELU(), nn.LayerNorm(wanted), nn.Linear(wanted, wanted))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return functional.normalize(x, dim=-1)


class TokenComparison(Comparison):
    """Both objectives, each with a head of its own on the student's tokens; the teacher's are made unit vectors."""

    def __init__(
        self,
        student: Tap,
        teacher: Tap,
        options: VidLanKdOptions,
        modality: str,
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        super().__init__()
        self._modality, self._temperature = modality, options.temperature
        shape = shapes[modality]
        self._padding = shape.padding if isinstance(shape, TokenShape) else None
        weights = {"nst": options.nst_weight, "contrast": options.contrast_weight}
        (width,), (wanted,) = student.widths, teacher.widths
        self.heads = nn.ModuleDict({name: Head(width, wanted) for name, weight in weights.items() if weight})

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        # Inside autocast the products would be rounded to bfloat16.
        with torch.autocast(student[0].device.type, enabled=False):
            h, t = student[0].transpose(1, 2), functional.normalize(teacher[0].transpose(1, 2), dim=2)
            real = self._real(h, batch)
            said = {name: _of_real(head, h, real) for name, head in self.heads.items()}
            losses = {}
            if "nst" in said:
                losses["nst"] = neuron_selectivity(said["nst"], t, real)
            if "contrast" in said:
                s, t, present = batch.gather(said["contrast"]), batch.gather(t), batch.gather(real.long()) > 0
                losses["contrast"] = token_contrast(s, t, present, self._temperature)
        return losses

    def _real(self, h: Tensor, batch: Batch) -> Tensor:
        """``(B, T)`` whether it is a token, and no padding."""
        if self._padding is None:
            return torch.ones_like(h[:, :, 0], dtype=torch.bool)
        return batch.inputs[self._modality] != self._padding


def _of_real(head: nn.Module, h: Tensor, real: Tensor) -> Tensor:
    """``(B, T, wanted)`` of ``(B, T, width)``; zeros for padding, on which no time is spent."""
    of_tokens = head(h[real])
    return of_tokens.new_zeros(*real.shape, of_tokens.shape[1]).masked_scatter(real[:, :, None], of_tokens)


def neuron_selectivity(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """Neuron selectivity transfer (Huang and Wang, arXiv 1707.01219, eq. 6) over the tokens of each sentence.

    A neuron is one channel's pattern over the sentence's tokens; the squared maximum mean discrepancy between the
    neurons of both networks with the kernel ``(a.b)^2`` is
    ``(||S'S||^2 - 2 ||S'T||^2 + ||T'T||^2) / d^2 = ||SS' - TT'||^2 / d^2`` for ``(tokens, d)`` S and T: rows are unit
    vectors, so it compares the cosines between tokens. Divided here by the number of pairs of tokens, not of neurons:
    neither width nor length of a sentence scales it.

    Args:
        student, teacher: ``(B, T, d)`` unit vectors. real: ``(B, T)`` whether it is a token, and no padding.

    Returns:
        The mean over sentences; one without tokens counts 0.
    """
    pairs = real[:, :, None] & real[:, None, :]
    apart = student @ student.transpose(1, 2) - teacher @ teacher.transpose(1, 2)
    total = torch.where(pairs, apart.square(), 0.0).sum(dim=(1, 2))
    return (total / pairs.sum(dim=(1, 2)).clamp_min(1)).mean()


def token_contrast(student: Tensor, teacher: Tensor, real: Tensor, temperature: float) -> Tensor:
    """``-log softmax`` of a token's cosine with the other network's of the same sentence, among those at the same
    position of all sentences that are as long; the mean over tokens and both directions (InfoNCE, arXiv 1807.03748).

    Args:
        student, teacher: ``(B, T, d)`` unit vectors. real: ``(B, T)`` whether it is a token, and no padding.
    """
    present = real.T
    visible = present[:, :, None] & present[:, None, :]
    scores = torch.einsum("itd,jtd->tij", student, teacher) / temperature
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    own = scores.diagonal(dim1=1, dim2=2)
    missed = (scores.logsumexp(dim=2) + scores.logsumexp(dim=1)) / 2 - own
    return torch.where(present, missed, 0.0).sum() / present.sum().clamp_min(1)
