"""LoRA (Hu and others, arXiv 2106.09685): weights of a model stay as they are, small ones beside them learn.

The state of an adapted network holds what learns alone; the rest comes from the model's files, whose hash is kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor, nn

from distill.huggingface.source import Source
from distill.networks.registry import find_layer
from mst_edge.core.errors import UserError, unknown_name
from mst_edge.core.extras import import_extra

_KEEPS = "_left_out"  # attribute of an adapted network: names of weights that its state leaves out


@dataclass(frozen=True)
class Lora:
    """The adapters of a network.

    Attributes:
        rank: of the product that is learned beside each weight.
        alpha: the product is scaled by ``alpha / rank``.
        dropout: before it.
        layers: dotted paths of linear layers, or of what holds some; all of the trunk's where there are none.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    layers: tuple[str, ...] = ()


def parse_lora(said: Mapping[str, Any], source: Source, weights_sha256: str, *, loads: bool) -> Lora:
    """Options as a recipe says them.

    Args:
        weights_sha256: of the weights that the adapters were trained beside; empty where they are new.
        loads: whether the network has the model's own weights.

    Raises:
        UserError: an unknown one, a number that makes no sense, or other weights than the adapters belong to.
    """
    if not loads:
        raise UserError("adapters learn beside a model's own weights", where="lora", fix="set weights: own")
    if weights_sha256 and weights_sha256 != source.weights_sha256():
        raise UserError(
            f"the weights of {source.name} are not those that the adapters were trained beside",
            where="weights_sha256",
            fix="put the old files back, or train the adapters anew",
        )
    for key in said:
        if key not in {field.name for field in fields(Lora)}:
            raise unknown_name("key", key, [field.name for field in fields(Lora)], where="lora")
    lora = Lora(**{**said, "layers": tuple(said.get("layers", ()))})
    for name, fine in (
        ("rank", isinstance(lora.rank, int) and lora.rank >= 1),
        ("alpha", isinstance(lora.alpha, int | float) and lora.alpha > 0),
        ("dropout", isinstance(lora.dropout, int | float) and 0 <= lora.dropout < 1),
    ):
        if not fine:
            raise UserError(f"{getattr(lora, name)!r} is no {name} of LoRA", where=f"lora.{name}")
    return lora


def adapt(network: nn.Module, lora: Lora) -> None:
    """Adds adapters below ``network.trunk``; they and what is outside of the model learn, the rest does not.

    Raises:
        UserError: no such layer, none that is linear, or peft is not installed.
    """
    trunk: nn.Module = network.get_submodule("trunk")
    chosen = _linear_layers(network, lora.layers)
    model = {id(weight) for name in ("trunk", "projection") for weight in network.get_submodule(name).parameters()}
    peft = import_extra("peft")
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="|".join(re.escape(name) for name in chosen),
    )
    peft.inject_adapter_in_model(config, trunk)
    kept = [name for name, weight in network.named_parameters() if id(weight) in model]
    for name, weight in network.named_parameters():
        weight.requires_grad_(name not in kept)
    leave_out(network, kept)


def _linear_layers(network: nn.Module, layers: Sequence[str]) -> list[str]:
    """Names, below the trunk, of the linear layers at or below these dotted paths."""
    found: dict[str, None] = {}
    for path in layers or ("trunk",):
        within = find_layer(network, path, where="lora.layers")
        names = [
            f"{path}.{name}" if name else path
            for name, part in within.named_modules()
            if isinstance(part, nn.Linear) and f"{path}.".startswith("trunk.")
        ]
        if not names:
            raise UserError(f"{path} holds no linear layer of the trunk", where="lora.layers")
        found |= dict.fromkeys(name.removeprefix("trunk.") for name in names)
    return list(found)


def leave_out(network: nn.Module, names: Collection[str]) -> None:
    """Lets the network's state hold no weights of these names, and take a state without them."""
    setattr(network, _KEEPS, frozenset(names))
    network.register_state_dict_post_hook(_drop)  # type: ignore[no-untyped-call]
    network.register_load_state_dict_pre_hook(_fill)  # type: ignore[no-untyped-call]


def _drop(network: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    for name in getattr(network, _KEEPS):
        state.pop(prefix + name)


def _fill(network: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: object) -> None:
    own = dict(network.named_parameters())
    state.update({prefix + name: own[name].detach() for name in getattr(network, _KEEPS)})


def merge(network: nn.Module) -> None:
    """Adds what the adapters learned to the weights beside them, and removes them: the state is whole again."""
    layer_class: Any = import_extra("peft").tuners.lora.LoraLayer
    for name, part in list(network.named_modules()):
        if isinstance(part, layer_class):
            part.merge()
            network.set_submodule(name, part.get_base_layer())
    setattr(network, _KEEPS, frozenset())


def lora_options(lora: Lora, source: Source) -> dict[str, Any]:
    """What builds an adapted network again: the model's files as they are now, and its adapters."""
    said = {**asdict(lora), "layers": list(lora.layers)}
    return {"model": source.name, "lora": said, "weights_sha256": source.weights_sha256()}
