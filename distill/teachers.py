"""A trained teacher on disk: weights as safetensors, and beside them what they read and say, as YAML.

Every run leaves its lone-trained teachers in this form, and another recipe may name them: they are loaded in place of
being trained, and see features that are standardised as those that they were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.frontends import Frontend
from distill.networks.registry import Model, NetworkChoice
from distill.training.checkpoint import copy_state
from mst_edge.core.border import parse, read_yaml
from mst_edge.core.errors import UserError
from mst_edge.core.files import atomic_path, sha256_file, write_text

_MANY = 5


class NetworkDescription(BaseModel):
    """As in a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    network: str = "auto"
    options: dict[str, Any] = {}


class FeatureDescription(BaseModel):
    """What the teacher reads of one modality: the front end with its options, and what that learned.

    Numbers are standardised by ``scale`` and ``shift``; text has a ``tokenizer``, as JSON.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    frontend: str = ""
    options: dict[str, Any] = {}
    scale: list[float] | None = None
    shift: list[float] | None = None
    tokenizer: str | None = None

    @property
    def learned(self) -> dict[str, Any]:
        """What its front end learned; empty where the file does not say."""
        return self.model_dump(include={"scale", "shift", "tokenizer"}, exclude_none=True)


class Origin(BaseModel):
    """What a teacher was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    dataset: str
    data_sha256: str
    train_sha256: str


class TeacherDescription(BaseModel):
    """The YAML file beside the weights. One written by hand needs ``reads`` and ``classes`` only.

    In regression, ``classes`` names the numbers, and what the network says is ``(number - shift) / scale``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    reads: dict[str, FeatureDescription]
    classes: list[str]
    scale: list[float] | None = None
    shift: list[float] | None = None
    network: NetworkDescription = NetworkDescription()
    trained_on: Origin | None = None
    weights_sha256: str = ""


@dataclass(frozen=True)
class TeacherFile:
    """A trained teacher that a recipe names.

    Attributes:
        weights: a safetensors file: the network's state, tensor by tensor. Its description lies beside it, with the
            ending ``.yaml``.
    """

    weights: Path
    about: TeacherDescription

    def require_fit(self, reads: Sequence[str], classes: Sequence[str], said: NetworkChoice, where: str) -> None:
        """Refuses a teacher that was trained to read or to say something else than it is asked for.

        Args:
            reads: modalities that it shall read. classes: of the data, in the order of the targets.
            said: the network that the recipe names; ``auto`` takes the teacher's own.
            where: the recipe's key that names the teacher.

        Raises:
            UserError: names what the file and what the recipe or the data say.
        """
        if set(self.about.reads) != set(reads):
            raise UserError(
                f"{self.weights.name} reads {_listed(self.about.reads)}, but this teacher has to read {_listed(reads)}",
                where=where,
            )
        if self.about.classes != list(classes):
            raise UserError(
                f"{self.weights.name} answers with {_counted(self.about.classes)}, but the data has "
                f"{_counted(classes)}",
                where=where,
                fix="name a teacher of the same classes in the same order",
            )
        own = self.about.network
        other = said.network not in ("auto", own.network) or (said.options and dict(said.options) != own.options)
        if other and own != NetworkDescription():
            raise UserError(
                f"{self.weights.name} holds weights of {own.network} {own.options}, not of {said.network} "
                f"{dict(said.options)}",
                where=where,
                fix="leave network and options out: the file says them",
            )

    def require_same_scale(self, constants: Mapping[str, Tensor], where: str) -> None:
        """Refuses a teacher whose numbers are standardised otherwise than those of the data at hand.

        Args:
            constants: ``scale`` and ``shift`` of each number; empty where classes are told.

        Raises:
            UserError: names the constant that differs.
        """
        for name, ours in constants.items():
            theirs = getattr(self.about, name)
            if theirs is None or not torch.allclose(torch.tensor(theirs), ours, rtol=1e-5):
                raise UserError(
                    f"{self.weights.name} standardises its numbers with {name} {theirs}, these data have "
                    f"{ours.tolist()}",
                    where=where,
                    fix="take a teacher that was trained on the same split",
                )

    def choice(self, said: NetworkChoice) -> NetworkChoice:
        """The network to build: as the file says, or where it does not, as the recipe does."""
        own = self.about.network
        return said if own == NetworkDescription() else NetworkChoice(own.network, own.options)

    def pin(self, frontends: Mapping[str, Frontend], options: Mapping[str, Any], where: str) -> None:
        """Makes front ends standardise as they did when this teacher was trained.

        Raises:
            UserError: a front end is another than the teacher's, or another teacher wants it otherwise.
        """
        for name, features in self.about.reads.items():
            frontend = frontends[name]
            ours = (type(frontend).__name__, asdict(options[name]))
            if features.frontend and ours != (features.frontend, features.options):
                raise UserError(
                    f"{self.weights.name} was trained on {features.frontend} {features.options} of {name}, but "
                    f"this recipe makes {ours[0]} {ours[1]}",
                    where=where,
                    fix=f"set modalities.{name} as it was then, or train the teacher anew",
                )
            if features.learned:
                self._pin(name, frontend, features.learned, where)

    def _pin(self, name: str, frontend: Frontend, learned: Mapping[str, Any], where: str) -> None:
        try:
            alone = frontend.pin(learned)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.weights.name} was trained on other {name}: {error}", where=where) from None
        if not alone:
            raise UserError(
                f"{self.weights.name} and another teacher were trained on {name} that was prepared differently",
                where=where,
                fix="take teachers of one run",
            )

    def load_into(self, model: Model, where: str) -> Model:
        """Puts the weights into a network.

        Raises:
            UserError: no safetensors file, or tensors that the network lacks or wants in another shape; names both.
        """
        try:
            state = load_file(self.weights)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.weights} is no readable safetensors file ({error})", where=where) from None
        wanted = {name: tuple(value.shape) for name, value in model.module.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in state.items()}
        for name in dict.fromkeys([*wanted, *found]):
            if wanted.get(name) != found.get(name):
                raise UserError(
                    f"tensor {name!r} {_shaped(found, name)} in {self.weights.name} and {_shaped(wanted, name)} in "
                    f"network {model.network!r}",
                    where=where,
                    fix="name the network and options that the weights were trained with",
                )
        model.module.load_state_dict(state)
        return model

    def saw_other_split(self, dataset: str, data_sha256: str, train_sha256: str) -> bool:
        """Whether it was trained on this dataset, parted otherwise: it may have seen what is test data here."""
        then = self.about.trained_on
        return (
            then is not None
            and then.dataset == dataset
            and then != Origin(dataset=dataset, data_sha256=data_sha256, train_sha256=train_sha256)
        )


def open_teacher(weights: Path, where: str) -> TeacherFile:
    """The teacher in a weights file and the YAML file beside it.

    Raises:
        UserError: one of them is missing or malformed, or they do not belong together.
    """
    if not weights.is_file():
        raise UserError(f"no such file: {weights}", where=where)
    beside = weights.with_suffix(".yaml")
    if not beside.is_file():
        raise UserError(
            f"{beside} is missing, which says what the weights read and answer", where=where, fix="see docs/scale.md"
        )
    about = parse(TeacherDescription, read_yaml(beside), where=beside)
    if about.weights_sha256 and sha256_file(weights) != about.weights_sha256:
        raise UserError(f"{weights} holds other weights than {beside.name} describes", where=where)
    return TeacherFile(weights, about)


def save_teacher(
    weights: Path, module: nn.Module, frontends: Mapping[str, Frontend], options: Mapping[str, Any], **more: Any
) -> None:
    """Writes a trained teacher and its description.

    Args:
        frontends: of the modalities that it reads. options: theirs.
        more: other keys of ``TeacherDescription``.
    """
    with atomic_path(weights) as temporary:
        save_file({name: value.contiguous().clone() for name, value in copy_state(module).items()}, temporary)
    about = TeacherDescription(
        reads={
            name: FeatureDescription(
                frontend=type(frontend).__name__,
                options=asdict(options[name]),
                **frontend.learned(),
            )
            for name, frontend in frontends.items()
        },
        weights_sha256=sha256_file(weights),
        **more,
    )
    text = yaml.safe_dump(about.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)
    write_text(weights.with_suffix(".yaml"), text)


def _shaped(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"is {shapes[name]}" if name in shapes else "is missing"


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return " + ".join(sorted(names))


def _counted(classes: Sequence[str]) -> str:
    more = ", ..." if len(classes) > _MANY else ""
    return f"{len(classes)} classes ({', '.join(classes[:_MANY])}{more})"
