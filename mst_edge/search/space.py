"""What a student may be: networks with their options, and sizes of what they read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from distill.networks.registry import NETWORKS, NetworkChoice, require_options
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_json
from mst_edge.recipe import Recipe, SearchSection

_WHERE = "search"
Values = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Candidate:
    """One student.

    Attributes:
        options: of the network, by name.
        features: options of the student's front end that differ from the recipe's, by name.
    """

    network: str
    options: Values = ()
    features: Values = ()

    @property
    def label(self) -> str:
        """For people: ``ds_cnn blocks=2 width=0.5, mels=24``."""
        parts = [[self.network, *_words(self.options)], _words(self.features)]
        return ", ".join(" ".join(part) for part in parts if part)

    @property
    def key(self) -> str:
        """What its files are called."""
        return sha256_json([self.network, dict(self.options), dict(self.features)])[:16]

    @property
    def choice(self) -> NetworkChoice:
        """Its network, as a lab takes it."""
        return NetworkChoice(self.network, dict(self.options))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"network": self.network, "options": dict(self.options), "features": dict(self.features)}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Candidate:
        """What ``to_dict`` gave."""
        return cls(said["network"], tuple(said["options"].items()), tuple(said["features"].items()))


def _words(values: Values) -> list[str]:
    return [f"{name}={value}" for name, value in values]


def settled(recipe: Recipe, candidate: Candidate) -> Recipe:
    """The recipe with the candidate as its student; it goes on saying what was searched."""
    student = recipe.student.model_copy(update={"network": candidate.network, "options": dict(candidate.options)})
    modality = recipe.student.modality
    front_end = {**recipe.modalities.get(modality, {}), **dict(candidate.features)}
    modalities = {**recipe.modalities, modality: front_end} if front_end else recipe.modalities
    return recipe.model_copy(update={"student": student, "modalities": modalities})


class Space:
    """All candidates: per network, every combination of the values of its options and of the front end's.

    Raises:
        UserError: an unknown network or option, one that reads several modalities, or no or the same values.
    """

    def __init__(self, said: SearchSection) -> None:
        self._networks = {name: _axes(options, _place(name)) for name, options in said.networks.items()}
        for name, options in said.networks.items():
            where = _place(name)
            cls = NETWORKS.get(name, where=where)
            if getattr(cls, "multimodal", False):
                raise UserError("reads several modalities; a student reads one", where=where, fix="leave it out")
            require_options(cls, options, where)
        self._features = _axes(said.features, f"{_WHERE}.features")

    def __len__(self) -> int:
        return sum(math.prod(map(len, axes.values())) for axes in self._networks.values()) * math.prod(
            map(len, self._features.values())
        )

    def __iter__(self) -> Iterator[Candidate]:
        for network, axes in self._networks.items():
            for options in itertools.product(*axes.values()):
                for features in itertools.product(*self._features.values()):
                    yield self._candidate(network, dict(zip(axes, options, strict=True)), features)

    def sizes(self) -> Iterator[tuple[Values, str]]:
        """Options of the front end among which every value is, with the place in the recipe of the one that is new."""
        start = {name: values[0] for name, values in self._features.items()}
        for name, values in self._features.items():
            for value in values:
                yield tuple({**start, name: value}.items()), f"{_WHERE}.features.{name}"

    def one_by_one(self) -> Iterator[tuple[Candidate, str]]:
        """Candidates among which every value of every option is, with the place in the recipe of the value that is
        new in each."""
        first = tuple(values[0] for values in self._features.values())
        for network, axes in self._networks.items():
            start = {name: values[0] for name, values in axes.items()}
            yield self._candidate(network, start, first), _place(network)
            for name, values in axes.items():
                for value in values[1:]:
                    yield self._candidate(network, {**start, name: value}, first), f"{_place(network)}.{name}"
            for number, (name, values) in enumerate(self._features.items()):
                for value in values[1:]:
                    features = (*first[:number], value, *first[number + 1 :])
                    yield self._candidate(network, start, features), f"{_WHERE}.features.{name}"

    def draw(self, random: Random) -> Candidate:
        """Any candidate: a network, then a value of each option, all equally likely."""
        network = random.choice(list(self._networks))
        features = tuple(random.choice(values) for values in self._features.values())
        return self._drawn(network, {}, features, random)

    def mutated(self, parent: Candidate, random: Random) -> Candidate:
        """A candidate that differs from its parent in one thing: an option of its network or of the front end, or the
        network, whose options are then drawn anew but for those of the same name and value."""
        axes, options, features = self._networks[parent.network], dict(parent.options), dict(parent.features)
        things: list[tuple[str, str]] = [("option", name) for name, values in axes.items() if len(values) > 1]
        things += [("feature", name) for name, values in self._features.items() if len(values) > 1]
        if len(self._networks) > 1:
            things.append(("network", ""))
        if not things:
            return parent
        kind, name = random.choice(things)
        if kind == "option":
            options[name] = _other(axes[name], options[name], random)
        elif kind == "feature":
            features[name] = _other(self._features[name], features[name], random)
        sizes = tuple(features.values())
        if kind == "network":
            network = _other(tuple(self._networks), parent.network, random)
            return self._drawn(network, options, sizes, random)
        return self._candidate(parent.network, options, sizes)

    def _drawn(self, network: str, kept: Mapping[str, Any], features: tuple[Any, ...], random: Random) -> Candidate:
        options = {}
        for name, values in self._networks[network].items():
            same = name in kept and kept[name] in values
            options[name] = kept[name] if same else random.choice(values)
        return self._candidate(network, options, features)

    def _candidate(self, network: str, options: Mapping[str, Any], features: tuple[Any, ...]) -> Candidate:
        return Candidate(network, tuple(options.items()), tuple(zip(self._features, features, strict=True)))


def _place(network: str) -> str:
    return f"{_WHERE}.networks.{network}"


def _axes(said: Mapping[str, Any], where: str) -> dict[str, tuple[Any, ...]]:
    """Values by option; one value alone is a list of one."""
    axes = {}
    for name, values in said.items():
        every = values if isinstance(values, (list, tuple)) else [values]
        if not every:
            raise UserError("expected at least one value", where=f"{where}.{name}", fix="name the values to try")
        for number, value in enumerate(every):
            if isinstance(value, (list, dict)):
                raise UserError(f"{value!r} is no single value", where=f"{where}.{name}", fix="list plain values")
            if value in every[:number]:
                raise UserError(f"{value!r} is there twice", where=f"{where}.{name}", fix="name each value once")
        axes[name] = tuple(every)
    return axes


def _other(values: tuple[Any, ...], value: Any, random: Random) -> Any:
    return random.choice([one for one in values if one != value])
