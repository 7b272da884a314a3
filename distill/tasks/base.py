"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor, nn

from mst_edge.core.scoring import OutputSpec, Scoring, scoring_of


class Meter(Protocol):
    """Counts what metrics need, batch by batch, so that no split's logits have to be kept."""

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Counts one batch."""

    def result(self) -> dict[str, float]:
        """Metrics over everything added. ``error`` and ``loss`` are always there, lower is better in both."""


class Task(ABC):
    """What a network is asked to do.

    Networks give *logits*: what losses and distillation compare. ``outputs`` turns them into what a device gets.

    Attributes:
        certainty: metric that says how sure networks are of the truth, at most 1, and the words for it.
        routers: MST-Distill's routers for this task's logits, by the name that options know them by.
        output: what an answer means.
        scoring: what an answer is worth.
        class_weights: ``(outputs,)`` weights of the training loss, or None.
        map_size: height and width of dense logits ``(B, outputs, H, W)``; None for ``(B, outputs)``.
    """

    certainty: ClassVar[tuple[str, str]]
    routers: ClassVar[Mapping[str, type[nn.Module]]]
    map_size: tuple[int, int] | None = None

    def __init__(self, output: OutputSpec, class_weights: Tensor | None = None) -> None:
        self.output = output
        self.class_weights = class_weights

    @property
    def name(self) -> str:
        """Of the task, as ``dataset.yaml`` knows it."""
        return self.output.task

    @property
    def num_outputs(self) -> int:
        """Width of the network's output."""
        return len(self.output.names)

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """Shape of one sample's logits."""
        return (self.num_outputs, *(self.map_size or ()))

    @property
    def scoring(self) -> Scoring:
        """How answers are scored."""
        return scoring_of(self.output)

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Training loss, a scalar: mean over the batch."""

    @abstractmethod
    def sample_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """``(batch,)`` loss of each sample, unweighted."""

    @abstractmethod
    def sample_kd(self, learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """``(batch,)`` distillation divergence of each sample; gradients flow into both sides."""

    @abstractmethod
    def ensemble(self, teachers: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """``(batch, ...)`` logits of what several networks say together: of the weighted mean of their answers.

        Args:
            teachers: ``(batch, networks, ...)`` logits.
            weights: ``(networks,)``, which sum to 1.
            temperature: at which probabilities are averaged; the answer is to be softened by it again.
        """

    @abstractmethod
    def meter(self) -> Meter:
        """A new meter."""

    def outputs(self, logits: Tensor) -> Tensor:
        """What the exported model answers."""
        return logits

    def answer_state(self) -> dict[str, Tensor]:
        """Constants of the module that does in the exported model what ``outputs`` does."""
        return {}

    def trust(self, losses: Tensor, everyones: Tensor) -> Tensor:
        """``(batch, teachers)`` losses of teachers to how far each should be listened to; rows sum to 1.

        The posterior of each teacher being the one that made the target, all equally likely before: losses are
        negative log-likelihoods.

        Args:
            everyones: the losses of the whole batch, where other processes have parts of it.
        """
        return (-losses).softmax(dim=1)

    def metrics(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        """Metrics over a whole split at once."""
        meter = self.meter()
        meter.add(logits, target)
        return meter.result()

    def kd(self, learner: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean of ``sample_kd`` over the batch."""
        return self.sample_kd(learner, teacher, temperature).mean()
