"""Options of MST-Distill: what each means, the published values, and which of them contradict each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.lab import MULTIMODAL
from mst_edge.core.errors import UserError, unknown_name

WHERE = "distill.options"


@dataclass(frozen=True)
class MstOptions:
    """Defaults are the ``improved`` preset; ``PAPER`` holds what the published method does instead.

    Attributes:
        temperature: of every distillation term.
        teachers: who takes part, in all stages: ``all``, the ``multimodal`` one, or the ``cross_modal`` ones.
        mask: ``full`` as published, ``compact`` (linear in the layer's width), or ``none``: no stage 2, and
            stage 3 listens to the teachers themselves.
        layers: teacher name to dotted paths of masked layers; a teacher's own ``maskable`` where absent.
        masked_layers: how many of a teacher's layers get a mask.
        mutual: stage 1: ``both`` sides of a mutual term learn, or only the ``learner``.
        mutual_weight: weight of the mutual terms of stage 1.
        teacher_weights: which stage-1 weights teachers keep: of the ``last`` epoch or of the ``best``.
        router: ``linear`` learns from the balance loss alone, as published; ``evidence`` learns from the
            teachers' own task loss which of them is right; ``mean`` is none: every sample listens to all alike.
        top_k: how many teachers each sample listens to.
        task_weight, kd_weight, balance_weight: initial weights of stage 3.
        kd_decay, balance_decay: factor and period in epochs; applied after epoch 0, period, ...
        mask_lr: learning rate of masks; 0 takes the optimiser's.
    """

    temperature: float = 4.0
    teachers: Literal["all", "multimodal", "cross_modal"] = "all"
    mask: Literal["full", "compact", "none"] = "compact"
    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    masked_layers: int = 2
    mutual: Literal["both", "learner"] = "both"
    mutual_weight: float = 1.0
    teacher_weights: Literal["last", "best"] = "best"
    router: Literal["linear", "evidence", "mean"] = "evidence"
    top_k: int = 1
    task_weight: float = 1.0
    kd_weight: float = 1.0
    balance_weight: float = 0.1
    kd_decay: tuple[float, int] = (1.0, 30)
    balance_decay: tuple[float, int] = (1.0, 10)
    mask_lr: float = 0.0

    def chosen_teachers(self, known: Iterable[str]) -> list[str]:
        """Those of the ``known`` teachers that take part, in their order."""
        return [name for name in known if self.teachers in ("all", _kind(name))]


PAPER: Mapping[str, Any] = {
    "mask": "full",
    "teacher_weights": "last",
    "router": "linear",
    "balance_weight": 1.0,
    "kd_decay": (0.5, 30),
    "balance_decay": (0.9, 10),
}


def check_options(options: MstOptions, known: Sequence[str]) -> None:
    """Refuses options that make no sense together, given the ``known`` teachers.

    Raises:
        UserError: names the option at fault and its mend.
    """
    for name in options.layers:
        if name not in known:
            raise unknown_name("teacher", name, known, where=f"{WHERE}.layers")
        if name not in options.chosen_teachers(known):
            raise UserError(
                f"teacher {name!r} takes no part with teachers: {options.teachers}",
                where=f"{WHERE}.layers",
                fix=f"leave {name!r} out, or set teachers: all",
            )
    if options.mask == "none":
        for key, said in (("layers", options.layers), ("mask_lr", options.mask_lr)):
            if said:
                raise UserError(
                    "says something of masks, but mask is none",
                    where=f"{WHERE}.{key}",
                    fix="leave it out, or set mask: compact or mask: full",
                )
    elif options.masked_layers < 1:
        raise UserError(
            f"expected at least 1, received {options.masked_layers}",
            where=f"{WHERE}.masked_layers",
            fix="to train no masks, set mask: none",
        )
    if options.router == "mean" and options.top_k != 1:
        raise UserError(
            f"router mean listens to every teacher, received top_k {options.top_k}",
            where=f"{WHERE}.top_k",
            fix="leave it out, or set router: evidence or router: linear",
        )


def check_top_k(options: MstOptions, teachers: int) -> None:
    """Refuses to listen to more teachers than the ``teachers`` specialised ones that there are.

    Raises:
        UserError: there are none, or ``top_k`` is not between 1 and their number.
    """
    if teachers == 0:
        raise UserError(
            "no teacher has a layer that may be masked",
            where=f"{WHERE}.layers",
            fix="name layers of your teachers, or set mask: none",
        )
    if not 1 <= options.top_k <= teachers:
        raise UserError(
            f"expected 1 to {teachers}, the number of specialised teachers, received {options.top_k}",
            where=f"{WHERE}.top_k",
        )


def ablations(options: MstOptions, specialised: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Label to the options that differ, for a table of what each part of the method is worth.

    A part that ``options`` do without already has no row. Where fewer teachers are left than each sample
    listens to, ``top_k`` shrinks with them.

    Args:
        specialised: teacher that takes part to the number of specialised teachers it gives.
    """
    rows: dict[str, dict[str, Any]] = {}
    if options.mask != "none":
        left = min(options.top_k, len(specialised))
        rows["no masks"] = {"mask": "none", "layers": {}, "mask_lr": 0.0, "top_k": left}
    if options.router != "mean":
        rows["no router"] = {"router": "mean", "top_k": 1}
    if options.teachers == "all":
        for label, kind in (("multimodal", "multimodal"), ("cross-modal", "cross_modal")):
            layers = {name: paths for name, paths in options.layers.items() if _kind(name) == kind}
            left = sum(count for name, count in specialised.items() if _kind(name) == kind)
            rows[label] = {"teachers": kind, "layers": layers, "top_k": min(options.top_k, left)}
    if options.router != "mean":
        rows |= {f"top_k={count}": {"top_k": count} for count in range(1, sum(specialised.values()) + 1)}
    return rows


def _kind(teacher: str) -> str:
    return "multimodal" if teacher == MULTIMODAL else "cross_modal"
