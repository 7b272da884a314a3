"""Which nodes of a model ONNX Runtime really ran on which provider: read from the profile of one inference."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.runtime.engines import OnnxRuntimeEngine

_KERNEL = "_kernel_time"
_COUNTS = ("int64", "int32", "bool")  # what shapes, and arithmetic on them, are made of
_CPU = OnnxRuntimeEngine.provider


@dataclass(frozen=True)
class Placement:
    """Where the nodes of the optimised graph ran.

    Attributes:
        nodes: provider to how many.
        on_cpu: operators that ran on the CPU and are more than arithmetic on shapes, each with how many; of a graph
            that is meant to be elsewhere.
    """

    nodes: Mapping[str, int]
    on_cpu: Mapping[str, int]

    def share(self, provider: str) -> float:
        """Of all nodes, those on ``provider``."""
        return self.nodes.get(provider, 0) / max(1, sum(self.nodes.values()))

    def on_device(self) -> int:
        """Nodes on any provider but the CPU's."""
        return sum(count for provider, count in self.nodes.items() if provider != _CPU)


def read_profile(text: str) -> Placement:
    """What a profile of ONNX Runtime's says: an event per node and run, with the node's operator and provider."""
    events = [e for e in json.loads(text) if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    nodes = {event["name"]: event["args"] for event in events}
    providers = Counter(said["provider"] for said in nodes.values())
    on_cpu = Counter(said["op_name"] for said in nodes.values() if said["provider"] == _CPU and not _is_shape(said))
    return Placement(dict(providers), dict(on_cpu))


def _is_shape(node: Mapping[str, Any]) -> bool:
    """Whether all that a node makes are whole numbers along one axis or none."""
    made = [pair for entry in node.get("output_type_shape", []) for pair in entry.items()]
    return bool(made) and all(kind in _COUNTS and len(shape) <= 1 for kind, shape in made)


def place(
    engine: type[OnnxRuntimeEngine], model: Path, options: Mapping[str, Any], sample: tuple[tuple[int, ...], str]
) -> Placement:
    """Runs ``model`` once and tells what ran where.

    Args:
        sample: shape, with the batch, and type of an input.

    Raises:
        BundleError: the engine does not open the model on its provider.
    """
    shape, dtype = sample
    with tempfile.TemporaryDirectory(prefix="mst-edge-") as folder:
        opened = engine(model, {**options, "profile": Path(folder) / "profile"})
        try:
            opened.run(np.zeros(shape, dtype))
            return read_profile(opened.end_profile().read_text(encoding="utf-8"))
        finally:
            opened.close()
