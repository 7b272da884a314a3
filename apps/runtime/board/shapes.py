"""Shapes that a bundle's engines are built for."""

from __future__ import annotations

import numpy as np

from ..bundle import Bundle
from ..manifest import BuildEntry, inside


def free_shapes(bundle: Bundle, entry: BuildEntry) -> dict[str, tuple[int, ...]]:
    """Input name to the shape of one sample with the batch, for models with free axes; else nothing."""
    if not entry.options["free_axes"]:
        return {}
    samples = np.load(inside(bundle.folder, bundle.manifest.reference_inputs), mmap_mode="r", allow_pickle=False)
    return {bundle.manifest.input.name: (1, *samples.shape[1:])}
