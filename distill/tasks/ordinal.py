"""A number on an ordinal scale: the classes that it falls into, what a class head learns of it, and what is counted.

Sentiment of CMU-MOSI and CMU-MOSEI is the example: a number in [-3, 3], of which people report the accuracy over seven
classes. Two rules for these classes are in use and disagree on half of the range; both are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from mst_edge.core.errors import UserError
from mst_edge.core.scoring import is_signed

LabelMode = Literal["round", "sdk", "soft"]


def nearest_class(values: Tensor, centres: Tensor) -> Tensor:
    """Numbers of the nearest centres, any shape; of two equally near ones the even centre, as numpy rounds."""
    distance = (values[..., None] - centres).abs()
    nearest = distance == distance.amin(dim=-1, keepdim=True)
    # Of equally near centres, 0 before 1 before what is no whole number.
    parity = (centres % 2 != 0).to(distance.dtype).expand_as(distance)
    return torch.where(nearest, parity, torch.inf).argmin(dim=-1)


def sdk_class(values: Tensor, centres: Tensor) -> Tensor:
    """Numbers of the classes by the rule of the CMU Multimodal SDK: away from zero, with a class for exactly 0.

    ``sign(a) min(ceil|a|, n)`` for centres -n .. n: -0.01 is class -1, 0.01 class 1, 2.2 class 3.
    """
    most = len(centres) // 2
    return (values.sign() * values.abs().ceil().clamp_max(most)).long() + most


def split_between(values: Tensor, centres: Tensor) -> Tensor:
    """``(B, K)`` shares of the two centres about each of ``(B,)`` values, so that ``sum_k share_k b_k`` is the value.

    In float64 inside: the expectation keeps six digits.
    """
    y, b = values.double().clamp(centres[0], centres[-1]), centres.double()
    low = torch.bucketize(y, b, right=True).sub(1).clamp(0, len(b) - 2)
    upper = (y - b[low]) / (b[low + 1] - b[low])
    shares = torch.zeros(len(y), len(b), dtype=torch.float64, device=y.device)
    shares.scatter_(1, torch.stack([low, low + 1], dim=1), torch.stack([1 - upper, upper], dim=1))
    return shares.float()


def class_targets(values: Tensor, centres: Tensor, mode: LabelMode) -> Tensor:
    """``(B, K)`` what a class head over ``centres`` should say of ``(B,)`` numbers.

    Args:
        mode: ``round`` takes the nearest centre, ``sdk`` the SDK's rule, ``soft`` both neighbours in proportion.
    """
    if mode == "soft":
        return split_between(values, centres)
    classes = (nearest_class if mode == "round" else sdk_class)(values, centres)
    return functional.one_hot(classes, len(centres)).float()


def require_mode(mode: str, centres: Sequence[float]) -> None:
    """Refuses an unknown label mode, or the SDK's rule on a scale that it is not made for.

    Raises:
        UserError: says which are possible.
    """
    if mode not in get_args(LabelMode):
        raise UserError(f"unknown label mode {mode!r}", fix=f"one of: {', '.join(get_args(LabelMode))}")
    if mode == "sdk" and not is_signed(centres):
        raise UserError(
            f"the SDK's rule is for whole numbers from -n to n, the scale is {list(centres)}", fix="use round or soft"
        )


def expected_number(class_logits: Tensor, centres: Tensor) -> Tensor:
    """``(B, 1)`` expectation ``sum_k p_k b_k`` of class logits ``(B, K)``."""
    return class_logits.float().softmax(dim=1) @ centres[:, None]


class OrdinalMeter:
    """Counts for accuracy over the classes, and where the scale is signed, for the two kinds of binary accuracy and F1.

    As the MMSA toolkit does: ``acc_rounded`` clips both to the scale and rounds; ``has0`` compares ``>= 0``; ``non0``
    drops truths of exactly 0 and compares ``> 0``; F1 is the mean over both classes, weighted by their true shares.
    ``acc_sdk`` takes the classes of ``sdk_class``.
    """

    def __init__(self, centres: Sequence[float]) -> None:
        self._centres = torch.tensor(centres, dtype=torch.float32)
        self._signed = is_signed(centres)
        self._samples = 0
        self._right = torch.zeros(2, dtype=torch.int64)
        self._binary = torch.zeros(2, 4, dtype=torch.int64)

    def add(self, said: Tensor, truth: Tensor) -> None:
        """Counts ``(B,)`` answers and truths, in their own unit."""
        low, high = self._centres[0], self._centres[-1]
        rules = (nearest_class, sdk_class) if self._signed else (nearest_class,)
        self._samples += len(truth)
        for row, rule in enumerate(rules):
            classes = (rule(values.float().clamp(low, high), self._centres) for values in (said, truth))
            self._right[row] += torch.eq(*classes).sum()
        present = truth != 0
        self._binary[0] += _pairs(truth >= 0, said >= 0)
        self._binary[1] += _pairs(truth[present] > 0, said[present] > 0)

    def result(self) -> dict[str, float]:
        """Metrics by the keys of ``ordinal_metrics``."""
        rounded, sdk = (self._right / max(1, self._samples)).tolist()
        if not self._signed:
            return {"acc_rounded": rounded}
        found = {"acc_rounded": rounded, "acc_sdk": sdk}
        for name, counts in zip(("has0", "non0"), self._binary, strict=True):
            found |= {f"acc2_{name}": _accuracy(counts), f"f1_{name}": _weighted_f1(counts)}
        return found


def _pairs(truth: Tensor, said: Tensor) -> Tensor:
    """``(4,)`` counts of (false, false), (false, true), (true, false), (true, true); the truth first."""
    return torch.bincount(truth.long() * 2 + said.long(), minlength=4)


def _accuracy(counts: Tensor) -> float:
    """0 where nothing was counted."""
    return float((counts[0] + counts[3]) / counts.sum().clamp_min(1))


def _weighted_f1(counts: Tensor) -> float:
    """F1 of both classes, ``2 TP / (2 TP + FP + FN)``, each weighted by its true share."""
    wrong = counts[1] + counts[2]
    true = torch.stack([counts[0] + counts[1], counts[2] + counts[3]])
    right = torch.stack([counts[0], counts[3]])
    scores = 2 * right / (2 * right + wrong).clamp_min(1)
    return float((scores * true).sum() / true.sum().clamp_min(1))
