"""Training state on disk: tensors as safetensors, the rest as JSON. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mst_edge.core.files import atomic_path

State = dict[str, Tensor]


def copy_state(module: nn.Module) -> State:
    """A detached copy of a module's state, on the CPU."""
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


def save_tensors(path: Path, groups: Mapping[str, State], facts: Mapping[str, Any]) -> None:
    """Writes named groups of tensors and JSON-able facts into one safetensors file, whole or not at all."""
    flat = {
        f"{group}/{key}": value.contiguous().clone() for group, state in groups.items() for key, value in state.items()
    }
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"facts": json.dumps(facts, allow_nan=False)})


def load_tensors(path: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """What ``save_tensors`` wrote."""
    groups: dict[str, State] = {}
    with safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            group, _, key = name.partition("/")
            groups.setdefault(group, {})[key] = file.get_tensor(name)
    return groups, facts


def optimizer_state(optimizer: Optimizer) -> State:
    """Per-parameter tensors of an optimiser, keyed ``<parameter number>.<name>``."""
    state: State = {}
    for number, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            state[f"{number}.{name}"] = torch.as_tensor(value).detach().to("cpu", copy=True)
    return state


def restore_optimizer(optimizer: Optimizer, state: State) -> None:
    """Puts back what ``optimizer_state`` returned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nested: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, _, name = key.partition(".")
        nested.setdefault(int(number), {})[name] = _laid_out_as(parameters[int(number)], value)
    optimizer.load_state_dict({"state": nested, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """``value`` in the memory layout of ``parameter``, where it has its shape.

    Files hold rows one after another, and a fused optimiser goes through memory in order: beside weights of a
    convolution in channels-last layout it would take them for those of other weights.
    """
    return torch.empty_like(parameter, device="cpu").copy_(value) if value.shape == parameter.shape else value
