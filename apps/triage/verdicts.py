"""What a student says of a text, as a person or a machine wants to have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.runtime import BundleError, Numbers
from apps.runtime.answers import answer_of, softmax
from apps.runtime.manifest import Manifest
from apps.runtime.terminal import printable

UNSURE = "?"
SHOWN = 100  # characters of a text


@dataclass(frozen=True)
class Verdict:
    """What a student says of a text.

    Attributes:
        category: a class's name, or of a number the ordinal class that it falls into; ``UNSURE`` where that is not
            likely enough, or no text was; empty of numbers without classes.
        said: for a person, how sure it is, or the numbers.
        record: for a machine, all that was said.
        values: the numbers by name; empty of classes.
    """

    category: str
    said: str
    record: dict[str, Any]
    values: dict[str, float] = field(default_factory=dict)


class Judge(ABC):
    """Makes verdicts of a student's outputs; ``categories`` are all that there can be but ``UNSURE``."""

    categories: tuple[str, ...]

    @abstractmethod
    def verdict(self, output: NDArray[np.float32], *, empty: bool) -> Verdict:
        """What one output, ``(labels,)``, says; ``empty`` where there was nothing to read."""


class Classes(Judge):
    """The likeliest class, where it is likely enough.

    Args:
        least: confidence, of all categories; ``own`` of one each, as ``NAME=VALUE``.
    """

    def __init__(self, labels: Sequence[str], least: float, own: Iterable[str]) -> None:
        self.categories = tuple(labels)
        self._least = dict.fromkeys(labels, least)
        for given in own:
            name, _, value = given.rpartition("=")
            if name not in self._least:
                raise BundleError(f"no category {name!r}; known: {', '.join(labels)}", where=f"--threshold {given}")
            try:
                self._least[name] = float(value)
            except ValueError:
                raise BundleError(f"{value!r} is no number", where=f"--threshold {given}") from None

    def verdict(self, output: NDArray[np.float32], *, empty: bool) -> Verdict:
        shares = softmax(output)
        probabilities = {self.categories[k]: float(shares[k]) for k in np.argsort(-shares, kind="stable")}
        best, share = next(iter(probabilities.items()))
        record = {
            "best": best,
            "confidence": round(share, 6),
            "probabilities": {label: round(share, 6) for label, share in probabilities.items()},
        }
        sure = share >= self._least[best] and not empty
        return Verdict(best if sure else UNSURE, f"{share:6.1%}", record)


class Scale(Judge):
    """Numbers in their units, and where the data has ordinal classes, the one that the number falls into."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.categories = tuple(f"{centre:g}" for centre in manifest.ordinal) or ("",)

    def verdict(self, output: NDArray[np.float32], *, empty: bool) -> Verdict:
        numbers = answer_of(output, self._manifest, 0.0)
        assert isinstance(numbers, Numbers)
        parts = (f"{name} {value:8.3f} {numbers.units[name]}".rstrip() for name, value in numbers.values.items())
        said = printable(", ".join(parts), SHOWN)
        category = "" if numbers.ordinal_class is None else f"{numbers.ordinal_class:g}"
        return Verdict(UNSURE if empty else category, said, numbers.record(), numbers.values)


def judge_of(manifest: Manifest, least: float, own: Sequence[str]) -> Judge:
    """What fits a student's task.

    Args:
        least: confidence asked of all categories (``--min-confidence``). own: of one each, ``NAME=VALUE``
            (``--threshold``).

    Raises:
        BundleError: thresholds of confidence for a student of numbers, or a category that it does not have.
    """
    if manifest.task == "classification":
        return Classes(manifest.labels, least, own)
    for option, given in (("--min-confidence", least), ("--threshold", own)):
        if given:
            raise BundleError(
                "its student answers with numbers, and has no confidence", where=option, fix="leave it out"
            )
    return Scale(manifest)
