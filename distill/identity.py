"""What a frozen network's answers depend on, as a hash: its weights, its settings and its code."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mst_edge.core.files import sha256_file, sha256_json

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def network_identity(modules: Sequence[nn.Module]) -> dict[str, Any]:
    """JSON-able hashes of what modules hold and of the code that runs them.

    Weights and buffers count bit by bit. So do attributes with a plain value (a hop, a name, a shape), and the
    sources of every package that a submodule's class comes from; of torch, its version.
    """
    settings = [_settings(name, part) for module in modules for name, part in module.named_modules()]
    packages = {type(part).__module__.partition(".")[0] for module in modules for part in module.modules()}
    return {
        "weights": _weights(modules),
        "settings": sha256_json(settings),
        "code": {name: _code(name) for name in sorted({"distill", "torch", *packages})},
    }


def _weights(modules: Sequence[nn.Module]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for name, value in itertools.chain(module.named_parameters(), module.named_buffers()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _settings(name: str, part: nn.Module) -> list[Any]:
    """A module's class and its own attributes."""
    own = {
        key: value
        for key, value in vars(part).items()
        if key not in ("_parameters", "_buffers", "_modules", "training") and not key.endswith("_hooks")
    }
    return [name, _name(type(part)), _plain(own, ())]


def _plain(value: object, above: tuple[int, ...]) -> Any:
    """A value as JSON that is the same in every process; an object by its class and attributes."""
    if id(value) in above or isinstance(value, nn.Module):  # a cycle, or a part that speaks for itself
        return _name(type(value))
    inside = (*above, id(value))
    if isinstance(value, Mapping):
        return [[_plain(key, inside), _plain(item, inside)] for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item, inside) for item in value]
        return items if isinstance(value, list | tuple) else sorted(items, key=str)
    if hasattr(value, "__dict__") and not hasattr(value, "__qualname__") and not isinstance(value, Tensor):
        return [_name(type(value)), _plain(vars(value), inside)]
    return _leaf(value)


def _leaf(value: object) -> str:
    if isinstance(value, Tensor):
        return hashlib.sha256(_bytes(value)).hexdigest()
    return _name(value) if hasattr(value, "__qualname__") else _ADDRESS.sub("", repr(value))


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@functools.cache
def _code(package: str) -> str:
    """Hash of a package's sources, or of one module's; of torch, the version."""
    if package == "torch":
        return str(torch.__version__)
    module = sys.modules[package]
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    if not files and getattr(module, "__file__", None):
        files = [Path(str(module.__file__))]
    if not files:
        raise SourceUnknownError(package)
    return sha256_json([[file.name, sha256_file(file)] for file in files])


class SourceUnknownError(Exception):
    """A network's class was typed at a prompt: nobody can tell whether its code is still the same."""
