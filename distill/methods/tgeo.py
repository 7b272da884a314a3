"""TGeo-KD: a learned weight between teacher and label for every sample (Hu and others, ICLR 2024, arXiv 2312.15112)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from distill.datasets.splits import hold_back
from distill.datasets.target import CLASSIFICATION
from distill.frozen import Answers, reads_of
from distill.lab import FineTuning, Lab, OptimizerChoice
from distill.methods.base import METHODS
from distill.methods.single_teacher import SingleTeacher, TeacherOptions
from distill.networks.registry import Model
from distill.training.features import Batch
from distill.training.parallel import sum_over_processes
from distill.training.phase import EVAL_BATCH, Phase
from mst_edge.core.errors import UserError

_WHERE = "distill.options"


@dataclass(frozen=True)
class TgeoOptions(TeacherOptions):
    """Mean over samples of ``a_i KD_i + (1 - a_i) CE_i``, with ``a_i`` from a small network, the controller.

    Attributes:
        teacher: ``multimodal``, ``unimodal``, or what a cross-modal teacher reads; empty takes the main one.
        temperature: of KD.
        held_share: share of the training samples that the student does not learn from: on them the controller does.
        every: steps from one of the controller's to the next.
        virtual_lr: how far the student goes, by plain gradient descent, in the step that is tried out.
        controller_lr, controller_decay: of the controller's Adam; its rate is constant.
    """

    temperature: float = 1.5
    held_share: float = 0.1
    every: int = 10
    virtual_lr: float = 0.1
    controller_lr: float = 0.1
    controller_decay: float = 0.05


@METHODS.register("tgeo")
class TrilateralGeometry(SingleTeacher):
    """How much a sample's teacher counts beside its label is learned, from where student, teacher and label are.

    The controller minimises the student's loss on held-back samples after one step of the student: through that step
    the gradient reaches it. ``insights`` holds the mean weight of KD per epoch.
    """

    name = "tgeo"
    tasks = (CLASSIFICATION,)
    Options: ClassVar[type] = TgeoOptions

    def __init__(self, lab: Lab, options: Any) -> None:
        super().__init__(lab, options)
        for name, fits, wanted in (
            ("held_share", 0 < options.held_share < 1, "between 0 and 1"),
            ("every", options.every >= 1, "1 or more"),
        ):
            if not fits:
                raise UserError(
                    f"expected {wanted}, received {getattr(options, name)}",
                    where=f"{_WHERE}.{name}",
                    fix=f"the default is {getattr(TgeoOptions, name)}",
                )

    def check(self) -> None:
        super().check()
        self.parted()

    def parted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of the training samples that the student learns from, and of those held back for the controller."""
        store, seed = self.lab.store, self.lab.session.seed_for(self.name, "held")
        return hold_back(store.dataset, store.splits["train"], self.options.held_share, seed)

    def train(self) -> Model:
        student, _ = self._learn()
        self.insights = {"kd_share": [epoch["kd_share"] for epoch in self.lab.histories[self.name]]}
        return student

    @property
    def fine_tunes(self) -> bool:
        return True

    def fine_tune(self, student: Model, tuning: FineTuning) -> None:
        """With the controller as it ended."""
        _, controller = self._learn()
        controller.eval().requires_grad_(False)
        answers = self.answers()

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            z_s, z_t = student(batch.inputs), answers[self.teacher].logits(batch)
            return self._weighed(controller(z_s, z_t, batch.target), self._sides(z_s, z_t, batch.target))

        self.lab.fine_tune(student, tuning, step, reads=reads_of(answers.values()))

    def _learn(self) -> tuple[Model, Controller]:
        """The student and its controller, trained side by side."""
        lab, options = self.lab, self.options
        stay, held = self.parted()
        student, answer = lab.new_student(), self.answers()[self.teacher]
        self.seed_helpers()
        controller = Controller(self._class_means(answer, stay)).to(lab.session.device)
        pace = OptimizerChoice("adam", options.controller_lr, options.controller_decay, "constant")

        def step(batch: Batch, _epoch: int) -> dict[str, Tensor]:
            tries = int(controller.steps) % options.every == 0
            # The attention that PyTorch prefers cannot be differentiated twice.
            with sdpa_kernel(SDPBackend.MATH) if tries else contextlib.nullcontext():
                z_s = student(batch.inputs)
            z_t = answer.logits(batch)
            a, sides = controller(z_s, z_t, batch.target), self._sides(z_s, z_t, batch.target)
            losses = self._weighed(a.detach(), sides)
            if tries:
                outer = self.outer(student, a, sides, batch, self._drawn(held, int(controller.steps) // options.every))
                losses["loss"] = losses["loss"] + outer
            controller.steps += int(batch.ends_step)
            return losses

        phase = Phase(
            name=self.name,
            epochs=lab.epochs.student,
            modules={"student": student.module, "controller": controller},
            optimizers=[lab.optimizer.build([student.module]), pace.build([controller])],
            step=step,
            validate=lambda: lab.validate(student),
            keep_best={"student": ("val_error", "val_loss")},
            reads=reads_of([student, answer]),
        )
        replace(lab, store=lab.store.with_train(stay)).run(phase)
        return student, controller

    def _class_means(self, answer: Answers, stay: NDArray[np.int64]) -> Tensor:
        """``(K, K)`` the teacher's mean probabilities for training samples of each class, a row per class."""
        lab, count = self.lab, self.lab.task.num_outputs
        sums, samples = torch.zeros(count, count), torch.zeros(count)
        store = lab.store.with_train(stay)
        for batch in store.in_order("train", EVAL_BATCH, answer.reads, lab.session.device):
            target = batch.target.cpu()
            sums.index_add_(0, target, answer.logits(batch).softmax(dim=1).cpu())
            samples += torch.bincount(target, minlength=count)
        return sums / samples.clamp_min(1)[:, None]

    def _drawn(self, held: NDArray[np.int64], number: int) -> Batch:
        """The held-back samples on which the controller's step ``number`` is judged."""
        lab = self.lab
        rng = np.random.default_rng([lab.session.seed_for(self.name, "drawn"), number])
        ids = rng.choice(held, min(len(held), lab.session.batch_size), replace=False)
        return lab.store.gather(ids, (lab.student_modality,), lab.session.device)

    def _sides(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` KD and CE of each sample; CE weighs classes as the task's loss does."""
        task, weights = self.lab.task, self.lab.task.class_weights
        ce = task.sample_loss(student, target)
        if weights is not None:
            ce = ce * weights.to(ce.device)[target]
        return task.sample_kd(student, teacher, self.options.temperature), ce

    @staticmethod
    def _weighed(a: Tensor, sides: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Losses of a batch, given the weight ``(B,)`` of KD for each sample."""
        kd, ce = sides
        return {"loss": (a * kd + (1 - a) * ce).mean(), "kd": kd.mean(), "task": ce.mean(), "kd_share": a.mean()}

    def outer(self, student: Model, a: Tensor, sides: tuple[Tensor, Tensor], batch: Batch, held: Batch) -> Tensor:
        """0, with the gradient in the controller of the student's loss on ``held`` after a step by ``a``.

        ``theta' = theta - lr g,  g = d/dtheta mean(a KD + (1 - a) CE);  v = dL_held/dtheta'``
        ``dL_held/da = -lr d(g v)/da``, exactly, by differentiating g once more; from a on, the chain rule of autograd.

        Args:
            a: ``(B,)`` weights, with their graph. sides: KD and CE, with theirs.
        """
        said = a.detach().requires_grad_()
        kd, ce = sides
        names, weights = zip(*((n, p) for n, p in student.module.named_parameters() if p.requires_grad), strict=True)
        inner = (said * kd + (1 - said) * ce).mean() * batch.weight
        gradients = torch.autograd.grad(inner, weights, create_graph=True, materialize_grads=True)
        g = torch.cat([gradient.flatten() for gradient in gradients])
        if batch.rows:
            # Every process sees the step of the whole batch; what each adds to the controller's gradient is averaged.
            g = sum_over_processes(g) / len(batch.rows)
        v = self._after(student, names, weights, g.detach(), held)
        (direction,) = torch.autograd.grad(g @ v, said, retain_graph=True)
        gain = -self.options.virtual_lr * (direction @ a) / batch.weight
        return gain - gain.detach()

    def _after(
        self, student: Model, names: tuple[str, ...], weights: tuple[Tensor, ...], g: Tensor, held: Batch
    ) -> Tensor:
        """The gradient of the loss on ``held``, flat, where the student would be after a step along ``-g``."""
        moved = [
            (weight.detach() - self.options.virtual_lr * step.view_as(weight)).requires_grad_()
            for weight, step in zip(weights, torch.split(g, [weight.numel() for weight in weights]), strict=True)
        ]
        # Batch norm would count these samples in; copies take them in place of the student's own.
        buffers = {name: buffer.clone() for name, buffer in student.module.named_buffers()}
        state = {**dict(zip(names, moved, strict=True)), **buffers}
        logits = functional_call(student.module, state, (student.taken(held.inputs),))
        found = torch.autograd.grad(self.lab.task.loss(logits, held.target), moved, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in found])


class Controller(nn.Module):
    """The weight of KD for each sample, from probabilities S of the student, T of the teacher, G of the label, and O,
    the teacher's mean over the label's class.

    ``sigmoid(MLP([S, T, G, O, (O-S)^2, (G-S)^2, (T-S)^2, (T-G)^2, (O-G)^2]))``, squares entry by entry

    Args:
        means: ``(K, K)`` O of each class.

    Attributes:
        steps: of the student so far: they say when the controller's next one is due.
    """

    means: Tensor
    steps: Tensor

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(9 * len(means), 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)
        )
        self.register_buffer("means", means)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """``(B,)`` weights in (0, 1) from ``(B, K)`` logits, which get no gradient, and ``(B,)`` classes."""
        s, t = (z.detach().float().softmax(dim=1) for z in (student, teacher))
        g, o = functional.one_hot(target, s.shape[1]).float(), self.means[target]
        apart = [(one - other).square() for one, other in ((o, s), (g, s), (t, s), (t, g), (o, g))]
        with torch.autocast(s.device.type, enabled=False):
            weights: Tensor = self.layers(torch.cat([s, t, g, o, *apart], dim=1))[:, 0].sigmoid()
        return weights
