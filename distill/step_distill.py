"""Step distillation: classes teach a number inside the teacher, and that number alone teaches the student.

The order of the two steps is published (VideoAdviser, arXiv 2309.15494, abstract); its equations are not. These are a
reconstruction: docs/videoadviser.md says what is whose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor
from torch.nn import functional

from distill.tasks.ordinal import LabelMode, class_targets, expected_number

Distance = Literal["mse", "l1", "huber"]
_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
}


def distance_of(learner: Tensor, wanted: Tensor, kind: Distance) -> Tensor:
    """Mean over a batch of how far ``(B, 1)`` numbers are from what is wanted, which gets no gradient."""
    return _DISTANCES[kind](learner.float(), wanted.detach().float())


def first_step(
    class_logits: Tensor, number: Tensor, target: Tensor, centres: Tensor, labels: LabelMode, kind: Distance = "mse"
) -> dict[str, Tensor]:
    """Inside the teacher: ``CE(l, target(y))``, ``|r - y|`` and ``(r - sg[m])^2`` with ``m = sum_k p_k b_k``.

    The stop-gradient lets the class head teach the number and never the other way round.

    Args:
        class_logits: ``(B, K)``. number, target: ``(B, 1)`` in the label's unit. centres: ``(K,)``, rising.

    Returns:
        ``classes``, ``number`` and ``step``, unweighted.
    """
    wanted = class_targets(target[:, 0], centres, labels)
    return {
        "classes": functional.cross_entropy(class_logits.float(), wanted),
        "number": functional.l1_loss(number.float(), target),
        "step": distance_of(number, expected_number(class_logits, centres), kind),
    }
