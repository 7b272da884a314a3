"""MST-Distill: mixture of specialised teachers (ACM MM 2025, arXiv 2507.07015)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.frozen import Answers, reads_of
from distill.lab import MULTIMODAL, FineTuning, Lab, Step, freeze
from distill.masks import MaskedTeacher, SpecialisedTeacher, make_specialised, probe_layer
from distill.methods.base import METHODS, Method, Workload
from distill.mst_options import PAPER, WHERE, MstOptions, ablations, check_options, check_top_k
from distill.networks.registry import Model
from distill.router import balance_loss, top_k
from distill.training.features import Batch
from distill.training.phase import EVAL_BATCH, Phase
from mst_edge.core.errors import UserError


@dataclass(frozen=True)
class _Routed:
    """What stage 3 learns from, and who selects."""

    answers: Sequence[Answers]
    router: nn.Module

    @property
    def learning(self) -> dict[str, nn.Module]:
        """The router, unless it is the plain mean: an optimiser or a checkpoint of nothing is refused."""
        return {"router": self.router} if any(True for _ in self.router.parameters()) else {}


@METHODS.register("mst")
class MstDistill(Method):
    """Three stages: collaborative initialisation, specialised teachers, adaptive distillation."""

    name = "mst"
    Options: ClassVar[type] = MstOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"improved": {}, "paper": PAPER}

    def __init__(self, lab: Lab, options: MstOptions) -> None:
        """Checks the options against the lab's teachers.

        Raises:
            UserError: options contradict each other, or name a layer or a number of teachers that is not there.
        """
        super().__init__(lab, options)
        if MULTIMODAL not in lab.teachers:
            raise UserError(
                "MST-Distill needs at least two modalities, the data has one",
                where="distill.method",
                fix="use a method of one teacher, for example kd",
            )
        check_options(options, list(lab.teachers))
        self._layers = {name: self._masked_layers(name) for name in options.chosen_teachers(lab.teachers)}
        check_top_k(options, sum(self._specialised().values()))

    def ablations(self) -> dict[str, dict[str, Any]]:
        """Label to the options that differ, for a table of what each part of the method is worth."""
        return ablations(self.options, self._specialised())

    def _specialised(self) -> dict[str, int]:
        """Teacher to how many specialised teachers it gives; without masks, that is the teacher itself."""
        return {name: 1 if self.options.mask == "none" else len(layers) for name, layers in self._layers.items()}

    def _masked_layers(self, teacher: str) -> tuple[str, ...]:
        if self.options.mask == "none":
            return ()
        model = self.lab.new_teacher(teacher)
        chosen = tuple(self.options.layers.get(teacher, model.maskable))[: self.options.masked_layers]
        for layer in chosen:
            probe_layer(model, layer, self.lab.store.shapes, f"{WHERE}.layers")
        return chosen

    def workload(self) -> list[Workload]:
        epochs = self.lab.epochs
        # Each mask runs its whole teacher forward, and the part above the mask backward.
        masked = [name for name, layers in self._layers.items() for _ in range(2 * len(layers))]
        return [
            Workload("mst_collaborate", epochs.collaborate, trained=["student", *self._learning()]),
            *([Workload("mst_masks", epochs.masks, forward=masked)] if masked else []),
            Workload("mst", epochs.distill, trained=["student"], forward=self._recomputed()),
        ]

    def _learning(self) -> list[str]:
        """Teachers that are not trained yet."""
        return [name for name in self._layers if name not in self.lab.pretrained]

    def _recomputed(self) -> list[str]:
        """Teachers that run again in every epoch of stage 3: their answers change, or would take too much to keep."""
        return [name for name in self._layers if not self.lab.keeps_logits(self.lab.teachers[name][0])]

    def train(self) -> Model:
        student, chosen = self._prepare()
        answers = self._distill(student, chosen).answers
        self.insights = {"teachers": self._describe(chosen, answers)}
        return student

    @property
    def fine_tunes(self) -> bool:
        return True

    def fine_tune(self, student: Model, tuning: FineTuning) -> None:
        """By stage 3, which goes on: its teachers, its router, its weights as its last epoch left them."""
        routed = self._distill(*self._prepare())
        step = self._routed_step(student, routed, self.lab.epochs.distill)
        self.lab.fine_tune(student, tuning, step, routed.learning, reads_of(routed.answers))

    def _prepare(self) -> tuple[Model, Sequence[Model | SpecialisedTeacher]]:
        """Stages 1 and 2: the student, and the teachers that stage 3 selects from."""
        student, learning = self.lab.new_student(), self._learning()
        teachers = {
            name: self.lab.new_teacher(name) if name in learning else self.lab.trained_teacher(name)
            for name in self._layers
        }
        self._collaborate(student, teachers)
        for teacher in teachers.values():
            freeze(teacher)
        if self.options.mask == "none":
            return student, list(teachers.values())
        return student, self._specialise(student, teachers)

    def _collaborate(self, student: Model, teachers: Mapping[str, Model]) -> None:
        """Stage 1: every network minimises its task loss plus distillation from each of the others.

        Teachers that come trained stay as they are: the others learn from what they say.
        """
        options, task, lab = self.options, self.lab.task, self.lab
        learning = {name: teachers[name] for name in self._learning()}
        models = {"student": student, **learning}
        trained = {name: lab.frozen_logits(teacher) for name, teacher in teachers.items() if name not in learning}

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            alone = {name: lab.losses(model, batch) for name, model in models.items()}
            logits = {name: z for name, (z, _) in alone.items()}
            losses = {f"task_{name}": own["loss"] for name, (_, own) in alone.items()}
            targets = logits if options.mutual == "both" else {name: z.detach() for name, z in logits.items()}
            told = {name: answer.logits(batch) for name, answer in trained.items()}
            mutual = [
                task.kd(learner, said, options.temperature)
                for name, learner in logits.items()
                for other, said in {**targets, **told}.items()
                if other != name
            ]
            losses["mutual"] = torch.stack(mutual).sum()
            total = sum(losses[f"task_{name}"] for name in models) + options.mutual_weight * losses["mutual"]
            return {"loss": total, **losses}

        def validate() -> dict[str, float]:
            metrics = self.lab.validate(student)
            for name, teacher in learning.items():
                metrics |= self.lab.validate(teacher, f"val_{name}")
            return metrics

        best = (
            {name: (f"val_{name}_error", f"val_{name}_loss") for name in learning}
            if options.teacher_weights == "best"
            else {}
        )
        modules = {name: model.module for name, model in models.items()}
        optimizer = self.lab.optimizer
        self.lab.run(
            Phase(
                name="mst_collaborate",
                epochs=self.lab.epochs.collaborate,
                modules=modules,
                optimizers=[
                    # The student goes on learning in stage 3: one schedule over both stages.
                    optimizer.build([student.module], span=(0.0, self.lab.epochs.share_of_collaboration)),
                    *([optimizer.build([teacher.module for teacher in learning.values()])] if learning else []),
                ],
                step=step,
                validate=validate,
                keep_best=best,
                reads=reads_of([*models.values(), *trained.values()]),
            )
        )

    def _specialise(self, student: Model, teachers: Mapping[str, Model]) -> list[SpecialisedTeacher]:
        """Stage 2: each mask moves its teacher toward what the student can express."""
        return self._train_masks(student, self._fresh(teachers))

    def _fresh(self, teachers: Mapping[str, Model]) -> list[SpecialisedTeacher]:
        """Every teacher with a fresh mask on each of its chosen layers."""
        torch.manual_seed(self.lab.session.seed_for("masks"))
        return [
            make_specialised(teacher, layer, self.options.mask, self.lab.store.shapes, f"{WHERE}.layers")
            for name, teacher in teachers.items()
            for layer in self._layers[name]
        ]

    def _train_masks(self, student: Model, specialised: list[SpecialisedTeacher]) -> list[SpecialisedTeacher]:
        lab, options = self.lab, self.options
        wanted = lab.frozen_logits(student)
        learning = [masked.learning(lab.keeper) for masked in _by_teacher(specialised)]

        def divergences(batch: Batch) -> list[Tensor]:
            z = wanted.logits(batch)
            return [lab.task.sample_kd(said, z, options.temperature) for own in learning for said in own.logits(batch)]

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            means = [divergence.mean() for divergence in divergences(batch)]
            losses = {special.name: mean for special, mean in zip(specialised, means, strict=True)}
            return {"loss": torch.stack(means).sum(), **losses}

        modules = {special.name.replace(":", "_"): special.mask for special in specialised}
        reads = reads_of([wanted, *learning])

        @torch.no_grad()
        def validate() -> dict[str, float]:
            totals = dict.fromkeys(modules, 0.0)
            for batch in lab.store.in_order("val", EVAL_BATCH, reads, lab.session.device):
                for key, divergence in zip(modules, divergences(batch), strict=True):
                    totals[key] += float(divergence.sum())
            return {f"val_{key}": total / len(lab.store.splits["val"]) for key, total in totals.items()}

        lab.run(
            Phase(
                name="mst_masks",
                epochs=lab.epochs.masks,
                modules=modules,
                optimizers=[lab.optimizer.build([mask], options.mask_lr or None) for mask in modules.values()],
                step=step,
                validate=validate,
                keep_best={key: (f"val_{key}",) for key in modules},
                reads=reads,
            )
        )
        return specialised

    def _answers(self, chosen: Sequence[Model | SpecialisedTeacher]) -> list[Answers]:
        """The frozen teachers' logits, in the order of ``chosen``."""
        for teacher in chosen:
            if isinstance(teacher, SpecialisedTeacher):
                teacher.mask.eval().requires_grad_(False)
        specialised = [teacher for teacher in chosen if isinstance(teacher, SpecialisedTeacher)]
        plain = [self.lab.frozen_logits(teacher) for teacher in chosen if isinstance(teacher, Model)]
        return [*plain, *(self.lab.keeper.answers(masked.frozen) for masked in _by_teacher(specialised))]

    def _distill(self, student: Model, chosen: Sequence[Model | SpecialisedTeacher]) -> _Routed:
        """Stage 3: per sample, the student learns from the teachers that the router selects."""
        lab = self.lab
        self._names = [teacher.name for teacher in chosen]
        routed = _Routed(self._answers(chosen), self._router(len(chosen)))
        lab.run(
            Phase(
                name="mst",
                epochs=lab.epochs.distill,
                modules={"student": student.module, **routed.learning},
                optimizers=[
                    lab.optimizer.build([student.module], span=(lab.epochs.share_of_collaboration, 1.0)),
                    *(lab.optimizer.build([module]) for module in routed.learning.values()),
                ],
                step=self._routed_step(student, routed),
                validate=lambda: lab.validate(student),
                keep_best={"student": ("val_error", "val_loss")},
                reads=reads_of([student, *routed.answers]),
            )
        )
        return routed

    def _routed_step(self, student: Model, routed: _Routed, epochs_before: int = 0) -> Step:
        """Stage 3's losses of one batch; ``epochs_before`` of it are over."""
        task, task_weight = self.lab.task, self.options.task_weight

        def step(batch: Batch, epoch: int) -> dict[str, Tensor]:
            z, teachers = student(batch.inputs), _stacked(routed.answers, batch)
            losses = self._routed(z, teachers, routed.router, batch.target, epochs_before + epoch, batch.gather)
            losses["task"] = task.loss(z, batch.target)
            losses["loss"] = losses["loss"] + task_weight * losses["task"]
            return losses

        return step

    def _describe(
        self, chosen: Sequence[Model | SpecialisedTeacher], answers: Sequence[Answers]
    ) -> list[dict[str, Any]]:
        """What the report says of the teachers of stage 3: how good each is, and how often it was chosen."""
        lab = self.lab
        meters = [{split: lab.task.meter() for split in ("train", "val")} for _ in chosen]
        for split in ("train", "val"):
            for batch in lab.store.in_order(split, EVAL_BATCH, reads_of(answers), lab.session.device):
                for meter, z in zip(meters, _stacked(answers, batch).unbind(dim=1), strict=True):
                    meter[split].add(z, batch.target)
        history = lab.histories["mst"]
        return [
            {
                "name": teacher.name,
                "mask_parameters": teacher.mask_parameters if isinstance(teacher, SpecialisedTeacher) else 0,
                **{split: judged.result() for split, judged in meter.items()},
                "use": [epoch[f"use_{teacher.name}"] for epoch in history],
            }
            for teacher, meter in zip(chosen, meters, strict=True)
        ]

    def _router(self, teachers: int) -> nn.Module:
        torch.manual_seed(self.lab.session.seed_for("router"))
        return self.lab.task.routers[self.options.router](self.lab.task.num_outputs, teachers)

    def _routed(
        self,
        z: Tensor,
        teachers: Tensor,
        router: nn.Module,
        target: Tensor,
        epoch: int,
        gather: Callable[[Tensor], Tensor] = lambda weights: weights,
    ) -> dict[str, Tensor]:
        """Distillation from the selected teachers, and what the router learns from; ``loss`` sums them.

        Args:
            z: ``(B, C, ...)`` student logits. teachers: ``(B, W, C, ...)``. target: as the task has it.
            gather: weights of a process's samples to those of the whole batch, for the balance among teachers.
        """
        options, task = self.options, self.lab.task
        weights = router(z, teachers)
        share, chosen = top_k(weights, teachers.shape[1] if options.router == "mean" else options.top_k)
        divergence = torch.stack(
            [task.sample_kd(z, teachers[:, i], options.temperature) for i in range(teachers.shape[1])], dim=1
        ).gather(1, chosen)
        losses = {"balance": balance_loss(gather(weights))}
        if options.router != "evidence":
            kd = divergence.mean()
        else:
            kd = (share.detach() * divergence).sum(dim=1).mean()
            # The router's own objective: the teachers' task losses say which of them is right.
            own = torch.stack([task.sample_loss(teachers[:, i], target) for i in range(teachers.shape[1])], dim=1)
            losses["route"] = -(task.trust(own, gather(own)) * (weights + 1e-8).log()).sum(dim=1).mean()
        losses["kd"] = kd
        for index, name in enumerate(self._names):
            losses[f"use_{name}"] = (chosen == index).float().mean()
        kd_weight = options.kd_weight * _decayed(options.kd_decay, epoch)
        balance_weight = options.balance_weight * _decayed(options.balance_decay, epoch)
        losses["loss"] = kd_weight * kd + balance_weight * losses["balance"] + losses.get("route", 0.0)
        return losses


def _by_teacher(specialised: Sequence[SpecialisedTeacher]) -> list[MaskedTeacher]:
    """Neighbours of one teacher together, so that they share its pass; the order stays."""
    groups = itertools.groupby(specialised, key=lambda special: special.teacher.name)
    return [MaskedTeacher(list(group)) for _, group in groups]


def _stacked(answers: Sequence[Answers], batch: Batch) -> Tensor:
    """``(B, W, ...)`` logits of all teachers."""
    return torch.stack([z.float() for answer in answers for z in answer(batch)], dim=1)


def _decayed(decay: tuple[float, int], epoch: int) -> float:
    """Factor after ``epoch`` whole epochs: ``factor`` once per epoch number that ``period`` divides."""
    factor, period = decay
    return float(factor ** len([e for e in range(epoch) if e % period == 0]))
