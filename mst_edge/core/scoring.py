"""What a model's one output means, and how answers are scored: numbers per sample that add up to the headline metric.

Everything that judges a model (training, gate, comparison) asks a ``Scoring``; none of them knows the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mst_edge.core.drift import Drift, correlations, js_distances
from mst_edge.core.stats import Interval, paired_difference, proportion_interval

_RESAMPLES, _RESAMPLES_AT_ONCE = 2000, 100
_MOST_OUTPUT_BYTES = 64 << 20
_ROUNDING = 4  # units in the last place of a float32 that two runtimes may differ by in a product and a sum
_SAME = 0.01  # of the targets' deviation: two numbers that differ by less say the same


@dataclass(frozen=True)
class OutputSpec:
    """What a model answers with.

    Attributes:
        task: ``classification`` ``(B, classes)``, ``segmentation`` ``(B, classes, H, W)`` or ``regression``
            ``(B, names)``.
        names: of the classes, or of the numbers.
        units: of the numbers, one per name; empty strings where not stated. Empty for classes.
        ignore_label: class number of pixels without a label; nothing is counted there.
        scale: standard deviation of each number over the training split. Empty for classes.
        ordinal: centres of the ordinal classes that the one number falls into, rising; mostly empty.
    """

    task: str
    names: tuple[str, ...]
    units: tuple[str, ...] = ()
    ignore_label: int | None = None
    scale: tuple[float, ...] = ()
    ordinal: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> OutputSpec:
        """From its JSON form."""
        lists = {key: tuple(said[key]) for key in ("names", "units", "scale", "ordinal")}
        return cls(task=said["task"], ignore_label=said["ignore_label"], **lists)

    @property
    def graph_output(self) -> str:
        """Name of the exported graph's output."""
        return "values" if self.scale else "logits"


@dataclass(frozen=True)
class Column:
    """A metric that tables show beside the headline; ``percent`` says how."""

    key: str
    heading: str
    percent: bool


class Scoring(ABC):
    """Scores the answers of one task. All arrays have the samples in their first axis.

    Attributes:
        metric: key of the headline metric; a number near 0 .. 1, shown in percent.
        label: what people call it.
        bounds: its least and largest possible value.
        paired_interval: how the interval of ``drop`` is made.
    """

    metric: ClassVar[str]
    label: ClassVar[str]
    higher_is_better: ClassVar[bool]
    bounds: ClassVar[tuple[float, float]]
    paired_interval: ClassVar[str] = f"bootstrap over samples, drawn alike for both ({_RESAMPLES} resamples)"

    def __init__(self, output: OutputSpec) -> None:
        self.output = output

    def answers(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """What has to be kept of outputs to score them: the outputs themselves unless a task says less."""
        return outputs

    @abstractmethod
    def statistics(self, answers: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
        """``(samples, n)`` numbers per sample; their sum over any samples gives the metric on these."""

    @abstractmethod
    def values(self, sums: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
        """``(..., n)`` sums over ``samples`` samples to ``(...)`` values of the metric."""

    @abstractmethod
    def agreement(self, one: NDArray[Any], other: NDArray[Any]) -> float:
        """Share of two models' answers that are the same."""

    def drift(self, said: Predictions, reference: Predictions) -> Drift:
        """How far a model's answers are from another's on the same samples."""
        distances = js_distances(said.outputs, reference.outputs)
        same = self.agreement(said.answers, reference.answers)
        return Drift(same, float(distances.mean()), float(distances.max()), (), len(said.answers))

    def loyalty(self, said: Predictions, reference: Predictions, ranges: NDArray[np.float64]) -> dict[str, float]:
        """How closely a student follows a teacher on the same samples, whatever the truth; 1 is "in everything".

        ``label``: share of equal answers. ``probability``: 1 minus the Jensen-Shannon distance, the root of the
        divergence to base 2, mean over samples (Xu and others, EMNLP 2021, arXiv 2109.03228).

        Args:
            ranges: ``(names,)`` largest minus smallest label of each number; of no account where there are classes.
        """
        drift = self.drift(said, reference)
        assert drift.js_mean is not None
        return {"label": drift.agreement, "probability": 1 - drift.js_mean}

    def columns(self) -> list[Column]:
        """Other metrics for tables."""
        return []

    def describe(self) -> dict[str, Any]:
        """JSON form of what reports need to show scores."""
        return {
            "metric": self.metric,
            "label": self.label,
            "higher_is_better": self.higher_is_better,
            "columns": [asdict(column) for column in self.columns()],
        }

    def gain(self, reference: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        """How much better ``other`` is than ``reference``: positive is better, whatever the metric's direction."""
        difference = self.value(other) - self.value(reference)
        return difference if self.higher_is_better else -difference

    def confusion(self, answers: NDArray[Any], target: NDArray[Any]) -> NDArray[np.int64] | None:
        """``(classes, classes)`` counts, rows true; None where there are no classes."""
        return None

    def spread(self, outputs: NDArray[np.floating[Any]]) -> float:
        """Standard deviation of outputs ``(samples, n, ...)``: what differences between builds are compared with."""
        return float(outputs.std(dtype=np.float64))

    def difference(self, one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
        """Largest difference of two models' outputs, on the scale of ``spread``."""
        return float(np.abs(one - other).max())

    def value(self, statistics: NDArray[np.float64]) -> float:
        """The metric on the samples that the statistics are of."""
        return float(self.values(statistics.sum(axis=0), len(statistics)))

    def interval(self, statistics: NDArray[np.float64], confidence: float = 0.95) -> Interval:
        """The metric with its interval: percentile bootstrap over samples (Efron, Ann. Stat. 7, 1979)."""
        found = np.concatenate([self.values(sums[0], len(statistics)) for sums in _resampled(statistics)])
        return _percentiles(self.value(statistics), found, confidence)

    def drop(self, reference: NDArray[np.float64], other: NDArray[np.float64], confidence: float = 0.95) -> Interval:
        """How much worse ``other`` is than ``reference`` on the same samples: positive is worse, whatever the
        metric's direction. The bootstrap draws the same samples for both."""
        samples, sign = len(reference), 1.0 if self.higher_is_better else -1.0
        found = np.concatenate(
            [self.values(a, samples) - self.values(b, samples) for a, b in _resampled(reference, other)]
        )
        return _percentiles(-self.gain(reference, other), sign * found, confidence)


class AccuracyScoring(Scoring):
    """Share of samples whose largest logit is that of their class."""

    metric, label, higher_is_better, bounds = "accuracy", "accuracy", True, (0.0, 1.0)
    paired_interval = "adjusted Wald for paired samples (Bonett and Price 2012)"

    def statistics(self, answers: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
        return (answers.argmax(axis=1) == target)[:, None].astype(np.float64)

    def values(self, sums: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
        return sums[..., 0] / samples

    def agreement(self, one: NDArray[Any], other: NDArray[Any]) -> float:
        return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())

    def columns(self) -> list[Column]:
        return [Column("balanced_accuracy", "balanced", True)]

    def confusion(self, answers: NDArray[Any], target: NDArray[Any]) -> NDArray[np.int64]:
        return count_pairs(target, answers.argmax(axis=1), len(self.output.names))

    def interval(self, statistics: NDArray[np.float64], confidence: float = 0.95) -> Interval:
        """Wilson's, which needs no resampling."""
        return proportion_interval(int(statistics.sum()), len(statistics), confidence)

    def drop(self, reference: NDArray[np.float64], other: NDArray[np.float64], confidence: float = 0.95) -> Interval:
        """Bonett and Price's, which needs no resampling and stays honest where few samples changed."""
        return paired_difference(reference[:, 0] > 0, other[:, 0] > 0, confidence)


class MiouScoring(Scoring):
    """Mean over classes of intersection over union, from the confusion matrix of all labelled pixels.

    A labelled pixel that is taken for the ignored class is an error like any other: it counts in its own
    class's union. A class that is neither labelled nor predicted has no union and is left out of the mean.
    """

    metric, label, higher_is_better, bounds = "miou", "mIoU", True, (0.0, 1.0)

    @property
    def counted(self) -> NDArray[np.int64]:
        """Numbers of the classes that the mean is over: all but the ignored one."""
        return np.array([k for k in range(len(self.output.names)) if k != self.output.ignore_label])

    def answers(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """``(B, H, W)`` class numbers: the logits of a whole test split would take a hundred times as much."""
        return outputs.argmax(axis=1).astype(np.uint8 if len(self.output.names) <= 256 else np.int32)

    def statistics(self, answers: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
        rows = [overlap(self.confusion(a, t), self.counted).reshape(-1) for a, t in zip(answers, target, strict=True)]
        return np.array(rows, dtype=np.float64)

    def values(self, sums: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
        return mean_iou(sums.reshape(*sums.shape[:-1], 2, -1))

    def agreement(self, one: NDArray[Any], other: NDArray[Any]) -> float:
        return float((one == other).mean())

    def columns(self) -> list[Column]:
        return [Column("pixel_accuracy", "pixel accuracy", True), Column("mean_recall", "mean recall", True)]

    def confusion(self, answers: NDArray[Any], target: NDArray[Any]) -> NDArray[np.int64]:
        labelled = np.asarray(target) != self.output.ignore_label
        return count_pairs(np.asarray(target)[labelled], answers[labelled], len(self.output.names))


class NrmseScoring(Scoring):
    """Root of the mean squared error, each number in units of its deviation over the training split.

    0 is perfect; 1 is about as bad as always answering the mean. Over several numbers the mean is taken
    before the root.
    """

    metric, label, higher_is_better, bounds = "nrmse", "nRMSE", False, (0.0, float("inf"))

    def statistics(self, answers: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
        error = (answers.astype(np.float64) - target) / np.array(self.output.scale)
        return np.square(error).mean(axis=1, keepdims=True)

    def values(self, sums: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
        return np.sqrt(sums[..., 0] / samples)

    def agreement(self, one: NDArray[Any], other: NDArray[Any]) -> float:
        return float((np.abs(one - other) / np.array(self.output.scale) < _SAME).mean())

    def drift(self, said: Predictions, reference: Predictions) -> Drift:
        same = self.agreement(said.answers, reference.answers)
        return Drift(same, None, None, correlations(said.answers, reference.answers), len(said.answers))

    def loyalty(self, said: Predictions, reference: Predictions, ranges: NDArray[np.float64]) -> dict[str, float]:
        """``regression``: 1 minus the mean difference in units of the labels' range, mean over the numbers. A
        reconstruction: the formula of the paper that introduced one (arXiv 2112.12650) was not at hand."""
        apart = np.abs(said.answers.astype(np.float64) - reference.answers).mean(axis=0)
        return {"regression": float(1 - (apart / ranges).mean())}

    def columns(self) -> list[Column]:
        found = [Column("r2", "R²", False), Column("pearson", "Pearson r", False)]
        for name, unit in zip(self.output.names, self.output.units, strict=True):
            said = f"{name}, {unit}" if unit else name
            found += [Column(f"mae_{name}", f"MAE {said}", False), Column(f"rmse_{name}", f"RMSE {said}", False)]
        return [*found, *(Column(key, heading, False) for key, heading in ordinal_metrics(self.output.ordinal).items())]

    def spread(self, outputs: NDArray[np.floating[Any]]) -> float:
        """In units of the training split's deviations, each number about its own mean."""
        units = outputs / np.array(self.output.scale)
        # A student that answers with a constant has no spread of its own.
        return max(1e-3, float((units - units.mean(axis=0)).std(dtype=np.float64)))

    def difference(self, one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
        """In units of the training split's deviations; what float32 cannot tell apart at that size is none."""
        apart = np.maximum(0, np.abs(one - other) - _ROUNDING * np.spacing(np.abs(other)))
        return float((apart / np.array(self.output.scale)).max())


def ordinal_metrics(centres: Sequence[float]) -> dict[str, str]:
    """Keys of the metrics of a number on an ordinal scale, and what people call them; none without a scale.

    Those by the sign of a number, and the class rule of the CMU SDK, want whole numbers about 0 (``is_signed``).
    """
    count = len(centres)
    found = {"acc_rounded": f"Acc-{count}"} if count else {}
    if is_signed(centres):
        found |= {"acc_sdk": f"Acc-{count} (SDK)", "acc2_has0": "Acc-2 has0", "f1_has0": "F1 has0"}
        found |= {"acc2_non0": "Acc-2 non0", "f1_non0": "F1 non0"}
    return found


def is_signed(centres: Sequence[float]) -> bool:
    """Whether these are the whole numbers from -n to n, n at least 1."""
    most = len(centres) // 2
    return most > 0 and tuple(centres) == tuple(range(-most, most + 1))


SCORINGS: Mapping[str, type[Scoring]] = {
    "classification": AccuracyScoring,
    "segmentation": MiouScoring,
    "regression": NrmseScoring,
}
HEADLINES = {scoring.metric: scoring.label for scoring in SCORINGS.values()}


def scoring_of(output: OutputSpec) -> Scoring:
    """How answers of this kind are scored."""
    return SCORINGS[output.task](output)


@dataclass(frozen=True)
class Predictions:
    """What a model said of many samples.

    Attributes:
        answers: of all of them, as its task's scoring keeps them.
        outputs: raw outputs of the first of them, as many as 64 MB hold.
    """

    answers: NDArray[Any]
    outputs: NDArray[np.float32]


def collect(batches: Iterable[NDArray[np.float32]], scoring: Scoring) -> Predictions:
    """Predictions from a model's outputs, batch after batch: label maps are all that is kept of dense ones."""
    answers: list[NDArray[Any]] = []
    outputs: list[NDArray[np.float32]] = []
    room = _MOST_OUTPUT_BYTES
    for batch in batches:
        answers.append(scoring.answers(batch))
        fitting = max(0 if outputs else 1, room // max(1, batch[0].nbytes))
        if fitting:
            outputs.append(batch[:fitting].astype(np.float32))
            room = max(0, room - outputs[-1].nbytes)
    return Predictions(np.concatenate(answers), np.concatenate(outputs))


def count_pairs(true: NDArray[Any], said: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """``(classes, classes)``: how often class ``i`` (row) was taken for ``j``; both of one shape."""
    codes = true.astype(np.int64).reshape(-1) * classes + said.astype(np.int64).reshape(-1)
    return np.bincount(codes, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def overlap(confusion: NDArray[np.int64], counted: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(2, n)`` intersections and unions of the ``counted`` classes of a confusion matrix, in pixels."""
    both = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return np.stack([both, union])[:, counted]


def mean_iou(overlaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(..., 2, classes)`` intersections and unions to ``(...)`` means over classes that have a union."""
    both, union = overlaps[..., 0, :], overlaps[..., 1, :]
    present = union > 0
    shares = np.where(present, both / np.where(present, union, 1), 0.0)
    return shares.sum(axis=-1) / np.maximum(1, present.sum(axis=-1))


def _resampled(*statistics: NDArray[np.float64]) -> Iterator[list[NDArray[np.float64]]]:
    """Sums of each of the statistics over the same samples, drawn with replacement: ``(draws, n)`` each."""
    samples = len(statistics[0])
    rng = np.random.default_rng(0)
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        counts = rng.multinomial(samples, np.full(samples, 1 / samples), size=_RESAMPLES_AT_ONCE).astype(np.float64)
        yield [counts @ rows for rows in statistics]


def _percentiles(estimate: float, found: NDArray[np.float64], confidence: float) -> Interval:
    low, high = (float(q) for q in np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2]))
    # Adding 0 turns -0.0, which prints as a loss, into 0.0.
    return Interval(estimate + 0.0, min(estimate, low) + 0.0, max(estimate, high) + 0.0)
