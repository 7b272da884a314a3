"""Where a number comes from: tool versions, machine, hashes, seed. Attached to every result."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata

from mst_edge.core.machine import this_machine

# Packages whose version can change a result.
_TOOLS = (
    "mst-edge",
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "nncf",
    "torchao",
    "neural-compressor-pt",
    "scikit-learn",
    "soundfile",
)


def tool_versions() -> dict[str, str]:
    """Installed version of every tool that can change a result; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def provenance(**facts: object) -> dict[str, object]:
    """Tools, machine and time of now, plus ``facts`` (hashes, seeds) of the caller."""
    return {
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "tools": tool_versions(),
        "machine": this_machine().to_dict(),
        **facts,
    }
