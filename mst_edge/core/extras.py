"""Which extra brings which optional dependency: a missing one is answered with the command that fixes it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

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
    "onnx": "quantize",
    "onnxscript": "quantize",
    "nncf": "quantize",
    "openvino": "openvino",
    "av": "video",
}


def require_modules(*names: str) -> None:
    """Makes sure that modules can be imported, without importing them.

    Raises:
        UserError: one is missing; says which extra brings it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise missing_module(name)


def missing_module(name: str) -> UserError:
    """The error that tells a user how to get a module of ``EXTRA_OF``."""
    return UserError(f"this needs {name}, which is not installed", fix=f"pip install 'mst-edge[{EXTRA_OF[name]}]'")
