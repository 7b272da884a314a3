"""What this device is, as far as tuned settings depend on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_NAMES = ("model name", "CPU implementer", "CPU part")  # Arm's kernels give numbers in place of a name


def this_cpu() -> dict[str, Any]:
    """The CPU's name, and the cores that this process may use."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    name = " ".join(said[key] for key in _NAMES if key in said) or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"cpu": name, "cores": cores}


def settings_here(options: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine is opened with: ``options``, and what tuning found where it ran on a machine like this one.

    Args:
        tuned: empty, or ``machine`` as ``this_cpu`` gives it, and ``options``.
    """
    if tuned and tuned["machine"] == this_cpu():
        return {**options, **tuned["options"]}
    return dict(options)
