"""Numbers per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill.router import LinearRouter, NumberRouter, UniformRouter
from distill.tasks.base import Meter, Task
from distill.tasks.ordinal import OrdinalMeter
from mst_edge.core.scoring import OutputSpec

_TINY = 1e-12


class Regression(Task):
    """``num_outputs`` numbers per sample; targets ``(B, outputs)`` in their own units.

    Networks work in standardised numbers, ``(value - shift) / scale``: their logits ``(B, outputs)`` are means of
    Gaussians of variance 1, and losses are negative log-likelihoods of these, up to a constant.

    Args:
        shift, scale: ``(outputs,)`` mean and standard deviation over the training split.
        ordinal: centres of the classes that the one number falls into, rising; mostly none.
    """

    certainty = ("r2", "explains {:.0%} of the variance")
    routers: ClassVar[Mapping[str, type[nn.Module]]] = {
        "linear": LinearRouter,
        "evidence": NumberRouter,
        "mean": UniformRouter,
    }

    def __init__(
        self,
        shift: Tensor,
        scale: Tensor,
        names: Sequence[str] = (),
        units: Sequence[str] = (),
        ordinal: Sequence[float] = (),
    ) -> None:
        count = len(scale)
        super().__init__(
            OutputSpec(
                "regression",
                tuple(names or map(str, range(count))),
                tuple(units or [""] * count),
                scale=tuple(scale.tolist()),
                ordinal=tuple(ordinal),
            )
        )
        self.shift, self.scale = shift.float(), scale.float()

    def standardised(self, target: Tensor) -> Tensor:
        """Targets as the network's logits should be."""
        return (target - self.shift.to(target.device)) / self.scale.to(target.device)

    def outputs(self, logits: Tensor) -> Tensor:
        """Numbers in their own units."""
        return logits.float() * self.scale.to(logits.device) + self.shift.to(logits.device)

    def answer_state(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "shift": self.shift}

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.sample_loss(logits, target).mean()

    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Half the squared error of standardised numbers, mean over the outputs."""
        return half_squares(logits, self.standardised(target))

    def sample_kd(self, learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """tau^2 KL(N(teacher / tau, 1) || N(learner / tau, 1)) = (teacher - learner)^2 / 2, mean over the outputs.

        Softening divides both means by tau and the factor tau^2 undoes it: the temperature cancels. (For
        probabilities it does so only in the limit of a high temperature, where KD becomes the squared difference of
        logits; Hinton and others, arXiv 1503.02531, section 2.1.)
        """
        return half_squares(learner, teacher.float())

    def ensemble(self, teachers: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """The weighted mean of the numbers, whatever the temperature."""
        return (teachers.float() * weights[:, None]).sum(dim=1)

    def trust(self, losses: Tensor, everyones: Tensor) -> Tensor:
        """As for every task, with the teachers' own error as the Gaussians' variance.

        With the variance of the targets, 1, all teachers that are any good would look alike. The mean over the batch
        and all teachers of their squared errors stands for it: ``softmax(-e^2 / (2 mean e^2))``.
        """
        return torch.softmax(-losses / (2 * everyones.mean()).clamp_min(_TINY), dim=1)

    def meter(self) -> Meter:
        return _NumberMeter(self)


def half_squares(one: Tensor, other: Tensor) -> Tensor:
    """``(B,)`` half the mean squared difference of ``(B, outputs)``."""
    return 0.5 * (one.float() - other).square().mean(dim=1)


class _NumberMeter:
    """Sums of powers and products of targets and answers, per output, in standardised numbers and float64."""

    def __init__(self, task: Regression) -> None:
        self._task = task
        self._count = 0
        self._sums = torch.zeros(7, task.num_outputs, dtype=torch.float64)
        self._classes = OrdinalMeter(task.output.ordinal) if task.output.ordinal else None

    def add(self, logits: Tensor, target: Tensor) -> None:
        # Standardised, so that a large mean does not cancel the digits of the squares.
        y, z = self._task.standardised(target).double().cpu(), logits.double().cpu()
        self._count += len(y)
        rows = (y, z, y * y, z * z, y * z, (z - y).abs(), (z - y).square())
        self._sums += torch.stack([row.sum(dim=0) for row in rows])
        if self._classes is not None:
            self._classes.add(self._task.outputs(logits)[:, 0].cpu(), target[:, 0].cpu())

    def result(self) -> dict[str, float]:
        y, z, yy, zz, yz, absolute, squared = self._sums / self._count
        variance, covariance = (yy - y * y).clamp_min(_TINY), yz - y * z
        r2 = 1 - squared / variance
        # 0 where one of both is constant: there is no correlation then.
        pearson = covariance / (variance * (zz - z * z).clamp_min(_TINY)).sqrt()
        nrmse = float(squared.mean().sqrt())
        metrics = {
            "nrmse": nrmse,
            "error": nrmse,
            "loss": 0.5 * float(squared.mean()),
            "r2": float(r2.mean()),
            "pearson": float(pearson.mean()),
        }
        scale = self._task.scale.double()
        for name, mae, rmse in zip(self._task.output.names, absolute * scale, squared.sqrt() * scale, strict=True):
            metrics |= {f"mae_{name}": float(mae), f"rmse_{name}": float(rmse)}
        return metrics if self._classes is None else metrics | self._classes.result()
