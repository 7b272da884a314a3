"""Which extra brings which optional dependency: a missing one is answered with the command that fixes it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mst_edge.core.errors import UserError

EXTRA_OF: Mapping[str, str] = {
    "torch": "train",
    "safetensors": "train",
    "sklearn": "train",
    "scipy": "train",
    "soundfile": "train",
    "PIL": "train",
    "h5py": "train",
    "timm": "networks",
    "transformers": "hf",
    "huggingface_hub": "hf",
    "peft": "peft",
    "onnx": "quantize",
    "onnxscript": "quantize",
    "nncf": "quantize",
    "torchao": "quantize",
    "neural_compressor": "quantize",
    "openvino": "openvino",
    "executorch": "executorch",
    "av": "video",
}
# Where a module and what pip installs have different names.
_DISTRIBUTION_OF: Mapping[str, str] = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "neural_compressor": "neural-compressor-pt",
}
# These import torchvision, and that fails beside another build of torch than its own (the public index's CUDA wheel
# beside a CPU torch) over what it registers in this module, for detection operators that are not used here.
_NOT_NEEDED: Mapping[str, str] = dict.fromkeys(("timm", "transformers", "peft"), "torchvision._meta_registrations")


def require_modules(*names: str) -> None:
    """Makes sure that modules can be imported, without importing them.

    Raises:
        UserError: one is missing; says which extra brings it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise missing_module(name)


def import_extra(name: str) -> Any:
    """A module of ``EXTRA_OF``.

    Raises:
        UserError: it is not installed.
    """
    require_modules(name)
    aside = _NOT_NEEDED.get(name, "")
    if aside and aside.partition(".")[0] not in sys.modules:
        sys.modules.setdefault(aside, ModuleType(aside))
    return importlib.import_module(name)


def distribution_of(module: str) -> str:
    """What pip calls the package that brings a module of ``EXTRA_OF``."""
    return _DISTRIBUTION_OF.get(module, module)


def install_command(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'mst-edge[{extra}]'"


def missing_module(name: str) -> UserError:
    """The error that tells a user how to get a module of ``EXTRA_OF``."""
    return UserError(f"this needs {name}, which is not installed", fix=install_command(EXTRA_OF[name]))
